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
