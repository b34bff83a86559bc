//! The choice of a backend: one pure function over read-only tables. The kernel programs run it over BPF
//! maps; tests and the agent's commands run the same function over plain values.

use crate::{
    addr::{Addr, Port, Proto},
    reason::Reason,
    tables::{
        Affinity, AffinityKey, Backend, BackendIndex, Client, Frontend, FrontendKey, Kind, List,
        Locality, Ring, ServiceIndex, Slot,
    },
};

/// Read access to the tables. `None` means that there is no such cell.
pub trait Tables {
    /// Looks up `FRONTENDS`.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// Loads one publication word of `SERVICES`, at once.
    fn ring(&self, service: ServiceIndex, list: List) -> Option<Ring>;
    /// Reads the affinity time-out of a cell of `SERVICES`, in seconds; 0: no affinity.
    fn affinity_secs(&self, service: ServiceIndex) -> u32;
    /// Looks up `AFFINITY`.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
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
    /// Who asks. Only asked where the Service has affinity.
    fn client(&self) -> Client;
    /// Nanoseconds since boot. Only asked where the Service has affinity.
    fn now_nanos(&self) -> u64;
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

/// How a backend was come by, and so what the hook is to write to `AFFINITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Found {
    /// Drawn from the list. Nothing to write.
    Drawn,
    /// The one this socket already used. Nothing to write: affinity counts new flows.
    BySocket,
    /// The one this client was given before. The time of use is to be written.
    ByClient,
    /// Drawn for a client without an entry: one is to be made.
    ForNewClient,
    /// Drawn for a client whose entry counts no more: it is to be replaced.
    ForKnownClient,
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
    /// The list that was asked for.
    pub list: List,
    /// How it was come by.
    pub found: Found,
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
    /// The counter of this choice.
    #[inline(always)]
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self.found {
            Found::BySocket => return Reason::ForwardKept,
            Found::ByClient => return Reason::ForwardAffine,
            Found::Drawn | Found::ForNewClient | Found::ForKnownClient => {}
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
    let list = list_for(&frontend, flow.origin);
    if let Some(kept) = keep(tables, frontend.service(), list, draw) {
        return Decision::Forward(kept);
    }
    match tables.affinity_secs(frontend.service()) {
        0 => choose(tables, frontend.service(), list, draw),
        secs => choose_for_client(tables, frontend.service(), list, secs, draw),
    }
}

/// Decides a flow of a Service port with session affinity (contract §9): the client's earlier backend
/// while that is in the very list asked for, else one from the list.
#[inline(always)]
pub fn choose_for_client(
    tables: &impl Tables,
    service: ServiceIndex,
    list: List,
    secs: u32,
    draw: &impl Draw,
) -> Decision {
    let known = tables.affinity(&AffinityKey::new(draw.client(), service));
    if let Some(known) = known
        && !known.has_expired(secs, draw.now_nanos())
        && let Some(again) = again(tables, service, list, known)
    {
        return Decision::Forward(again);
    }
    let mut decision = choose(tables, service, list, draw);
    if let Decision::Forward(forward) = &mut decision {
        forward.found = match known {
            Some(_) => Found::ForKnownClient,
            None => Found::ForNewClient,
        };
    }
    decision
}

/// The backend that a client was given before, if new flows of this list may still go there.
#[inline(always)]
fn again(
    tables: &impl Tables,
    service: ServiceIndex,
    list: List,
    known: Affinity,
) -> Option<Forward> {
    let index = BackendIndex(known.backend);
    let backend = tables.backend(index)?;
    let same = backend.membership.generation == known.generation && backend.service == service.0;
    (same && backend.is_in(list)).then_some(Forward {
        service,
        index,
        backend,
        list,
        found: Found::ByClient,
    })
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
                list,
                found: Found::Drawn,
            })
        }
        _ => Decision::Drop(DropReason::Stale),
    }
}

