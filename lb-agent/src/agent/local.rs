//! What the packet programs must know of this node: behind which address they hide clients, and who is a
//! pod (kube-proxy's detectors of local traffic).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytemuck::Zeroable;
use lb_common::{
    addr::Addr,
    flow::Node as Cell,
    tables::{SERVICE_CIDRS_MAX, SERVICE_CIDRS_PER_FAMILY, ServiceCidr},
};

use crate::{
    config::{Detect, Local},
    datapath::{
        interface::{Interface, Kind},
        maps::LocalTables,
        netlink::Machine,
    },
    model::{name::Family, object::Node, service::Cidr},
};

/// What this node's maps should hold.
pub(super) fn tables(local: &Local, node: Option<&Node>, machine: &Machine) -> LocalTables {
    let ranges = match &local.detect {
        Detect::Ranges(ranges) => ranges.as_slice(),
        Detect::NodeRanges => node.map_or(&[][..], |node| &node.pod_cidrs),
        Detect::Bridge(_) | Detect::Prefix(_) => &[],
    };
    let pods = pod_interfaces(&local.detect, &machine.interfaces);
    let mut flags = 0;
    if local.masquerade_all {
        flags |= Cell::MASQUERADE_ALL;
    }
    if !ranges.is_empty() {
        flags |= Cell::DETECT_RANGE;
    }
    if matches!(local.detect, Detect::Bridge(_) | Detect::Prefix(_)) {
        flags |= Cell::DETECT_INTERFACE;
    }
    LocalTables {
        node: Cell {
            v4: hide_behind(Family::V4, node, machine),
            v6: hide_behind(Family::V6, node, machine),
            flags,
            pad: 0,
        },
        pod_cidrs: cells(ranges),
        pods,
    }
}

/// The Node's own address if this machine has it, else what the machine itself would choose to reach
/// others, else any by which others may reach it.
fn hide_behind(family: Family, node: Option<&Node>, machine: &Machine) -> Addr {
    let of_family = |addr: &&IpAddr| addr.is_ipv4() == (family == Family::V4);
    let named = node.and_then(|node| node.addresses.get(&family));
    let is_here = |addr: &&IpAddr| named == Some(&Addr::from(**addr));
    let own = machine.addresses.iter().find(is_here);
    let chosen = own
        .or_else(|| machine.sources.iter().find(of_family))
        .or_else(|| machine.addresses.iter().find(of_family));
    chosen.map_or(Addr::zeroed(), |addr| Addr::from(*addr))
}

/// The first range of each family, as kube-proxy has it. A family without one has no detector: then all
/// its clients pass for pods, which is what no detector means.
fn cells(ranges: &[Cidr]) -> Vec<ServiceCidr> {
    let mut cells = vec![ServiceCidr::zeroed(); SERVICE_CIDRS_MAX as usize];
    if ranges.is_empty() {
        return cells;
    }
    let all_v4 = Cidr::new(Addr::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), 0);
    let all_v6 = Cidr::new(Addr::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), 0);
    for (family, at, all) in [
        (Family::V4, 0, all_v4),
        (Family::V6, SERVICE_CIDRS_PER_FAMILY as usize, all_v6),
    ] {
        let first = ranges.iter().find(|range| range.family() == family);
        if let Some(range) = first.copied().or(all) {
            cells[at] = ServiceCidr {
                addr: range.addr,
                mask: range.mask(),
                used: 1,
            };
        }
    }
    cells
}

