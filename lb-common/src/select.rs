//! The choice of a backend: one pure function over read-only tables. The kernel programs run it over BPF
//! maps; tests and the agent's commands run the same function over plain values.

use crate::{
    addr::{Addr, Port, Proto},
    reason::Reason,
    tables::{
        Backend, BackendIndex, Frontend, FrontendKey, Kind, List, Locality, Ring, ServiceIndex,
        Slot,
    },
};

/// Read access to the tables. `None` means that there is no such cell.
pub trait Tables {
    /// Looks up `FRONTENDS`.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// Loads one publication word of `SERVICES`, at once.
    fn ring(&self, service: ServiceIndex, list: List) -> Option<Ring>;
    /// Reads `SLOTS`.
    fn slot(&self, index: u32) -> Option<Slot>;
    /// Reads `BACKENDS`, the membership at once.
    fn backend(&self, index: BackendIndex) -> Option<Backend>;
    /// Whether a range of `SERVICE_CIDRS` holds the address.
    fn in_service_cidr(&self, addr: Addr) -> bool;
}

/// Where a flow began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A process on this node, of the host or of a pod.
    Node,
    /// Anything that reaches this node as packets from elsewhere.
    Outside,
}

/// What the client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The destination.
    pub addr: Addr,
    /// Its port.
    pub port: Port,
    /// TCP, UDP or SCTP.
    pub proto: Proto,
    /// Who asks.
    pub origin: Origin,
}

/// A backend that was chosen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Its cell.
    pub backend: BackendIndex,
    /// The cell's generation at that time.
    pub generation: u32,
}

/// What a decision needs and no table holds.
pub trait Draw {
    /// 32 random bits.
    fn random(&self) -> u32;
    /// The backend that this socket already uses for this very destination. A datagram goes where the
    /// one before it went, as a flow in conntrack does.
    fn remembered(&self) -> Option<Remembered>;
}

/// Why a client is refused. (32 bits wide, as is [`DropReason`]: a byte that shares its place with an
/// address makes the BPF target copy the address byte by byte.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RejectReason {
    /// No usable endpoint anywhere.
    NoEndpoints,
    /// The address is a ClusterIP, the port is not the Service's.
    UnownedPort,
}

/// Why a client gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DropReason {
    /// Policy Local, and no endpoint on this node.
    NoLocalEndpoint,
    /// A ClusterIP that no Service has.
    Unallocated,
    /// The tables contradict themselves. Cannot happen while the agent keeps the order of writes;
    /// counted, because then it does not.
    Stale,
}

/// A chosen backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The Service port.
    pub service: ServiceIndex,
    /// The backend's cell.
    pub index: BackendIndex,
    /// What it held.
    pub backend: Backend,
    /// Whether this is the backend that the socket already used.
    pub kept: bool,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing to do with us.
    NotAService,
    /// The client is told at once.
    Reject(RejectReason),
    /// The client is told nothing.
    Drop(DropReason),
    /// The flow goes to a backend.
    Forward(Forward),
}

impl Decision {
    /// The counter of this decision.
    #[inline(always)]
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NotAService => Reason::PassNotAService,
            Self::Reject(RejectReason::NoEndpoints) => Reason::RejectNoEndpoints,
            Self::Reject(RejectReason::UnownedPort) => Reason::RejectUnownedPort,
            Self::Drop(DropReason::NoLocalEndpoint) => Reason::DropNoLocalEndpoint,
            Self::Drop(DropReason::Unallocated) => Reason::DropUnallocated,
            Self::Drop(DropReason::Stale) => Reason::DropStale,
            Self::Forward(forward) => forward.reason(),
        }
    }
}

impl Forward {
    const fn reason(&self) -> Reason {
        if self.kept {
            return Reason::ForwardKept;
        }
        match Locality::from_cell(self.backend.locality) {
            Locality::Node => Reason::ForwardNode,
            Locality::Zone => Reason::ForwardZone,
            Locality::Other => Reason::ForwardOtherZone,
            Locality::Unknown => Reason::ForwardUnknownZone,
        }
    }
}

/// Decides one flow. Reads tables, writes nothing.
#[inline(always)]
pub fn select(tables: &impl Tables, flow: &Flow, draw: &impl Draw) -> Decision {
    let key = FrontendKey::new(flow.addr, flow.port, flow.proto);
    let Some(frontend) = tables.frontend(&key) else {
        return miss(tables, flow);
    };
    if let Some(kept) = keep(tables, frontend.service(), draw) {
        return Decision::Forward(kept);
    }
    let list = list_for(&frontend, flow.origin);
    choose(tables, frontend.service(), list, draw)
}

