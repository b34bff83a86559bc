//! The two HTTP servers: `/healthz` and `/livez` for kubelets and load balancers, which come from
//! outside, and `/metrics` for who is on this node. The paths and ports are kube-proxy's, so that what
//! asked kube-proxy need not be told anew.

use std::{
    future::pending,
    io,
    net::{self, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use tokio::{net::TcpListener, runtime, time};
use tracing::{debug, info};

use super::{Vitals, health::Probe, now};

/// How long to wait before an address is tried again that somebody else has.
const RETRY: Duration = Duration::from_secs(5);

/// What `/proxyMode` says. kube-proxy names its backend; whoever asks for one of those by name, to do
/// something about its rules, is told that there are none.
const MODE: &str = "nearhop";

/// Where to serve; `None` does not.
#[derive(Clone, Copy, Debug)]
pub struct Listen {
    pub healthz: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
}

/// One of the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Health,
    Metrics,
}

/// An address could not be had. It is tried again.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve {} on {at}: {error}; stop who has the address, or give another {}", .role.what(), .role.flag())]
pub struct CannotBind {
    pub role: Role,
    at: SocketAddr,
    error: io::Error,
}

impl Role {
    fn what(self) -> &'static str {
        match self {
            Self::Health => "/healthz and /livez",
            Self::Metrics => "/metrics",
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::Health => "--healthz-bind-address",
            Self::Metrics => "--metrics-bind-address",
        }
    }

    fn routes(self, vitals: Arc<Vitals>) -> Router {
        let routes = match self {
            Self::Health => Router::new()
                .route("/healthz", any(healthz))
                .route("/livez", any(livez)),
            Self::Metrics => Router::new()
                .route("/metrics", any(metrics))
                .route("/healthz", any(|| async { plain("ok") }))
                .route("/configz", any(configz))
                .route("/proxyMode", any(|| async { plain(MODE) })),
        };
        routes.with_state(vitals)
    }
}

/// Serves for as long as the process runs. Returns the addresses that could not be had yet.
///
/// # Errors
///
/// There can be no thread for it.
pub fn start(vitals: &Arc<Vitals>, listen: Listen) -> io::Result<Vec<CannotBind>> {
    let asked = [
        (Role::Health, listen.healthz),
        (Role::Metrics, listen.metrics),
    ];
    let mut failures = Vec::new();
    let mut servers = Vec::new();
    for (role, at) in asked {
        let Some(at) = at else { continue };
        let bound = bind(at).map_err(|error| failures.push(CannotBind { role, at, error }));
        servers.push(Server {
            role,
            at,
            bound: bound.ok(),
            routes: role.routes(Arc::clone(vitals)),
        });
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let serve = move || {
        for server in servers {
            runtime.spawn(server.run());
        }
        runtime.block_on(pending::<()>());
    };
    thread::Builder::new()
        .name("vitals".to_owned())
        .spawn(serve)?;
    Ok(failures)
}

fn bind(at: SocketAddr) -> io::Result<net::TcpListener> {
    let listener = net::TcpListener::bind(at)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

struct Server {
    role: Role,
    at: SocketAddr,
    bound: Option<net::TcpListener>,
    routes: Router,
}

impl Server {
    async fn run(mut self) {
        loop {
            if let Err(error) = self.serve().await {
                debug!(%error, at = %self.at, "cannot serve yet");
            }
            time::sleep(RETRY).await;
        }
    }

    /// Until the listening socket breaks.
    async fn serve(&mut self) -> io::Result<()> {
        let bound = match self.bound.take() {
            Some(bound) => bound,
            None => bind(self.at)?,
        };
        let listener = TcpListener::from_std(bound)?;
        info!(at = %self.at, "serving {}", self.role.what());
        axum::serve(listener, self.routes.clone()).await
    }
}

async fn healthz(State(vitals): State<Arc<Vitals>>) -> Response {
    probe(&vitals, Probe::Healthz)
}

async fn livez(State(vitals): State<Arc<Vitals>>) -> Response {
    probe(&vitals, Probe::Livez)
}

fn probe(vitals: &Vitals, probe: Probe) -> Response {
    let report = vitals.health.report(probe, now());
    let code = match report.ok {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    vitals.metrics.answered(probe, code.as_u16());
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let body = serde_json::to_string(&report).expect("a report is plain JSON");
    (code, headers, body).into_response()
}

async fn metrics(State(vitals): State<Arc<Vitals>>) -> Response {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], vitals.metrics.text()).into_response()
}

async fn configz(State(vitals): State<Arc<Vitals>>) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, vitals.configz.clone()).into_response()
}

fn plain(text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text).into_response()
}
