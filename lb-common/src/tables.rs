//! Map keys and values, map names and capacities. Design rules are in the crate's documentation; the
//! order of writes that keeps readers whole is in `lb-agent/src/tables/diff.rs`.

use core::{fmt, ops::AddAssign};

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, Port, Proto},
    select::Remembered,
    text::Text,
};

/// The layout of all maps together. A set of maps lies in a folder named after it, so that a version that
/// has another layout does not read them.
pub const SCHEMA: u32 = if cfg!(feature = "next-layout") { 2 } else { 1 };

/// Asserts a cell's size where the cell is declared.
macro_rules! assert_size {
    ($cell:ty, $bytes:literal) => {
        const _: () = assert!(size_of::<$cell>() == $bytes);
    };
}

/// Names of the maps: the statics in lb-ebpf's `maps.rs`, the pins, and what `bpftool` shows.
pub mod names {
    /// See [`super::FrontendKey`].
    pub const FRONTENDS: &str = "FRONTENDS";
    /// See [`super::Service`].
    pub const SERVICES: &str = "SERVICES";
    /// See [`super::Slot`].
    pub const SLOTS: &str = "SLOTS";
    /// See [`super::Backend`].
    pub const BACKENDS: &str = "BACKENDS";
    /// See [`super::Stats`].
    pub const BACKEND_STATS: &str = "BACKEND_STATS";
    /// See [`super::Stats`].
    pub const SERVICE_STATS: &str = "SERVICE_STATS";
    /// See [`super::Name`].
    pub const NAMES: &str = "NAMES";
    /// See [`super::ZoneName`].
    pub const ZONES: &str = "ZONES";
    /// See [`super::ServiceCidr`].
    pub const SERVICE_CIDRS: &str = "SERVICE_CIDRS";
    /// See [`super::AffinityKey`] and [`super::Affinity`].
    pub const AFFINITY: &str = "AFFINITY";
    /// See [`crate::flow::FlowKey`] and [`crate::flow::Half`].
    pub const FLOWS: &str = "FLOWS";
    /// See [`crate::flow::FLOW_HINTS_MAX`].
    pub const FLOW_HINTS: &str = "FLOW_HINTS";
    /// See [`crate::flow::YOUNG_MAX`].
    pub const YOUNG: &str = "YOUNG";
    /// See [`crate::flow::YOUNG_MAX`].
    pub const YOUNG_NEXT: &str = "YOUNG_NEXT";
    /// See [`crate::flow::FragmentKey`] and [`crate::flow::FragmentPorts`].
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// See [`crate::flow::Node`].
    pub const NODE: &str = "NODE";
    /// See [`super::ServiceCidr`].
    pub const POD_CIDRS: &str = "POD_CIDRS";
    /// See [`crate::flow::interface`].
    pub const INTERFACES: &str = "INTERFACES";
    /// See [`crate::flow::Call`].
    pub const CALLS: &str = "CALLS";
    /// See [`super::Socket`].
    pub const SOCKETS: &str = "SOCKETS";
    /// See [`crate::reason::Reason`].
    pub const COUNTERS: &str = "COUNTERS";
    /// See [`super::Status`].
    pub const STATUS: &str = "STATUS";
    /// All of them, in the order of the documentation.
    pub const ALL: [&str; 22] = [
        FRONTENDS,
        SERVICES,
        SLOTS,
        BACKENDS,
        BACKEND_STATS,
        SERVICE_STATS,
        NAMES,
        ZONES,
        SERVICE_CIDRS,
        AFFINITY,
        FLOWS,
        FLOW_HINTS,
        YOUNG,
        YOUNG_NEXT,
        FRAGMENTS,
        NODE,
        POD_CIDRS,
        INTERFACES,
        CALLS,
        SOCKETS,
        COUNTERS,
        STATUS,
    ];
}

/// Entries of `FRONTENDS`. Not preallocated: an unused entry costs one hash bucket (16 bytes). When
/// full, the Services that no longer fit are left out and reported; the others are served.
pub const FRONTENDS_MAX: u32 = 1 << 20;

/// The least number of cells of an array: small enough for a dump, which prints every empty cell.
pub const CELLS_MIN: u32 = 256;

/// Cells of `ZONES`: ids are 16 bits and id 0 means "unknown".
pub const ZONES_MAX: u32 = 256;