/// Decides a flow whose Service port and list are known.
#[inline(always)]
pub fn choose(
    tables: &impl Tables,
    service: ServiceIndex,
    list: List,
    draw: &impl Draw,
) -> Decision {
    let Some(ring) = tables.ring(service, list) else {
        return Decision::Drop(DropReason::Stale);
    };
    if ring.len == 0 {
        return on_empty(ring);
    }
    let Some(slot) = tables.slot(ring.slot(draw.random())) else {
        return Decision::Drop(DropReason::Stale);
    };
    let index = BackendIndex(slot.backend);
    match tables.backend(index) {
        Some(backend) if slot.service == service.0 && backend.service == service.0 => {
            Decision::Forward(Forward {
                service,
                index,
                backend,
                kept: false,
            })
        }
        _ => Decision::Drop(DropReason::Stale),
    }
}

/// Which list serves this client (contract §5): a ClusterIP's policy holds for everybody; the policy of
/// the other kinds only for clients outside, as a client on this node is short-circuited.
#[inline(always)]
fn list_for(frontend: &Frontend, origin: Origin) -> List {
    let applies = frontend.kind == Kind::ClusterIp as u8 || matches!(origin, Origin::Outside);
    if applies && frontend.flags & Frontend::LOCAL != 0 {
        List::Local
    } else {
        List::Cluster
    }
}

/// The backend used before, while it is the same use of the cell, still of this Service port, and still
/// serving. Lists do not matter: a draining endpoint keeps its flows.
#[inline(always)]
fn keep(tables: &impl Tables, service: ServiceIndex, draw: &impl Draw) -> Option<Forward> {
    let remembered = draw.remembered()?;
    let index = remembered.backend;
    let backend = tables.backend(index)?;
    let same =
        backend.membership.generation == remembered.generation && backend.service == service.0;
    (same && backend.is_serving()).then_some(Forward {
        service,
        index,
        backend,
        kept: true,
    })
}

/// No Service port has this destination: is the address a ClusterIP all the same?
#[inline(always)]
fn miss(tables: &impl Tables, flow: &Flow) -> Decision {
    if !tables.in_service_cidr(flow.addr) {
        return Decision::NotAService;
    }
    match tables.frontend(&FrontendKey::address(flow.addr)) {
        Some(_) => Decision::Reject(RejectReason::UnownedPort),
        None => Decision::Drop(DropReason::Unallocated),
    }
}

