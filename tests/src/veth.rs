//! The lab's network: every pod is routed through one router namespace, as with a CNI that routes.
//! No bridge, so a pod may have any address; nothing is added to the namespace the tests run in.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
};

use anyhow::Context;

use crate::netns::{self, Netns};

/// What the pods know of the router: the same two addresses on every cable.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// The IPv6 address that goes with a pod's IPv4 address.
#[must_use]
pub fn v6_beside(addr: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = addr.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, high, low)
}

/// Makes the router. A packet to an address of no pod vanishes in it, as on a real network: a
/// connect that no hook translates must time out and not learn better.
pub fn create_router(router: &Netns) -> anyhow::Result<()> {
    netns::ip(&[], &format!("netns add {}\n", router.name))?;
    router.run(|| {
        for switch in [
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/net/ipv6/conf/all/forwarding",
        ] {
            fs::write(switch, "1").with_context(|| format!("set {switch}"))?;
        }
        Ok(())
    })?;
    router.ip("link set lo up\nroute add blackhole default\nroute add blackhole ::/0\n")
}

/// Makes a namespace with both addresses, cabled to the router.
pub fn create_pod(pod: &Netns, addr: Ipv4Addr, router: &Netns, cable: u32) -> anyhow::Result<()> {
    let (name, router_name, addr6) = (&pod.name, &router.name, v6_beside(addr));
    netns::ip(
        &[],
        &format!(
            "netns add {name}\n\
             link add eth0 netns {name} type veth peer name pod{cable} netns {router_name}\n"
        ),
    )?;
    router.ip(&format!(
        "link set pod{cable} up\n\
         addr add {GATEWAY}/32 dev pod{cable}\n\
         addr add {GATEWAY6}/64 dev pod{cable} nodad\n\
         route add {addr}/32 dev pod{cable}\n\
         route add {addr6}/128 dev pod{cable}\n"
    ))?;
    pod.ip(&format!(
        "link set lo up\n\
         link set eth0 up\n\
         addr add {addr}/32 dev eth0\n\
         addr add {addr6}/128 dev eth0 nodad\n\
         route add default via {GATEWAY} dev eth0 onlink\n\
         route add default via {GATEWAY6} dev eth0\n"
    ))
}