/// Which list serves this client (contract §5): a ClusterIP's policy holds for everybody; the policy of
/// the other kinds only for clients outside, as a client on this node is short-circuited.
#[inline(always)]
#[must_use]
pub fn list_for(frontend: &Frontend, origin: Origin) -> List {
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
fn keep(
    tables: &impl Tables,
    service: ServiceIndex,
    list: List,
    draw: &impl Draw,
) -> Option<Forward> {
    let remembered = draw.remembered()?;
    let index = remembered.backend;
    let backend = tables.backend(index)?;
    let same =
        backend.membership.generation == remembered.generation && backend.service == service.0;
    (same && backend.is_serving()).then_some(Forward {
        service,
        index,
        backend,
        list,
        found: Found::BySocket,
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
        affinity_secs: u32,
        affinity: BTreeMap<u64, Affinity>,
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
                affinity_secs: 0,
                affinity: BTreeMap::new(),
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
            let draws = [0, u32::MAX].map(With::random);
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

        fn affinity_secs(&self, _service: ServiceIndex) -> u32 {
            self.affinity_secs
        }

        fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
            assert_eq!(key.service, SERVICE.0);
            self.affinity.get(&key.netns_cookie).copied()
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
        client: Client,
        now_secs: u64,
    }

    impl With {
        fn random(random: u32) -> Self {
            Self {
                random,
                remembered: None,
                client: Client(0),
                now_secs: 0,
            }
        }
    }

    impl Draw for With {
        fn random(&self) -> u32 {
            self.random
        }

        fn remembered(&self) -> Option<Remembered> {
            self.remembered
        }

        fn client(&self) -> Client {
            self.client
        }

        fn now_nanos(&self) -> u64 {
            self.now_secs * 1_000_000_000
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
                    remembered,
                    ..With::random(u32::MAX)
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

    /// Two backends, the first of which was given to client 1 at second 100.
    fn sticky(kind: Kind, local: bool) -> Plain {
        let backends = Plain::new(kind, local).backends.map(|mut backend| {
            backend.membership.lists |= Membership::CLUSTER;
            backend
        });
        Plain {
            backends,
            affinity_secs: 30,
            affinity: [(
                1,
                Affinity {
                    backend: 0,
                    generation: 7,
                    used_nanos: 100_000_000_000,
                },
            )]
            .into(),
            ..Plain::new(kind, local)
        }
    }

    /// How the last slot's draw ends for this client.
    fn found(tables: &Plain, client: u64, now_secs: u64) -> (Found, u32) {
        let flow = Flow {
            addr: VIP,
            port: Port(80),
            proto: Proto::TCP,
            origin: Origin::Node,
        };
        let draw = With {
            client: Client(client),
            now_secs,
            ..With::random(u32::MAX)
        };
        let decision = select(tables, &flow, &draw);
        let Decision::Forward(forward) = decision else {
            panic!("{decision:?}");
        };
        (forward.found, forward.index.0)
    }

    #[test]
    fn a_client_goes_where_it_went_until_the_second_it_expires() {
        let tables = sticky(Kind::ClusterIp, false);

        assert_eq!(found(&tables, 1, 129), (Found::ByClient, 0));
        assert_eq!(found(&tables, 1, 130), (Found::ForKnownClient, 1));
        assert_eq!(found(&tables, 2, 129), (Found::ForNewClient, 1));
    }

    #[test]
    fn affinity_counts_from_the_time_out_that_holds_now() {
        let mut tables = sticky(Kind::ClusterIp, false);

        tables.affinity_secs = 0;
        assert_eq!(found(&tables, 1, 101), (Found::Drawn, 1));
        tables.affinity_secs = 1;
        assert_eq!(found(&tables, 1, 101), (Found::ForKnownClient, 1));
        tables.affinity_secs = 2;
        assert_eq!(found(&tables, 1, 101), (Found::ByClient, 0));
    }

    #[test]
    fn a_backend_that_left_the_list_asked_for_is_replaced() {
        let left = |change: fn(&mut Plain)| {
            let mut tables = sticky(Kind::ClusterIp, false);
            change(&mut tables);
            found(&tables, 1, 101)
        };
        let replaced = (Found::ForKnownClient, 1);

        let draining =
            |tables: &mut Plain| tables.backends[0].membership.lists = Membership::SERVING;
        assert_eq!(left(draining), replaced);
        let reused = |tables: &mut Plain| tables.backends[0].membership.generation = 8;
        assert_eq!(left(reused), replaced);
        let anothers = |tables: &mut Plain| tables.backends[0].service = 1;
        assert_eq!(left(anothers), replaced);
        assert_eq!(
            found(&sticky(Kind::ClusterIp, true), 1, 101),
            replaced,
            "it is in the cluster list, and the policy asks for the local one"
        );
    }

    #[test]
    fn clients_are_spread_by_their_hash() {
        const CLIENTS: u64 = 30_000;
        let mut share = [0_u64; 3];
        for client in 0..CLIENTS {
            let ring = Ring {
                len: 3,
                ..Ring::zeroed()
            };
            share[ring.slot(Client(client).hash()) as usize] += 1;
        }

        let fair = CLIENTS / 3;
        let unfair = share.iter().find(|share| share.abs_diff(fair) > fair / 20);
        assert_eq!(unfair, None, "{share:?}");
    }
}