#[inline(always)]
fn on_empty(ring: Ring) -> Decision {
    match ring.on_empty {
        Ring::REJECT => Decision::Reject(RejectReason::NoEndpoints),
        Ring::DROP => Decision::Drop(DropReason::NoLocalEndpoint),
        _ => Decision::Drop(DropReason::Stale),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, vec::Vec};

    use bytemuck::Zeroable;

    use super::*;
    use crate::tables::Membership;

    const VIP: Addr = Addr::v4([10, 96, 0, 10]);
    const OUTER: Addr = Addr::v4([192, 0, 2, 10]);
    const SERVICE: ServiceIndex = ServiceIndex(0);

    /// One Service: two backends in the cluster list, the second also in the local one.
    struct Plain {
        frontends: BTreeMap<FrontendKey, Frontend>,
        cluster: Ring,
        local: Ring,
        slots: [Slot; 3],
        backends: [Backend; 2],
    }

    impl Plain {
        fn new(kind: Kind, local: bool) -> Self {
            let backend = |last, locality: Locality| Backend {
                addr: Addr::v4([10, 1, 0, last]),
                port: 8080,
                locality: locality as u8,
                membership: Membership {
                    lists: Membership::SERVING,
                    generation: 7,
                },
                ..Backend::zeroed()
            };
            let ring = |base, len| Ring {
                base,
                len,
                on_empty: Ring::REJECT,
                ..Ring::zeroed()
            };
            let slot = |backend| Slot {
                backend,
                service: SERVICE.0,
            };
            let addr = if kind == Kind::ClusterIp { VIP } else { OUTER };
            let frontend = Frontend::new(SERVICE, kind, local);
            Self {
                frontends: [
                    (FrontendKey::new(addr, Port(80), Proto::TCP), frontend),
                    (FrontendKey::address(VIP), frontend),
                ]
                .into(),
                cluster: ring(0, 2),
                local: ring(2, 1),
                slots: [slot(0), slot(1), slot(1)],
                backends: [backend(1, Locality::Other), backend(2, Locality::Node)],
            }
        }

        fn empty(on_empty: u8) -> Self {
            let ring = Ring {
                on_empty,
                ..Ring::zeroed()
            };
            Self {
                cluster: ring,
                local: ring,
                ..Self::new(Kind::ClusterIp, false)
            }
        }

        /// The reasons that a client can meet, over all draws.
        fn reasons(&self, addr: Addr, port: u16, origin: Origin) -> Vec<&'static str> {
            let flow = Flow {
                addr,
                port: Port(port),
                proto: Proto::TCP,
                origin,
            };
            let draws = [0, u32::MAX].map(|random| With {
                random,
                remembered: None,
            });
            draws
                .map(|draw| select(self, &flow, &draw).reason().name())
                .into()
        }
    }

    impl Tables for Plain {
        fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
            self.frontends.get(key).copied()
        }

        fn ring(&self, service: ServiceIndex, list: List) -> Option<Ring> {
            (service == SERVICE).then_some(match list {
                List::Cluster => self.cluster,
                List::Local => self.local,
            })
        }

        fn slot(&self, index: u32) -> Option<Slot> {
            self.slots.get(index as usize).copied()
        }

        fn backend(&self, index: BackendIndex) -> Option<Backend> {
            self.backends.get(index.0 as usize).copied()
        }

        fn in_service_cidr(&self, addr: Addr) -> bool {
            addr.bytes[..14] == VIP.bytes[..14]
        }
    }

    struct With {
        random: u32,
        remembered: Option<Remembered>,
    }

    impl Draw for With {
        fn random(&self) -> u32 {
            self.random
        }

        fn remembered(&self) -> Option<Remembered> {
            self.remembered
        }
    }

    #[test]
    fn a_cluster_ips_policy_holds_for_everybody() {
        let tables = Plain::new(Kind::ClusterIp, true);

        for origin in [Origin::Node, Origin::Outside] {
            assert_eq!(
                tables.reasons(VIP, 80, origin),
                ["forward-node", "forward-node"]
            );
        }
    }

    #[test]
    fn an_external_policy_binds_clients_outside_only() {
        let tables = Plain::new(Kind::LoadBalancer, true);

        let outside = tables.reasons(OUTER, 80, Origin::Outside);
        assert_eq!(outside, ["forward-node", "forward-node"]);
        let node = tables.reasons(OUTER, 80, Origin::Node);
        assert_eq!(node, ["forward-other-zone", "forward-node"]);
    }

    #[test]
    fn an_empty_list_answers_as_its_ring_says() {
        for (on_empty, reason) in [
            (Ring::REJECT, "reject-no-endpoints"),
            (Ring::DROP, "drop-no-local-endpoint"),
            (Ring::UNUSED, "drop-stale"),
        ] {
            let reasons = Plain::empty(on_empty).reasons(VIP, 80, Origin::Node);
            assert_eq!(reasons, [reason; 2]);
        }
    }

    #[test]
    fn a_service_address_refuses_other_ports_and_an_unused_one_is_dropped() {
        let tables = Plain::new(Kind::ClusterIp, false);

        let reason = |addr, port| tables.reasons(addr, port, Origin::Node)[0];
        assert_eq!(reason(VIP, 81), "reject-unowned-port");
        assert_eq!(reason(Addr::v4([10, 96, 0, 99]), 80), "drop-unallocated");
        assert_eq!(reason(OUTER, 80), "pass-not-a-service");
    }

    #[test]
    fn a_slot_of_another_service_is_never_followed() {
        let mut tables = Plain::new(Kind::ClusterIp, false);
        tables.slots[0].service = 1;
        tables.backends[1].service = 1;

        assert_eq!(tables.reasons(VIP, 80, Origin::Node), ["drop-stale"; 2]);
    }

    #[test]
    fn a_remembered_backend_is_kept_while_it_is_the_same_and_serves() {
        let flow = Flow {
            addr: VIP,
            port: Port(80),
            proto: Proto::TCP,
            origin: Origin::Node,
        };
        let reason = |tables: &Plain, generation| {
            let remembered = Some(Remembered {
                backend: BackendIndex(0),
                generation,
            });
            select(
                tables,
                &flow,
                &With {
                    random: u32::MAX,
                    remembered,
                },
            )
            .reason()
            .name()
        };
        let mut tables = Plain::new(Kind::ClusterIp, false);

        assert_eq!(reason(&tables, 7), "forward-kept");
        assert_eq!(
            reason(&tables, 6),
            "forward-node",
            "the cell is another backend's by now"
        );
        tables.backends[0].membership.lists = Membership::CLUSTER;
        assert_eq!(
            reason(&tables, 7),
            "forward-node",
            "it does not serve any more"
        );
    }
}