/// Ranges of one family in `SERVICE_CIDRS`. Further ranges are reported and not held.
pub const SERVICE_CIDRS_PER_FAMILY: u32 = 4;

/// Cells of `SERVICE_CIDRS`: IPv4 from 0, IPv6 from [`SERVICE_CIDRS_PER_FAMILY`].
pub const SERVICE_CIDRS_MAX: u32 = 2 * SERVICE_CIDRS_PER_FAMILY;

/// Entries of `AFFINITY`: clients of this node, each with a Service port it uses. Not preallocated. When
/// full, a client that has no entry is given a backend by a hash of itself, and counted.
pub const AFFINITY_MAX: u32 = 1 << 16;

/// Backends in one list: `Ring::len` is 16 bits. A Service port that wants more is left as it was, and
/// reported.
pub const RING_LEN_MAX: usize = u16::MAX as usize;

/// Peers one socket remembers. A fifth Service on one unconnected UDP socket replaces the oldest, and
/// is counted.
pub const PEERS_MAX: usize = 4;

/// The number by which everything about one Service port of one family is found. Given out by the
/// agent; not reused before a grace period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceIndex(pub u32);

/// A cell of `BACKENDS`. Given out by the agent; reused after a grace period with another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendIndex(pub u32);

/// A cell of `ZONES`. 0: the zone is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZoneId(pub u16);

/// What kind of address a frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// `spec.clusterIPs`.
    ClusterIp = 1,
    /// A `nodePort` at this node's addresses.
    NodePort = 2,
    /// `status.loadBalancer.ingress` with ipMode VIP.
    LoadBalancer = 3,
    /// `spec.externalIPs`.
    ExternalIp = 4,
}

impl Kind {
    /// From the number in a cell; `None` for what this schema does not define.
    #[must_use]
    pub const fn from_cell(kind: u8) -> Option<Self> {
        match kind {
            1 => Some(Self::ClusterIp),
            2 => Some(Self::NodePort),
            3 => Some(Self::LoadBalancer),
            4 => Some(Self::ExternalIp),
            _ => None,
        }
    }
}

/// Key of `FRONTENDS` (hash): an address, port and protocol that clients use.
///
/// Port 0 with [`Proto::ANY`] marks a ClusterIP itself: the address is a Service's, a port that has no
/// entry of its own is not. Writer: agent. Readers: all hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FrontendKey {
    /// What the client asks for.
    pub addr: Addr,
    /// Host order.
    pub port: u16,
    /// `IPPROTO_*`.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

assert_size!(FrontendKey, 20);

impl FrontendKey {
    /// The key of a Service port at an address.
    #[inline(always)]
    #[must_use]
    pub const fn new(addr: Addr, port: Port, proto: Proto) -> Self {
        Self {
            addr,
            port: port.0,
            proto: proto.0,
            pad: 0,
        }
    }

    /// The key that marks the address itself.
    #[inline(always)]
    #[must_use]
    pub const fn address(addr: Addr) -> Self {
        Self::new(addr, Port(0), Proto::ANY)
    }

    /// Whether this key marks an address and is no Service port.
    #[must_use]
    pub const fn is_address(&self) -> bool {
        self.port == 0 && self.proto == Proto::ANY.0
    }
}

/// Value of `FRONTENDS`. Replaced as a whole, which the kernel does atomically.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct Frontend {
    /// Index into `SERVICES` and `NAMES`. Of an address mark: the lowest of the Service's ports.
    pub service: u32,
    /// [`Kind`].
    pub kind: u8,
    /// [`Frontend::LOCAL`].
    pub flags: u8,
    /// Zero.
    pub pad: u16,
}

assert_size!(Frontend, 8);

impl Frontend {
    /// Flag: the traffic policy of this kind of address is `Local`. It holds for everybody at a
    /// ClusterIP, and for clients outside the node at the other kinds.
    pub const LOCAL: u8 = 1;

    /// A frontend of `service`.
    #[must_use]
    pub const fn new(service: ServiceIndex, kind: Kind, local: bool) -> Self {
        let flags = if local { Self::LOCAL } else { 0 };
        Self {
            service: service.0,
            kind: kind as u8,
            flags,
            pad: 0,
        }
    }

    /// Index into `SERVICES`.
    #[inline(always)]
    #[must_use]
    pub const fn service(&self) -> ServiceIndex {
        ServiceIndex(self.service)
    }
}

