//! Events about this node's Node, for who looks with kubectl: those that kube-proxy writes, and under
//! its reasons. They are an extra, so nothing waits for them and nothing fails with them.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Config,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{task, time};
use tracing::warn;

use crate::source::kube::watch::chain;

/// Who writes.
const REPORTER: &str = "nearhop";
/// What it does, in kube-proxy's word, by which Events are filtered.
const ACTION: &str = "StartKubeProxy";
/// An API server that has not answered by then need not be told.
const PATIENCE: Duration = Duration::from_secs(10);

/// Each is told once, so there is no rate to limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announcement {
    Starting,
    /// Why the health checks cannot be served.
    NoHealthServer(String),
    /// Why the metrics cannot be served.
    NoMetricsServer(String),
}

impl Announcement {
    fn event(&self) -> Event {
        let (type_, reason, note) = match self {
            Self::Starting => (EventType::Normal, "Starting", None),
            Self::NoHealthServer(why) => (
                EventType::Warning,
                "FailedToStartProxierHealthcheck",
                Some(why.clone()),
            ),
            Self::NoMetricsServer(why) => (
                EventType::Warning,
                "FailedToStartMetricServer",
                Some(why.clone()),
            ),
        };
        Event {
            type_,
            reason: reason.to_owned(),
            note,
            action: ACTION.to_owned(),
            secondary: None,
        }
    }
}

/// Writes Events, if there is an API server to write them to.
pub struct Announcer {
    to: Option<(Recorder, ObjectReference)>,
}

impl Announcer {
    /// Objects come from elsewhere.
    #[must_use]
    pub fn nobody() -> Self {
        Self { to: None }
    }

    /// # Errors
    ///
    /// What the access says cannot be used.
    pub fn new(access: &Config, node: &str) -> kube::Result<Self> {
        let client = Client::try_from(access.clone())?;
        let reporter = Reporter {
            controller: REPORTER.to_owned(),
            instance: Some(node.to_owned()),
        };
        let node = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        };
        Ok(Self {
            to: Some((Recorder::new(client, reporter), node)),
        })
    }

    /// Writes it some time soon.
    pub fn tell(&self, announcement: &Announcement) -> task::JoinHandle<()> {
        let event = announcement.event();
        let to = self.to.clone();
        task::spawn(async move {
            let Some((recorder, node)) = to else { return };
            let reason = &event.reason;
            match time::timeout(PATIENCE, recorder.publish(&event, &node)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(
                    reason,
                    "cannot write an Event: {}; grant create of events.k8s.io/events",
                    chain(&error)
                ),
                Err(_) => warn!(
                    reason,
                    "cannot write an Event: the API server does not answer"
                ),
            }
        })
    }
}
