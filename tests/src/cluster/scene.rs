//! The smallest scene on a real cluster: two backends in two zones behind `default/web`, and an agent
//! that has programmed them. Their EndpointSlice is made by hand, so that nothing changes by itself.

use std::{path::PathBuf, sync::Arc};

use serde_json::Value;

use crate::{
    Agent, Cluster, Lab, Node, Pod, Serve,
    agent::text,
    must,
    objects::{self, service, slice},
    protocol::Tally,
    scene::{NODE, TCP, TCP_PORT, ZONE},
    wait,
};

/// Where the second backend is.
pub const OTHER_ZONE: &str = "zone-b";

#[derive(Debug)]
pub struct Scene {
    pub agent: Arc<Agent>,
    pub client: Pod,
    pub backends: [Pod; 2],
    pub node: Node,
    pub kubeconfig: PathBuf,
    pub cluster: Cluster,
}

impl Scene {
    /// With an agent that has the rights of deploy/.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it starts a cluster")]
    pub fn new() -> Self {
        Self::with(Cluster::account)
    }

    /// With an agent that gets another kubeconfig.
    #[must_use]
    pub fn with(kubeconfig: impl FnOnce(&Cluster) -> PathBuf) -> Self {
        let lab = Lab::new();
        let cluster = Cluster::start(&lab);
        let node = lab.node(NODE);
        let backends = ["10.0.1.1", "10.0.1.2"].map(|addr| node.pod(addr));
        for pod in &backends {
            pod.serve(Serve::Tcp, TCP_PORT);
        }
        let client = node.pod("10.0.1.200");
        let kubeconfig = kubeconfig(&cluster);
        let agent = node.agent_of(&kubeconfig);
        let scene = Self {
            agent,
            client,
            backends,
            node,
            kubeconfig,
            cluster,
        };
        scene.apply();
        must(scene.agent.wait_ready());
        scene.wait_for_answers("both backends", |tally| tally.answers.len() == 2);
        scene
    }

    /// Writes its objects, as they are at first.
    pub fn apply(&self) {
        let node = objects::node(NODE, ZONE);
        self.cluster
            .apply([node, web().into(), self.slice().into()]);
    }

    #[must_use]
    pub fn slice(&self) -> objects::Slice {
        let [near, far] = &self.backends;
        slice("default/web", "IPv4")
            .tcp("http", TCP_PORT)
            .endpoint(near.addr(), NODE, ZONE)
            .endpoint(far.addr(), NODE, OTHER_ZONE)
    }

    pub fn apply_slice(&self, slice: impl Into<Value>) {
        self.cluster.apply([slice.into()]);
    }

    /// What `services` prints.
    #[must_use]
    pub fn services(&self) -> String {
        text(&self.node.cli().on_pins(&["services"]).stdout)
    }

    pub fn wait_for_answers(&self, what: &str, wanted: impl Fn(&Tally) -> bool) {
        // A watch waits up to 30 s, and as long again at random, between two tries.
        must(wait::until(what, wait::PATIENCE * 4, || {
            let tally = self.client.load(Serve::Tcp, TCP, 20);
            if wanted(&tally) {
                Ok(())
            } else {
                Err(format!("{tally:?}"))
            }
        }));
    }

    pub fn wait_for_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        must(wait::until(what, wait::PATIENCE * 4, || {
            let status = self.node.cli().status()?;
            if wanted(&status) {
                Ok(())
            } else {
                Err(status.to_string())
            }
        }));
    }

    pub fn wait_for_log(&self, expected: &str) {
        must(wait::until(expected, wait::PATIENCE * 4, || {
            let log = self.agent.log();
            if log.contains(expected) {
                Ok(())
            } else {
                Err(log)
            }
        }));
    }
}

fn web() -> objects::Service {
    service("default/web", &["10.96.0.10"]).tcp("http", 80)
}