/// The publication word: one list of backends, how to choose among them, and the answer when there is
/// none. The agent stores it and the kernel loads it as one aligned 64-bit word, so a reader has wholly
/// the old or wholly the new list.
///
/// All zeros means that the Service port never uses this list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Ring {
    /// First cell in `SLOTS`.
    pub base: u32,
    /// Number of cells.
    pub len: u16,
    /// [`Ring::RANDOM`].
    pub algorithm: u8,
    /// [`Ring::UNUSED`], [`Ring::REJECT`] or [`Ring::DROP`].
    pub on_empty: u8,
}

assert_size!(Ring, 8);

impl Ring {
    /// Algorithm: a uniformly random slot.
    pub const RANDOM: u8 = 0;
    /// On empty: the Service port never asks for this list.
    pub const UNUSED: u8 = 0;
    /// On empty: refuse, as there is no endpoint anywhere.
    pub const REJECT: u8 = 1;
    /// On empty: drop, as endpoints exist and the policy allows none of them here.
    pub const DROP: u8 = 2;

    /// The ring as it was published.
    #[inline(always)]
    #[must_use]
    pub fn from_word(word: u64) -> Self {
        bytemuck::cast(word)
    }

    /// The word to publish.
    #[must_use]
    pub fn word(self) -> u64 {
        bytemuck::cast(self)
    }

    /// The slot that a 32-bit random number stands for: multiply and shift, since a division costs
    /// more and a remainder favours low slots. Meaningless for an empty ring.
    #[inline(always)]
    #[must_use]
    pub fn slot(self, random: u32) -> u32 {
        let offset = ((u64::from(random) * u64::from(self.len)) >> 32) as u32;
        self.base.wrapping_add(offset)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answer = match self.on_empty {
            Self::UNUSED => "unused",
            Self::REJECT => "reject",
            Self::DROP => "drop",
            _ => "?",
        };
        write!(f, "{}+{} {answer}", self.base, self.len)
    }
}

/// Cell of `SERVICES` (array, mmap), by [`ServiceIndex`]. Writer: agent, word by word. Readers: all
/// hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Service {
    /// The list for traffic policy `Cluster`.
    pub cluster: Ring,
    /// The list for traffic policy `Local`.
    pub local: Ring,
    /// `sessionAffinityConfig.clientIP.timeoutSeconds`; 0: no affinity.
    pub affinity_secs: u32,
    /// [`Service::INTERNAL_LOCAL`], [`Service::EXTERNAL_LOCAL`], and [`Hints`] for people.
    pub flags: u32,
    /// What makes the tests' other layout another.
    #[cfg(feature = "next-layout")]
    pub(crate) reserved: u64,
}

#[cfg(not(feature = "next-layout"))]
assert_size!(Service, 24);

impl Service {
    /// Flag: `internalTrafficPolicy: Local`.
    pub const INTERNAL_LOCAL: u32 = 1;
    /// Flag: `externalTrafficPolicy: Local`, and the Service has an external address.
    pub const EXTERNAL_LOCAL: u32 = 2;
    /// The flags that say which list answers.
    pub const POLICIES: u32 = Self::INTERNAL_LOCAL | Self::EXTERNAL_LOCAL;

    /// The ring of a list.
    #[must_use]
    pub const fn ring(&self, list: List) -> Ring {
        match list {
            List::Cluster => self.cluster,
            List::Local => self.local,
        }
    }
}

/// What became of topology hints at a Service port: the second byte of [`Service::flags`]. For people,
/// who ask why traffic crosses zones; no program reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Hints {
    /// Nobody asked for any, and there are none.
    None = 0,
    /// Followed: what is hinted for this node.
    Node = 1,
    /// Followed: what is hinted for this zone.
    Zone = 2,
    /// Ignored: this node has no zone.
    NodeHasNoZone = 3,
    /// Ignored: a ready endpoint has no zone hint, and others have.
    EndpointUnhinted = 4,
    /// Ignored: no ready endpoint is hinted for this zone.
    ZoneUncovered = 5,
    /// Ignored: a ready endpoint has no node hint, and others have.
    EndpointUnhintedNode = 6,
    /// Ignored: no ready endpoint is hinted for this node.
    NodeUncovered = 7,
    /// Asked for and not given: a ready endpoint has no zone.
    EndpointHasNoZone = 8,
    /// Asked for by `topology-mode: Auto` and not given: too few endpoints, or too unevenly spread.
    Uneven = 9,
    /// Asked for and not given.
    NotGiven = 10,
}

