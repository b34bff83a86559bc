//! The network of the nodes: a bridge in the control plane's namespace, a cable to each node, and routes
//! between the nodes' pods, as a cloud's router has them. Nothing is added to the host's own namespace.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{
    kind::{NAME, NODES, Node},
    netns::{self, Netns},
};

const API_PORT: u16 = 6443;

/// Where the API server listens.
#[must_use]
pub fn api() -> SocketAddr {
    (Ipv4Addr::new(172, 30, 0, 1), API_PORT).into()
}

/// The namespace of the control plane.
#[must_use]
pub fn control() -> Netns {
    Netns {
        name: format!("{NAME}-control"),
    }
}

impl Node {
    /// Its own addresses, which pods on the host's network share.
    #[must_use]
    pub fn addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        let last = 10 + self.number;
        let v6 = Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, u16::from(last));
        (Ipv4Addr::new(172, 30, 0, last), v6)
    }

    /// The ranges that its pods' addresses are taken from.
    #[must_use]
    pub fn pod_ranges(&self) -> [String; 2] {
        [
            format!("10.244.{}.0/24", self.number),
            format!("fd00:10:244:{}::/64", self.number),
        ]
    }
}

/// Makes all namespaces and cables.
pub fn create() -> anyhow::Result<()> {
    let control = control();
    netns::ip(&[], &format!("netns add {}\n", control.name))?;
    // What is sent to a ClusterIP and not translated must vanish, as on a real network.
    control.ip(&format!(
        "link set lo up\n\
         link add nodes type bridge\n\
         addr add {}/24 dev nodes\n\
         addr add fd00:172:30::1/64 dev nodes nodad\n\
         link set nodes up\n\
         route add blackhole default\n\
         route add blackhole ::/0\n",
        api().ip()
    ))?;
    NODES.iter().try_for_each(|node| connect(*node, &control))?;
    route_to_pods(&control, None)?;
    NODES
        .iter()
        .try_for_each(|node| route_to_pods(&node.netns(), Some(*node)))
}

fn connect(node: Node, control: &Netns) -> anyhow::Result<()> {
    let (netns, name) = (node.netns(), node.name);
    let (v4, v6) = node.addresses();
    netns::ip(
        &[],
        &format!(
            "netns add {0}\n\
             link add eth0 netns {0} type veth peer name {name} netns {1}\n",
            netns.name, control.name
        ),
    )?;
    control.ip(&format!("link set dev {name} master nodes up\n"))?;
    netns.ip(&format!(
        "link set lo up\n\
         link set eth0 up\n\
         addr add {v4}/24 dev eth0\n\
         addr add {v6}/64 dev eth0 nodad\n\
         route add blackhole default\n\
         route add blackhole ::/0\n"
    ))
}

/// The routes to the pods of all other nodes.
fn route_to_pods(netns: &Netns, own: Option<Node>) -> anyhow::Result<()> {
    let others = NODES.iter().filter(|node| Some(**node) != own);
    let routes = others.flat_map(|node| {
        let ((v4, v6), [pods4, pods6]) = (node.addresses(), node.pod_ranges());
        [(IpAddr::from(v4), pods4), (IpAddr::from(v6), pods6)]
    });
    let routes: String = routes
        .map(|(via, pods)| format!("route add {pods} via {via}\n"))
        .collect();
    netns.ip(&routes)
}

/// The namespaces of a cluster that are there.
#[must_use]
pub fn namespaces() -> BTreeSet<String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&format!("{NAME}-")))
        .collect()
}
