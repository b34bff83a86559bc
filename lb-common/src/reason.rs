//! Why a program did what it did: every pass, rewrite, reject and drop has a name, and a counter.

/// Index into `COUNTERS` (per-CPU array of 64-bit counts). Writer: all hooks, by atomic adds. Reader:
/// agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Reason {
    /// The destination is no Service.
    PassNotAService = 0,
    /// Neither TCP nor UDP.
    PassProtocol = 1,
    /// The sender of a datagram, or a socket's peer, is no backend this socket was given.
    PassNotAPeer = 2,
    /// Sent to a backend on this node.
    ForwardNode = 3,
    /// Sent to a backend in this node's zone.
    ForwardZone = 4,
    /// Sent to a backend in another zone.
    ForwardOtherZone = 5,
    /// Sent to a backend whose zone, or whose distance, is not known.
    ForwardUnknownZone = 6,
    /// A datagram went to the backend this socket already uses for the Service.
    ForwardKept = 7,
    /// The Service's address was put back as a datagram's source.
    RestoreSource = 8,
    /// The Service's address was shown by getpeername.
    RestorePeername = 9,
    /// The Service has no usable endpoint anywhere.
    RejectNoEndpoints = 10,
    /// The address is a ClusterIP, the port is none of the Service's.
    RejectUnownedPort = 11,
    /// The policy is Local and no endpoint is on this node. The address is left alone.
    DropNoLocalEndpoint = 12,
    /// In a range of ClusterIPs, but no Service has the address. The address is left alone.
    DropUnallocated = 13,
    /// A table pointed to a cell that belongs to somebody else. The address is left alone.
    DropStale = 14,
    /// A fifth Service on one unconnected socket replaced the oldest peer.
    PeerEvicted = 15,
    /// No memory for the socket's state: forwarded, but the backend's own address shows.
    PeerLost = 16,
    /// Sent to the backend that this client was given before, by session affinity.
    ForwardAffine = 17,
    /// `AFFINITY` is full: the backend was chosen by a hash of the client.
    AffinityFull = 18,
    /// A packet of no flow, and to no Service.
    PacketPass = 19,
    /// A packet that is no IP, is cut short, or is of a protocol without Services.
    PacketOther = 20,
    /// A packet of this node's own to a Service, from a process that no hook covers. It is left alone.
    PacketUnhooked = 21,
    /// A packet went to the backend of its flow.
    PacketOriginal = 22,
    /// The Service's address was put back in a packet of a backend.
    PacketReply = 23,
    /// An ICMP error about a packet of a flow was translated.
    PacketIcmpError = 24,
    /// `FLOWS` is full, or there is no memory: the first packet of a flow was dropped.
    DropFlowsFull = 25,
    /// The backend's answers could not be told from those of another flow. The first packet was dropped.
    DropFlowClash = 26,
    /// The client is to be hidden behind this node, and no port or no address is left.
    DropNoMasquerade = 27,
    /// The kernel would not change a packet.
    DropUnwritable = 28,
    /// A flow that was never confirmed, or is over, made room for a newer one.
    FlowGivenUp = 29,
}

impl Reason {
    /// Cells of `COUNTERS`.
    pub const COUNT: u32 = 30;

    /// All, by index.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::PassNotAService,
        Self::PassProtocol,
        Self::PassNotAPeer,
        Self::ForwardNode,
        Self::ForwardZone,
        Self::ForwardOtherZone,
        Self::ForwardUnknownZone,
        Self::ForwardKept,
        Self::RestoreSource,
        Self::RestorePeername,
        Self::RejectNoEndpoints,
        Self::RejectUnownedPort,
        Self::DropNoLocalEndpoint,
        Self::DropUnallocated,
        Self::DropStale,
        Self::PeerEvicted,
        Self::PeerLost,
        Self::ForwardAffine,
        Self::AffinityFull,
        Self::PacketPass,
        Self::PacketOther,
        Self::PacketUnhooked,
        Self::PacketOriginal,
        Self::PacketReply,
        Self::PacketIcmpError,
        Self::DropFlowsFull,
        Self::DropFlowClash,
        Self::DropNoMasquerade,
        Self::DropUnwritable,
        Self::FlowGivenUp,
    ];

    /// The name in metrics, commands and documents.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PassNotAService => "pass-not-a-service",
            Self::PassProtocol => "pass-protocol",
            Self::PassNotAPeer => "pass-not-a-peer",
            Self::ForwardNode => "forward-node",
            Self::ForwardZone => "forward-zone",
            Self::ForwardOtherZone => "forward-other-zone",
            Self::ForwardUnknownZone => "forward-unknown-zone",
            Self::ForwardKept => "forward-kept",
            Self::RestoreSource => "restore-source",
            Self::RestorePeername => "restore-peername",
            Self::RejectNoEndpoints => "reject-no-endpoints",
            Self::RejectUnownedPort => "reject-unowned-port",
            Self::DropNoLocalEndpoint => "drop-no-local-endpoint",
            Self::DropUnallocated => "drop-unallocated",
            Self::DropStale => "drop-stale",
            Self::PeerEvicted => "peer-evicted",
            Self::PeerLost => "peer-lost",
            Self::ForwardAffine => "forward-affine",
            Self::AffinityFull => "affinity-full",
            Self::PacketPass => "packet-pass",
            Self::PacketOther => "packet-other",
            Self::PacketUnhooked => "packet-unhooked",
            Self::PacketOriginal => "packet-original",
            Self::PacketReply => "packet-reply",
            Self::PacketIcmpError => "packet-icmp-error",
            Self::DropFlowsFull => "drop-flows-full",
            Self::DropFlowClash => "drop-flow-clash",
            Self::DropNoMasquerade => "drop-no-masquerade",
            Self::DropUnwritable => "drop-unwritable",
            Self::FlowGivenUp => "flow-given-up",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_lies_at_its_own_index() {
        for (index, reason) in (0..).zip(Reason::ALL) {
            assert_eq!(reason as u32, index, "{}", reason.name());
        }
    }
}