impl Hints {
    /// All of them, by number.
    pub const ALL: [Self; 11] = [
        Self::None,
        Self::Node,
        Self::Zone,
        Self::NodeHasNoZone,
        Self::EndpointUnhinted,
        Self::ZoneUncovered,
        Self::EndpointUnhintedNode,
        Self::NodeUncovered,
        Self::EndpointHasNoZone,
        Self::Uneven,
        Self::NotGiven,
    ];

    /// As a part of [`Service::flags`].
    #[must_use]
    pub const fn as_flags(self) -> u32 {
        u32::from_le_bytes([0, self as u8, 0, 0])
    }

    /// From [`Service::flags`]; `None` for a number that only another version knows.
    #[must_use]
    pub fn of(flags: u32) -> Option<Self> {
        let [_, number, ..] = flags.to_le_bytes();
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// The two lists of a Service port (contract §4). 32 bits wide, as `select`'s reasons are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum List {
    /// For traffic policy `Cluster`, and for clients on this node at external addresses.
    Cluster,
    /// For traffic policy `Local`: endpoints on this node.
    Local,
}

impl List {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Local];
}

/// Cell of `SLOTS` (array, mmap): one place in a ring. Writer: agent, only while no ring covers the
/// cell. Readers: all hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Slot {
    /// Index into `BACKENDS`.
    pub backend: u32,
    /// The [`ServiceIndex`] that this slot belongs to.
    pub service: u32,
}

assert_size!(Slot, 8);

/// Where a backend is, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Locality {
    /// The endpoint, or this node, has no zone.
    Unknown = 0,
    /// On this node.
    Node = 1,
    /// On another node of this node's zone.
    Zone = 2,
    /// In another zone: this traffic is what clouds bill.
    Other = 3,
}

impl Locality {
    /// From the number in a cell.
    #[inline(always)]
    #[must_use]
    pub const fn from_cell(locality: u8) -> Self {
        match locality {
            1 => Self::Node,
            2 => Self::Zone,
            3 => Self::Other,
            _ => Self::Unknown,
        }
    }
}

/// In which lists a backend is, and which use of the cell this is: the one word of a live backend cell
/// that changes, stored and loaded as 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Membership {
    /// [`Membership::CLUSTER`] | [`Membership::LOCAL`] | [`Membership::SERVING`]; 0: the cell is free.
    pub lists: u32,
    /// Counts the uses of this cell. A socket's memory holds only while it is equal.
    pub generation: u32,
}

assert_size!(Membership, 8);

impl Membership {
    /// In the cluster list.
    pub const CLUSTER: u32 = 1;
    /// In the local list.
    pub const LOCAL: u32 = 2;
    /// Ready or serving: established flows may stay, whatever lists it is in.
    pub const SERVING: u32 = 4;

    /// Bits of a generation that count the uses; those above say which set of maps began the count.
    const USES: u32 = 0x00ff_ffff;

    /// The generation that cells begin with in the set of maps of this number. What a socket remembers of
    /// a cell in another set is then never taken for a use of the cell of that index in this one.
    #[must_use]
    pub const fn first_generation(set: u32) -> u32 {
        set << Self::USES.count_ones()
    }

    /// The generation of the cell's next use.
    #[must_use]
    pub const fn next_generation(generation: u32) -> u32 {
        (generation & !Self::USES) | (generation.wrapping_add(1) & Self::USES)
    }

    /// The word to store.
    #[must_use]
    pub fn word(self) -> u64 {
        bytemuck::cast(self)
    }
}

/// Cell of `BACKENDS` (array, mmap), by [`BackendIndex`]: one endpoint of one Service port. Writer:
/// agent, while the membership is 0; later only the membership word. Readers: all hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Backend {
    /// The endpoint's address.
    pub addr: Addr,
    /// The owning [`ServiceIndex`].
    pub service: u32,
    /// Host order.
    pub port: u16,
    /// The endpoint's [`ZoneId`].
    pub zone: u16,
    /// `IPPROTO_*`.
    pub proto: u8,
    /// [`Locality`].
    pub locality: u8,
    /// Zero.
    pub pad: [u8; 6],
    /// Which lists it is in.
    pub membership: Membership,
}

assert_size!(Backend, 40);