/// A packet comes in by a port of the bridge, and the programs are there.
fn pod_interfaces(detect: &Detect, all: &[Interface]) -> BTreeSet<u32> {
    let is_pods = |interface: &&Interface| match detect {
        Detect::Bridge(name) => {
            let master = all
                .iter()
                .find(|other| interface.master == Some(other.index));
            master.is_some_and(|master| master.kind == Kind::Bridge && master.name == *name)
        }
        Detect::Prefix(prefix) => interface.name.starts_with(prefix),
        Detect::Ranges(_) | Detect::NodeRanges => false,
    };
    all.iter().filter(is_pods).map(|pod| pod.index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_hidden_behind_the_nodes_address_if_this_machine_has_it() {
        let machine = Machine {
            addresses: ips(&["10.0.0.7", "192.0.2.7", "2001:db8::7"]),
            sources: ips(&["192.0.2.7", "2001:db8::7"]),
            interfaces: Vec::new(),
        };
        let behind = |addresses: &[&str]| {
            let node = node(addresses, &[]);
            let cell = tables(&local(Detect::NodeRanges), Some(&node), &machine).node;
            [cell.v4, cell.v6].map(|addr| addr.to_string())
        };

        assert_eq!(behind(&["10.0.0.7"]), ["10.0.0.7", "2001:db8::7"]);
        assert_eq!(behind(&["10.0.0.8"]), ["192.0.2.7", "2001:db8::7"]);
        let alone = Machine {
            sources: Vec::new(),
            ..machine.clone()
        };
        let cell = tables(&local(Detect::NodeRanges), None, &alone).node;
        assert_eq!(cell.v4.to_string(), "10.0.0.7");
        let none = tables(&local(Detect::NodeRanges), None, &Machine::default()).node;
        assert_eq!(none.v4, Addr::zeroed());
    }

    #[test]
    fn ranges_are_those_given_or_those_of_the_node_and_the_first_of_each_family() {
        let given = Detect::Ranges(cidrs(&["10.244.0.0/16", "10.9.0.0/16"]));
        let node = node(&[], &["10.1.0.0/24", "fd00:1::/64"]);
        let found = |detect: Detect| {
            let tables = tables(&local(detect), Some(&node), &Machine::default());
            let is_pod = |addr: &str| {
                let addr = Addr::from(addr.parse::<IpAddr>().unwrap());
                let (v4, v6) = tables.pod_cidrs.split_at(SERVICE_CIDRS_PER_FAMILY as usize);
                let mut of_family = if addr.is_v4() { v4 } else { v6 }.iter();
                of_family.any(|cell| cell.used == 1 && cell.contains(addr))
            };
            let pods = [
                "10.244.1.1",
                "10.9.1.1",
                "10.1.0.9",
                "fd00:1::9",
                "2001:db8::9",
            ];
            (tables.node.flags, pods.map(is_pod))
        };

        // No range for IPv6 is no detector for IPv6.
        let flags = Cell::DETECT_RANGE;
        assert_eq!(found(given), (flags, [true, false, false, true, true]));
        assert_eq!(
            found(Detect::NodeRanges),
            (flags, [false, false, true, true, false])
        );
        assert_eq!(found(Detect::Ranges(Vec::new())), (0, [false; 5]));
    }

    #[test]
    fn interfaces_of_pods_are_a_bridges_ports_or_have_a_prefix() {
        let machine = Machine {
            interfaces: vec![
                interface(1, "cni0", Kind::Bridge, None),
                interface(2, "veth1", Kind::Other, Some(1)),
                interface(3, "veth2", Kind::Other, None),
                interface(4, "eth0", Kind::Other, None),
            ],
            ..Machine::default()
        };
        let pods = |detect: Detect| {
            let tables = tables(&local(detect), None, &machine);
            assert_eq!(tables.node.flags, Cell::DETECT_INTERFACE);
            tables.pods.into_iter().collect::<Vec<_>>()
        };

        assert_eq!(pods(Detect::Bridge("cni0".to_owned())), [2]);
        assert_eq!(pods(Detect::Prefix("veth".to_owned())), [2, 3]);
    }

    fn local(detect: Detect) -> Local {
        Local {
            masquerade_all: false,
            detect,
        }
    }

    fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Node {
        Node {
            addresses: ips(addresses)
                .into_iter()
                .map(|addr| (Family::of(Addr::from(addr)), Addr::from(addr)))
                .collect(),
            pod_cidrs: cidrs(pod_cidrs),
            ..Node::default()
        }
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn cidrs(texts: &[&str]) -> Vec<Cidr> {
        let cidr = |text: &&str| crate::api::value::cidr(text).unwrap();
        texts.iter().map(cidr).collect()
    }

    fn interface(index: u32, name: &str, kind: Kind, master: Option<u32>) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            kind,
            is_ethernet: true,
            master,
        }
    }
}
