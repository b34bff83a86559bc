//! The scene most tests play in: a dual-stack Service `default/web` with a TCP and a UDP port, its
//! backends and a client on one node, and the node's agent. Ports differ on both sides, so that a
//! port that is not translated shows.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    Agent, Lab, Node, Objects, Pod, Serve,
    objects::{self, Service, Slice, service, slice},
    traffic::{address, mapped},
};

/// `default/web` to clients.
pub const TCP: &str = "10.96.0.10:80";
pub const TCP6: &str = "[fd00:10:96::10]:80";
pub const UDP: &str = "10.96.0.10:53";
pub const UDP6: &str = "[fd00:10:96::10]:53";

/// What the backends listen on.
pub const TCP_PORT: u16 = 8080;
pub const UDP_PORT: u16 = 5353;

/// Where the one node of the scene is.
pub const NODE: &str = "node-a";
pub const ZONE: &str = "zone-a";

/// The scene, ready for traffic.
#[derive(Debug)]
pub struct Scene {
    pub agent: Arc<Agent>,
    pub objects: Objects,
    pub client: Pod,
    pub backends: Vec<Pod>,
    pub node: Node,
    pub lab: Lab,
}

impl Scene {
    /// With so many backends, all of which serve.
    #[must_use]
    pub fn new(backends: u8) -> Self {
        Self::with_flags(backends, &[])
    }

    /// The same, with more flags for the agent.
    #[must_use]
    pub fn with_flags(backends: u8, flags: &[&str]) -> Self {
        let lab = Lab::new();
        let objects = lab.objects();
        let node = lab.node(NODE);
        let backends = backend_pods(&node, backends);
        let client = node.pod("10.0.1.200");
        objects.apply(objects::node(NODE, ZONE));
        objects.apply(objects::service_cidrs(&[
            "10.96.0.0/16",
            "fd00:10:96::/112",
        ]));
        objects.apply(web());
        objects.apply(web_slice(&backends));
        objects.apply(web_slice6(&backends));
        let agent = node.agent_with(&objects, flags);
        Self {
            agent,
            objects,
            client,
            backends,
            node,
            lab,
        }
    }

    /// Whether one of the backends answers at this address, over either family.
    #[must_use]
    pub fn has_backend(&self, addr: SocketAddr) -> bool {
        let is = |pod: &Pod| addr.ip() == pod.addr() || addr.ip() == pod.addr6();
        self.backends.iter().any(is)
    }
}

/// Pods `10.0.1.1`, `10.0.1.2`… that answer on both ports.
#[must_use]
pub fn backend_pods(node: &Node, count: u8) -> Vec<Pod> {
    let pods: Vec<_> = (1..=count)
        .map(|number| node.pod(&format!("10.0.1.{number}")))
        .collect();
    for pod in &pods {
        pod.serve(Serve::Tcp, TCP_PORT);
        pod.serve(Serve::Udp, UDP_PORT);
    }
    pods
}

/// The Service.
#[must_use]
pub fn web() -> Service {
    service("default/web", &["10.96.0.10", "fd00:10:96::10"])
        .tcp("http", 80)
        .udp("dns", 53)
}

/// Its IPv4 EndpointSlice with these pods.
#[must_use]
pub fn web_slice(backends: &[Pod]) -> Slice {
    let slice = slice("default/web", "IPv4")
        .tcp("http", TCP_PORT)
        .udp("dns", UDP_PORT);
    backends
        .iter()
        .fold(slice, |slice, pod| slice.endpoint(pod.addr(), NODE, ZONE))
}

/// Its IPv6 EndpointSlice with these pods.
#[must_use]
pub fn web_slice6(backends: &[Pod]) -> Slice {
    let slice = slice("default/web", "IPv6")
        .tcp("http", TCP_PORT)
        .udp("dns", UDP_PORT);
    backends
        .iter()
        .fold(slice, |slice, pod| slice.endpoint(pod.addr6(), NODE, ZONE))
}

/// The TCP port as applications of each family name it.
#[must_use]
pub fn tcp_addresses() -> [SocketAddr; 3] {
    [address(TCP), address(TCP6), mapped(TCP)]
}

/// The UDP port likewise.
#[must_use]
pub fn udp_addresses() -> [SocketAddr; 3] {
    [address(UDP), address(UDP6), mapped(UDP)]
}