impl Backend {
    /// Whether new flows of this list may go to the endpoint.
    #[inline(always)]
    #[must_use]
    pub const fn is_in(&self, list: List) -> bool {
        let bit = match list {
            List::Cluster => Membership::CLUSTER,
            List::Local => Membership::LOCAL,
        };
        self.membership.lists & bit != 0
    }

    /// Whether the endpoint may keep flows it has.
    #[inline(always)]
    #[must_use]
    pub const fn is_serving(&self) -> bool {
        self.membership.lists & Membership::SERVING != 0
    }
}

/// Cell of `BACKEND_STATS` (array, mmap), by [`BackendIndex`]: what clients on this node did with one
/// backend. Writers: connect, sendmsg, sock_ops and sock_release, by atomic adds, as long as the cell in
/// `BACKENDS` is live and of the generation that the socket was given; agent, zeros, when it fills that
/// cell. Reader: agent.
///
/// Cell of `SERVICE_STATS` (array, mmap), by [`ServiceIndex`]: what those backends counted that the Service
/// port no longer has, so that its sums never fall. Writer and reader: agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Stats {
    /// TCP connections begun, and UDP sockets that were given the backend.
    pub connections: u64,
    /// Of those, the TCP connections that ended before they were established.
    pub failures: u64,
    /// Of those, the ones that have not ended.
    pub active: u64,
    /// Bytes that the backend acknowledged, of TCP connections that have ended.
    pub bytes_out: u64,
    /// Bytes received from the backend, of TCP connections that have ended.
    pub bytes_in: u64,
}

assert_size!(Stats, 40);

impl AddAssign for Stats {
    fn add_assign(&mut self, more: Self) {
        self.connections = self.connections.wrapping_add(more.connections);
        self.failures = self.failures.wrapping_add(more.failures);
        self.active = self.active.wrapping_add(more.active);
        self.bytes_out = self.bytes_out.wrapping_add(more.bytes_out);
        self.bytes_in = self.bytes_in.wrapping_add(more.bytes_in);
    }
}

/// Cell of `NAMES` (array, mmap), by [`ServiceIndex`]: whose cells these are. Writer and reader: agent,
/// and people. The kernel never reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Name {
    /// `namespace/name:port`, or `namespace/name` of an unnamed port, each part of at most 63
    /// characters; empty: the index is free.
    pub text: Text<192>,
    /// `IPPROTO_*`.
    pub proto: u8,
    /// 4 or 6.
    pub family: u8,
    /// Zero.
    pub pad: [u8; 6],
}

assert_size!(Name, 200);

/// Cell of `ZONES` (array, mmap), by [`ZoneId`]: the zone's label, at most 63 characters. Writer and
/// reader: agent, and people. The kernel never reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct ZoneName {
    /// `topology.kubernetes.io/zone`; empty: the id is free.
    pub text: Text<64>,
}

assert_size!(ZoneName, 64);

/// Cell of `SERVICE_CIDRS` (array, mmap): one range the cluster takes its ClusterIPs from, from
/// ServiceCIDR objects. Filled from the front of each family's part; an unused cell ends it. Writer:
/// agent. Readers: all hooks, on the miss path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct ServiceCidr {
    /// The first address.
    pub addr: Addr,
    /// Ones where `addr` counts, as an address (`/112` ends in two zero bytes).
    pub mask: Addr,
    /// 1 if the cell holds a range. Set last, cleared first.
    pub used: u64,
}

assert_size!(ServiceCidr, 40);

impl ServiceCidr {
    /// Whether the range holds this address.
    #[inline(always)]
    #[must_use]
    pub fn contains(&self, addr: Addr) -> bool {
        let (want, mask, have) = (self.addr.words(), self.mask.words(), addr.words());
        (have[0] & mask[0]) == want[0]
            && (have[1] & mask[1]) == want[1]
            && (have[2] & mask[2]) == want[2]
            && (have[3] & mask[3]) == want[3]
    }
}

/// A client, as session affinity tells clients apart: by its network namespace's cookie. A connect has
/// no source address yet, and the processes of one pod, or of the host, share a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client(pub u64);

impl Client {
    /// A client of which only the address is known. Never a cookie: those are counted from one.
    #[inline(always)]
    #[must_use]
    pub fn of_addr(addr: Addr) -> Self {
        let [a, b, c, d] = addr.words();
        let odd = 0x9e37_79b9_7f4a_7c15;
        let high = (u64::from(a) << 32 | u64::from(b)).wrapping_mul(odd);
        let low = u64::from(c) << 32 | u64::from(d);
        Self((high ^ low) | 1 << 63)
    }

