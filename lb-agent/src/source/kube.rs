//! An API server as the source of objects: watches of Services, `EndpointSlices`, this node's Node and
//! `ServiceCIDRs`, with the selectors that kube-proxy uses.
//!
//! ```text
//! watch of Services ────┐
//! watch of slices ──────┤ News          Batch
//! watch of this Node ───┼──────▶ Fold ─────────▶ agent
//! watch of ServiceCIDRs ┘  ▲       │
//!                          └───────┘ list again
//! ```
//!
//! Each watch is a task of its own, in the runtime of the agent.

pub mod access;
pub mod announce;
pub mod fold;
mod watch;
pub mod watches;

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    jiff::Timestamp,
};
use kube::{Config, runtime::watcher};
use tokio::{
    sync::{Notify, mpsc},
    task,
};
use tracing::warn;

use crate::{
    api,
    model::object::Kind,
    source::{
        Batch,
        kube::{
            fold::{Fold, Then},
            watch::{Told, Watch},
            watches::Watches,
        },
    },
};

/// How many batches may wait for a busy agent; later changes are folded into the next one.
const BATCHES: usize = 4;
/// How many objects may wait between the watches and the fold.
const NEWS: usize = 256;

/// What the access says cannot be used. That a server does not answer is no such error.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the access to the API server {server}: {}; correct the address, the certificates or \
     the token in it",
    watch::chain(.error)
)]
pub struct KubeError {
    server: String,
    error: kube::Error,
}

/// Follow an API server, in tasks of the runtime that this is called in. The first complete batch is
/// all that there is. How the watches do is noted in `watches`.
///
/// # Errors
///
/// What the access says cannot be used.
pub fn follow(
    access: &Config,
    node: &str,
    watches: Arc<Watches>,
) -> Result<mpsc::Receiver<Batch>, KubeError> {
    let (told, news) = mpsc::channel(NEWS);
    let server = access.cluster_url.to_string();
    let server = server.trim_end_matches('/').to_owned();
    let lists = watch_all(access, node, &told).map_err(|error| KubeError {
        server: server.clone(),
        error,
    })?;
    let (sender, receiver) = mpsc::channel(BATCHES);
    let gather = Gather {
        fold: Fold::new(server),
        news,
        lists,
        watches,
    };
    task::spawn(gather.run(sender));
    Ok(receiver)
}

/// By which each watch is told to list again.
type Lists = BTreeMap<Kind, Arc<Notify>>;

/// Starts the watches, with kube-proxy's selectors.
fn watch_all(access: &Config, node: &str, told: &mpsc::Sender<Told>) -> kube::Result<Lists> {
    let watch = |kind| Watch::new(kind, access, told.clone());
    let of = watcher::Config::default;
    let services = watch(Kind::Service)?.start::<core::Service>(
        of().labels("!service.kubernetes.io/service-proxy-name")
            .fields("spec.clusterIP!=None"),
        api::service::convert,
    );
    let slices = watch(Kind::EndpointSlice)?.start::<discovery::EndpointSlice>(
        of().labels("!service.kubernetes.io/headless"),
        api::endpoint_slice::convert,
    );
    let node = watch(Kind::Node)?.start::<core::Node>(
        of().fields(&format!("metadata.name={node}")),
        api::node::convert,
    );
    let cidrs = watch(Kind::ServiceCidr)?
        .start::<networking::ServiceCIDR>(of(), api::service_cidr::convert);
    Ok(BTreeMap::from([
        (Kind::Service, services),
        (Kind::EndpointSlice, slices),
        (Kind::Node, node),
        (Kind::ServiceCidr, cidrs),
    ]))
}

/// Makes batches of what the watches tell.
struct Gather {
    fold: Fold,
    news: mpsc::Receiver<Told>,
    lists: Lists,
    watches: Arc<Watches>,
}

impl Gather {
    /// Hands over a batch when there is room for one; until then, news are folded into it.
    async fn run(mut self, batches: mpsc::Sender<Batch>) {
        loop {
            self.fold_what_is_there().await;
            self.warn_while_incomplete();
            let has_news = self.fold.has_news();
            tokio::select! {
                told = self.news.recv() => match told {
                    Some(told) => self.tell(told),
                    None => return,
                },
                room = batches.reserve(), if has_news => match room {
                    Ok(room) => room.send(self.fold.take_batch()),
                    Err(_) => return,
                },
            }
        }
    }

    /// An incomplete list is no batch: where nothing serves yet, the agent starts with the first one.
    fn warn_while_incomplete(&mut self) {
        if self.fold.is_complete() || !self.fold.has_news() {
            return;
        }
        for problem in self.fold.take_batch().problems {
            warn!("{problem}");
        }
        warn!("waiting until every list is complete; nothing is changed until then");
    }

    /// What comes together is programmed together: a long list, or the slices of one roll-out.
    async fn fold_what_is_there(&mut self) {
        while let Ok(told) = self.news.try_recv() {
            self.tell(told);
            if self.news.is_empty() {
                // The watches may have more that they found no room for.
                task::yield_now().await;
            }
        }
    }

    fn tell(&mut self, (kind, news): Told) {
        let now = Timestamp::now();
        self.watches.note(kind, &news, now);
        match self.fold.tell(kind, news, now) {
            Then::GoOn => {}
            Then::ListAgain { held, gone } => {
                warn!(%kind, held, gone, "a new list lacks so much that another one must confirm it");
                self.lists[&kind].notify_one();
            }
        }
    }
}
