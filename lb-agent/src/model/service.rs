//! A Service as the cluster wants it: each family's addresses, the ports, the policies.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_common::addr::{Addr, Port, Proto};

use crate::model::name::{Family, ServiceName};

/// A Service that has a virtual address. Headless, `ExternalName` and other proxies' Services never
/// become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: ServiceName,
    /// A family without a `ClusterIP` has no half: then none of its other addresses count either.
    pub halves: BTreeMap<Family, Half>,
    pub ports: Vec<PortSpec>,
    pub internal_policy: Policy,
    /// Already `Cluster` where the API says the field does not count.
    pub external_policy: Policy,
    /// The timeout of `ClientIP` affinity; `None` without affinity.
    pub affinity_secs: Option<u32>,
    /// What it asks of the control plane about topology.
    pub asks: Option<Asks>,
}

/// What a Service asks of the control plane: to give its endpoints hints. Only the hints decide; this
/// is to tell an operator that they are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Asks {
    /// `service.kubernetes.io/topology-mode: Auto`, which overrides the other two.
    Auto,
    SameZone,
    SameNode,
}

impl fmt::Display for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "topology-mode: Auto",
            Self::SameZone => "trafficDistribution: PreferSameZone",
            Self::SameNode => "trafficDistribution: PreferSameNode",
        })
    }
}

/// The addresses of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Half {
    pub cluster_ip: Addr,
    pub load_balancer_ips: BTreeSet<Addr>,
    pub external_ips: BTreeSet<Addr>,
    /// Who may reach the load balancer addresses; empty means everybody.
    pub source_ranges: BTreeSet<Cidr>,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Empty when unnamed.
    pub name: String,
    pub proto: Proto,
    pub port: Port,
    pub node_port: Option<Port>,
}

/// A traffic policy, internal or external.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Policy {
    Cluster,
    Local,
}

/// A range of addresses. The host bits of `addr` are zero, so that equal ranges are equal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    pub addr: Addr,
    /// In the family's own terms: 0 to 32, or 0 to 128.
    pub prefix_len: u8,
}

impl Cidr {
    /// The range of this length around `addr`; `None` if the family has no such length.
    #[must_use]
    pub fn new(addr: Addr, prefix_len: u8) -> Option<Self> {
        let (bits, unused) = match Family::of(addr) {
            Family::V4 => (32, 96),
            Family::V6 => (128, 0),
        };
        if prefix_len > bits {
            return None;
        }
        let network = u128::from_be_bytes(addr.bytes) & mask(u32::from(prefix_len) + unused);
        Some(Self {
            addr: Addr {
                bytes: network.to_be_bytes(),
            },
            prefix_len,
        })
    }

    /// Ones where the address counts, as an address.
    #[must_use]
    pub fn mask(&self) -> Addr {
        let unused = match self.family() {
            Family::V4 => 96,
            Family::V6 => 0,
        };
        Addr {
            bytes: mask(u32::from(self.prefix_len) + unused).to_be_bytes(),
        }
    }

    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.addr)
    }
}

fn mask(ones: u32) -> u128 {
    u128::MAX.checked_shl(128 - ones).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_range_forgets_its_host_bits() {
        for (addr, prefix_len, expected) in [
            ("10.1.2.3", 8, Some("10.0.0.0/8")),
            ("10.1.2.3", 32, Some("10.1.2.3/32")),
            ("10.1.2.3", 0, Some("0.0.0.0/0")),
            ("10.1.2.3", 33, None),
            ("fd00::1:2", 64, Some("fd00::/64")),
            ("fd00::1:2", 128, Some("fd00::1:2/128")),
            ("fd00::1:2", 0, Some("::/0")),
            ("fd00::1:2", 129, None),
        ] {
            let addr: IpAddr = addr.parse().unwrap();
            let range = Cidr::new(addr.into(), prefix_len).map(|range| range.to_string());

            assert_eq!(range.as_deref(), expected, "{addr}/{prefix_len}");
        }
    }
}