    /// 32 bits that are as good as random among clients, and the same for one client each time.
    #[inline(always)]
    #[must_use]
    pub const fn hash(self) -> u32 {
        let odd = 0x9e37_79b9_7f4a_7c15;
        let mixed = self.0.wrapping_mul(odd);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(odd);
        (mixed >> 32) as u32
    }
}

/// Key of `AFFINITY` (hash): one client of one Service port of one family. Writers: connect and sendmsg.
/// The agent sweeps entries that count no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AffinityKey {
    /// The client: a network namespace's cookie.
    pub netns_cookie: u64,
    /// Index into `SERVICES`.
    pub service: u32,
    /// Zero.
    pub pad: u32,
}

assert_size!(AffinityKey, 16);

impl AffinityKey {
    /// The key of a client at a Service port.
    #[inline(always)]
    #[must_use]
    pub const fn new(client: Client, service: ServiceIndex) -> Self {
        Self {
            netns_cookie: client.0,
            service: service.0,
            pad: 0,
        }
    }
}

/// Value of `AFFINITY`: the backend that a client was given. It counts while it has not expired, and
/// while the backend's cell says that it is the same, and in the list asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Affinity {
    /// Index into `BACKENDS`.
    pub backend: u32,
    /// The generation of that cell.
    pub generation: u32,
    /// The client's last new flow, nanoseconds since boot.
    pub used_nanos: u64,
}

assert_size!(Affinity, 16);

impl Affinity {
    /// Whether no new flow came for `timeout_secs`.
    #[inline(always)]
    #[must_use]
    pub const fn has_expired(&self, timeout_secs: u32, now_nanos: u64) -> bool {
        now_nanos.saturating_sub(self.used_nanos) >= timeout_secs as u64 * 1_000_000_000
    }
}

/// One Service a socket talks to, and the backend that was chosen for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Peer {
    /// What the application asked for.
    pub service_addr: Addr,
    /// What it got. Kept here, so that replies are recognised after the cell was reused.
    pub backend_addr: Addr,
    /// Host order.
    pub service_port: u16,
    /// Host order.
    pub backend_port: u16,
    /// Index into `SERVICES`.
    pub service: u32,
    /// Index into `BACKENDS`.
    pub backend: u32,
    /// The generation of that cell when it was chosen.
    pub generation: u32,
}

assert_size!(Peer, 48);

/// Value of `SOCKETS` (sk_storage): what one socket asked for. Dies with the socket. Writers: connect,
/// sendmsg, sock_ops and sock_release. Readers: these, recvmsg and getpeername. The layout only ever
/// grows at the end.
///
/// The kernel holds the socket's lock while a hook runs, so threads that share a socket take turns. (Not
/// at sock_release: then nobody else has the socket.)
///
/// A connect to no Service leaves it as it is, since the miss path does not look at the socket: one that
/// was connected to a Service, and is then to that Service's very backend, still shows the Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Socket {
    /// In use where `backend_port` is not 0. A connected socket uses the first.
    pub peers: [Peer; PEERS_MAX],
    /// The peer that was used last: of two Services with one backend, the one asked for last answers.
    pub last: u32,
    /// Bit n: the socket is among those that are active at the backend of `peers[n]`.
    pub counted: u32,
}

assert_size!(Socket, 200);

impl Socket {
    /// The peer for what the application asks for.
    #[inline(always)]
    #[must_use]
    pub fn find_service(&self, addr: Addr, port: Port) -> Option<usize> {
        self.find(|peer| peer.service_addr == addr && peer.service_port == port.0)
    }

    /// The peer that an answer comes from; the one used last, if two Services share the backend.
    #[inline(always)]
    #[must_use]
    pub fn find_backend(&self, addr: Addr, port: Port) -> Option<usize> {
        let sent_to = |peer: &Peer| peer.backend_addr == addr && peer.backend_port == port.0;
        let last = self.last as usize;
        match self.peers.get(last) {
            Some(peer) if sent_to(peer) => Some(last),
            _ => self.find(sent_to),
        }
    }

    /// Makes `peer` the socket's only one: what a connect does.
    #[inline(always)]
    pub fn connect(&mut self, peer: Peer) {
        self.peers[0] = peer;
        for at in 1..PEERS_MAX {
            self.peers[at].backend_port = 0;
        }
        self.last = 0;
    }

    /// Where a datagram's peer belongs: in the place of the same Service, else in a free one, else in the
    /// one after the last used; and whether another Service loses that place.
    #[inline(always)]
    #[must_use]
    pub fn place_for(&self, addr: Addr, port: Port) -> (usize, bool) {
        let known = self.find_service(addr, port);
        let place = known.or_else(|| self.find_free());
        let at = place.unwrap_or((self.last as usize + 1) % PEERS_MAX);
        (at, place.is_none())
    }

    /// Remembers where a datagram went.
    #[inline(always)]
    pub fn put(&mut self, at: usize, peer: Peer) {
        if let Some(cell) = self.peers.get_mut(at) {
            *cell = peer;
        }
        self.used(at);
    }

    /// Says that this peer was used last.
    #[inline(always)]
    pub fn used(&mut self, at: usize) {
        #[expect(clippy::cast_possible_truncation, reason = "below PEERS_MAX")]
        let last = at as u32;
        self.last = last;
    }

    /// Notes that the socket was counted as active at this peer's backend.
    #[inline(always)]
    pub fn count(&mut self, at: usize) {
        self.counted |= 1 << at;
    }

    /// Where the socket is to be counted as active no more, if it was: each count is given back once.
    #[inline(always)]
    pub fn uncount(&mut self, at: usize) -> Option<Remembered> {
        let bit = 1 << at;
        if self.counted & bit == 0 {
            return None;
        }
        self.counted &= !bit;
        let peer = self.peers.get(at)?;
        Some(Remembered {
            backend: BackendIndex(peer.backend),
            generation: peer.generation,
        })
    }

    #[inline(always)]
    fn find_free(&self) -> Option<usize> {
        (0..PEERS_MAX).find(|at| self.peers[*at].backend_port == 0)
    }

    #[inline(always)]
    fn find(&self, wanted: impl Fn(&Peer) -> bool) -> Option<usize> {
        (0..PEERS_MAX).find(|at| self.peers[*at].backend_port != 0 && wanted(&self.peers[*at]))
    }
}

/// The cell of `STATUS` (array of one, mmap): what the agent says of itself. Kept in the kernel, so that
/// `lb-agent status` can answer while no agent runs. Writer and reader: agent. Counts are since the
/// agent's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Status {
    /// Unix time, seconds.
    pub started_secs: u64,
    /// Unix time of the last sync that had nothing left to do, seconds; 0: none yet.
    pub synced_secs: u64,
    /// Syncs that programmed everything.
    pub syncs: u64,
    /// Syncs that could not.
    pub sync_failures: u64,
    /// Map operations of the first sync: 0 after a restart with unchanged objects.
    pub first_sync_ops: u64,
    /// Map operations of the last sync.
    pub last_sync_ops: u64,
    /// The agent's process id in its own pid namespace.
    pub pid: u32,
    /// Objects or files that are left out, or served as they last were good.
    pub problems: u32,
    /// Services that did not fit into a map and are served as they last were.
    pub full: u32,
    /// [`SCHEMA`].
    pub schema: u32,
    /// How often the maps have grown.
    pub growths: u32,
    /// How often they took over from those of another layout.
    pub takeovers: u32,
    /// The node this agent serves.
    pub node: Text<256>,
    /// Its zone; empty: none.
    pub zone: Text<64>,
    /// The last thing that went wrong; empty: nothing is wrong.
    pub problem: Text<256>,
    /// The agent's version.
    pub version: Text<32>,
    /// The node's own addresses, as its Node object says, IPv4 and then IPv6; zero: none.
    pub addresses: [Addr; 2],
}

assert_size!(Status, 712);

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn the_ring_word_has_its_fields_where_a_dump_shows_them() {
        let ring = Ring {
            base: 0x0102_0304,
            len: 0x0506,
            algorithm: 7,
            on_empty: 8,
        };

        assert_eq!(ring.word().to_le_bytes(), [4, 3, 2, 1, 6, 5, 7, 8]);
        assert_eq!(Ring::from_word(ring.word()), ring);
    }

    #[test]
    fn every_slot_of_a_ring_is_reached_and_none_beyond() {
        let ring = Ring {
            base: 100,
            len: 3,
            algorithm: Ring::RANDOM,
            on_empty: Ring::REJECT,
        };

        assert_eq!(ring.slot(0), 100);
        assert_eq!(ring.slot(u32::MAX / 2), 101);
        assert_eq!(ring.slot(u32::MAX), 102);
    }

    #[test]
    fn a_cells_uses_never_run_into_those_of_another_set_of_maps() {
        let last = Membership::first_generation(4) - 1;

        assert_eq!(
            Membership::next_generation(last),
            Membership::first_generation(3)
        );
        assert_eq!(Membership::next_generation(0), 1);
        assert_eq!(
            Membership::first_generation(256),
            Membership::first_generation(0)
        );
    }

    #[test]
    fn a_range_holds_its_own_addresses_only() {
        let cidr = ServiceCidr {
            addr: IpAddr::from([10, 96, 0, 0]).into(),
            mask: Addr {
                bytes: [
                    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 240, 0, 0,
                ],
            },
            used: 1,
        };

        assert!(cidr.contains(IpAddr::from([10, 111, 255, 255]).into()));
        assert!(!cidr.contains(IpAddr::from([10, 112, 0, 0]).into()));
        assert!(!cidr.contains(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]).into()));
    }

    fn peer(service: u8, backend: u8) -> Peer {
        Peer {
            service_addr: Addr::v4([10, 96, 0, service]),
            backend_addr: Addr::v4([10, 1, 0, backend]),
            service_port: 53,
            backend_port: 5353,
            ..Peer::zeroed()
        }
    }

    /// As a hook does: whether another Service lost its place.
    fn remember(socket: &mut Socket, peer: Peer) -> bool {
        let (at, evicts) = socket.place_for(peer.service_addr, Port(peer.service_port));
        socket.put(at, peer);
        evicts
    }

    fn asked(socket: &Socket, backend: u8) -> Option<Addr> {
        let at = socket.find_backend(Addr::v4([10, 1, 0, backend]), Port(5353))?;
        Some(socket.peers[at].service_addr)
    }

    #[test]
    fn a_socket_knows_which_of_several_services_answers() {
        let mut socket = Socket::zeroed();
        for number in 1..=4 {
            assert!(
                !remember(&mut socket, peer(number, number)),
                "there is room for {number}"
            );
        }

        for number in 1..=4 {
            assert_eq!(asked(&socket, number), Some(Addr::v4([10, 96, 0, number])));
        }
        assert!(
            !remember(&mut socket, peer(2, 9)),
            "the same Service keeps its place"
        );
        assert_eq!(asked(&socket, 2), None);
    }

    #[test]
    fn a_fifth_service_takes_the_place_after_the_last_used() {
        let mut socket = Socket::zeroed();
        (1..=4).for_each(|number| assert!(!remember(&mut socket, peer(number, number))));

        assert!(remember(&mut socket, peer(5, 5)));
        assert_eq!(
            (asked(&socket, 1), asked(&socket, 2).is_some()),
            (None, true)
        );
    }

    #[test]
    fn of_two_services_with_one_backend_the_one_asked_last_answers() {
        let mut socket = Socket::zeroed();
        remember(&mut socket, peer(1, 7));
        remember(&mut socket, peer(2, 7));

        assert_eq!(asked(&socket, 7), Some(Addr::v4([10, 96, 0, 2])));
    }

    #[test]
    fn a_connect_forgets_what_was_asked_before() {
        let mut socket = Socket::zeroed();
        (1..=4).for_each(|number| assert!(!remember(&mut socket, peer(number, number))));

        socket.connect(peer(9, 9));
        assert_eq!(
            (asked(&socket, 9).is_some(), asked(&socket, 2)),
            (true, None)
        );
    }
    #[test]
    fn what_a_socket_is_counted_for_is_given_back_once() {
        let mut socket = Socket::zeroed();
        let counted = Peer {
            backend: 7,
            generation: 3,
            ..peer(2, 2)
        };
        socket.put(1, counted);
        assert_eq!(socket.uncount(1), None, "it was not counted yet");

        socket.count(1);
        assert_eq!(socket.uncount(0), None, "another peer");
        let given_back = Remembered {
            backend: BackendIndex(7),
            generation: 3,
        };
        assert_eq!(socket.uncount(1), Some(given_back));
        assert_eq!(socket.uncount(1), None, "twice");
    }
}
