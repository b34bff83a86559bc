//! Flows of the packet path: what `FLOWS` holds, how one half of a flow is found from the other, and how
//! long a flow is remembered. Pure, as the kernel programs and the agent must agree.
//!
//! A flow is two entries. At TC *ingress* an entry replaces a packet's destination, at *egress* its
//! source, as netfilter does before and after routing; in between the kernel routes the packet as it
//! would route any. One half says what the other is, so that a lost one can be made again:
//!
//! ```text
//! client → Service   ingress: destination becomes the backend's     (original)
//! backend → client   egress:  source becomes the Service's          (reply)
//! ```
//!
//! Where the backend must not see the client's address, there is a second flow around the first, whose
//! original half lies at egress and whose reply lies at ingress:
//!
//! ```text
//! client → backend   egress:  source becomes this node's            (original, masquerade)
//! backend → node     ingress: destination becomes the client's      (reply, masquerade)
//! ```

use bytemuck::{Pod, Zeroable};

use crate::addr::{Addr, Port, Proto};

/// Entries of `FLOWS`: two or four for each flow. Not preallocated. When full, new flows are dropped and
/// counted; those that are there go on.
pub const FLOWS_MAX: u32 = 1 << 19;

/// Cells of `FLOW_HINTS` (array, mmap, u64), a power of two: how many entries of `FLOWS` have keys with
/// this [`FlowKey::hint`], so that a packet of no flow is known by one load. Writers: the packet programs
/// and, when it removes entries, the agent, all by atomic adds.
pub const FLOW_HINTS_MAX: u32 = 1 << 17;

/// Flows that each CPU keeps in mind as those begun last. When as many have begun after one, it is given
/// up if it is expendable: so many beginnings at most take memory that others need.
pub const YOUNG_MAX: u32 = 1 << 14;

/// Entries of `FRAGMENTS`, of which the least recently used give way: packets whose parts are on their
/// way at the same time.
pub const FRAGMENTS_MAX: u32 = 1 << 13;

/// Entries of `INTERFACES`: those of a node with as many pods as kubelet allows, and room. When full, the
/// agent reports the interface; clients behind it are taken for no pods.
pub const INTERFACES_MAX: u32 = 1 << 12;

/// Key of `FRAGMENTS` (LRU hash): an IP packet that comes in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentKey {
    /// From.
    pub source: Addr,
    /// To.
    pub destination: Addr,
    /// As it lies in the packet.
    pub id: u32,
    /// `IPPROTO_*`.
    pub proto: u32,
}

const _: () = assert!(size_of::<FragmentKey>() == 40);

/// Value of `FRAGMENTS`: the ports, which only the first part has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FragmentPorts {
    /// Host order.
    pub source: u16,
    /// Host order.
    pub destination: u16,
}

const _: () = assert!(size_of::<FragmentPorts>() == 4);

/// The one cell of `NODE` (array, mmap): what the packet path must know of this node. Writer: agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Node {
    /// Clients are hidden behind this address; zeros: there is none.
    pub v4: Addr,
    /// The same for IPv6.
    pub v6: Addr,
    /// [`Node::MASQUERADE_ALL`] | [`Node::DETECT_RANGE`] | [`Node::DETECT_INTERFACE`].
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Node>() == 40);

impl Node {
    /// Every flow to a ClusterIP is masqueraded.
    pub const MASQUERADE_ALL: u32 = 1;
    /// A pod is a client whose address is in `POD_CIDRS`.
    pub const DETECT_RANGE: u32 = 2;
    /// A pod is a client that comes in by an interface that `INTERFACES` marks.
    pub const DETECT_INTERFACE: u32 = 4;

    /// Ports behind which clients are hidden: above those that Linux gives to the node's own sockets.
    pub const MASQUERADE_PORT_FIRST: u16 = 61_000;
    /// How many there are, to 65,535.
    pub const MASQUERADE_PORTS: u16 = 4_536;
}

/// Value of `INTERFACES` (hash, by ifindex): what is known of an interface. Writer: agent.
pub mod interface {
    /// A pod's, as the detection of local pods has it.
    pub const POD: u32 = 1;
}

/// Packet programs that others call, by their index in `CALLS` (program array). Writer: agent, before
/// it attaches any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// Decides for a packet that no flow knows.
    Begin = 0,
    /// Gives up a flow that is in the way of a new one.
    GiveUp = 1,
    /// Remembers a flow that was decided for.
    Remember = 2,
    /// Finds out what is in the way of a flow.
    Clash = 3,
    /// Hides the client of a flow behind this node.
    Hide = 4,
    /// Answers a packet that is refused by a TCP reset.
    Reset = 5,
    /// Answers a packet that is refused by an ICMP error.
    Unreachable = 6,
    /// Translates or answers ICMP at ingress.
    IcmpIn = 7,
    /// Translates ICMP at egress.
    IcmpOut = 8,
    /// Computes an SCTP checksum.
    Sctp = 9,
}

impl Call {
    /// Entries of `CALLS`.
    pub const COUNT: u32 = 10;

    /// All, by index.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Begin,
        Self::GiveUp,
        Self::Remember,
        Self::Clash,
        Self::Hide,
        Self::Reset,
        Self::Unreachable,
        Self::IcmpIn,
        Self::IcmpOut,
        Self::Sctp,
    ];

    /// The program's name.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Begin => "nh_begin",
            Self::GiveUp => "nh_give_up",
            Self::Remember => "nh_remember",
            Self::Clash => "nh_clash",
            Self::Hide => "nh_hide",
            Self::Reset => "nh_reset",
            Self::Unreachable => "nh_unreachable",
            Self::IcmpIn => "nh_icmp_in",
            Self::IcmpOut => "nh_icmp_out",
            Self::Sctp => "nh_sctp",
        }
    }
}

/// Where a program looks at a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Hook {
    /// Before routing. Destinations are replaced here.
    Ingress = 1,
    /// After routing. Sources are replaced here.
    Egress = 2,
}

/// Key of `FLOWS` (hash): a packet as the program at this hook sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    /// From.
    pub source: Addr,
    /// To.
    pub destination: Addr,
    /// Host order.
    pub source_port: u16,
    /// Host order.
    pub destination_port: u16,
    /// `IPPROTO_*`.
    pub proto: u8,
    /// [`Hook`].
    pub hook: u8,
    /// Zero.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<FlowKey>() == 40);

/// An address and a port, as a packet has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: Port,
}

impl FlowKey {
    /// The key of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn new(source: End, destination: End, proto: Proto, hook: Hook) -> Self {
        Self {
            source: source.addr,
            destination: destination.addr,
            source_port: source.port.0,
            destination_port: destination.port.0,
            proto: proto.0,
            hook: hook as u8,
            pad: [0; 2],
        }
    }

    /// Where the packet comes from.
    #[inline(always)]
    #[must_use]
    pub const fn from(&self) -> End {
        End {
            addr: self.source,
            port: Port(self.source_port),
        }
    }

    /// Where it goes.
    #[inline(always)]
    #[must_use]
    pub const fn to(&self) -> End {
        End {
            addr: self.destination,
            port: Port(self.destination_port),
        }
    }

    /// What an entry with this key replaces.
    #[inline(always)]
    #[must_use]
    pub const fn replaced(&self) -> End {
        if self.hook == Hook::Ingress as u8 {
            self.to()
        } else {
            self.from()
        }
    }

    /// The key of the other half, where this one replaces by `by`. The other half replaces by what this
    /// one replaces, so that twice is the key again.
    #[inline(always)]
    #[must_use]
    pub const fn other(&self, by: End) -> Self {
        let proto = Proto(self.proto);
        if self.hook == Hook::Ingress as u8 {
            Self::new(by, self.from(), proto, Hook::Egress)
        } else {
            Self::new(self.to(), by, proto, Hook::Ingress)
        }
    }

    /// 32 bits that differ for different keys as often as chance allows.
    #[inline(always)]
    #[must_use]
    pub fn check(&self) -> u32 {
        let [a, b, c, d] = self.source.words();
        let [e, f, g, h] = self.destination.words();
        let kind = u32::from(self.proto) << 8 | u32::from(self.hook);
        let ports = u32::from(self.source_port) << 16 | u32::from(self.destination_port);
        let odd = 0x9e37_79b9_7f4a_7c15;
        let from = u64::from(a ^ b ^ c.rotate_left(7) ^ d) << 32;
        let to = u64::from(e ^ f ^ g.rotate_left(7) ^ h);
        let mixed = (from | to).wrapping_mul(odd);
        let mixed =
            (mixed ^ (mixed >> 29) ^ u64::from(ports) << 16 ^ u64::from(kind)).wrapping_mul(odd);
        (mixed >> 32) as u32
    }

    /// Cell of `FLOW_HINTS`.
    #[inline(always)]
    #[must_use]
    pub fn hint(&self) -> u32 {
        self.check() >> (u32::BITS - FLOW_HINTS_MAX.ilog2())
    }
}

/// Value of `FLOWS`: one half of a flow. Writers: the packet programs; the agent removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Half {
    /// [`FlowKey::check`] of the key. First in memory and read last: the kernel gives the memory of a
    /// removed entry to the next new one at once, and a reader must not take that for this.
    pub check: u32,
    /// What was seen of packets in this direction: [`seen`].
    pub seen: u32,
    /// The last packet in this direction, nanoseconds since boot; written about once a second.
    pub used_nanos: u64,
    /// What is put in the place of the destination (ingress) or the source (egress).
    pub addr: Addr,
    /// Its port, host order.
    pub port: u16,
    /// [`Half::REPLY`] | [`Half::MASQUERADE`].
    pub flags: u16,
    /// The Service port, index into `SERVICES`.
    pub service: u32,
    /// Index into `BACKENDS`.
    pub backend: u32,
    /// The generation of that cell.
    pub generation: u32,
}

const _: () = assert!(size_of::<Half>() == 48);

impl Half {
    /// From the backend to the client.
    pub const REPLY: u16 = 1;
    /// Hides the client behind this node.
    pub const MASQUERADE: u16 = 2;

    /// What is put into packets.
    #[inline(always)]
    #[must_use]
    pub const fn by(&self) -> End {
        End {
            addr: self.addr,
            port: Port(self.port),
        }
    }

    /// The other half of the flow that this entry of this key is one half of, with nothing seen.
    #[inline(always)]
    #[must_use]
    pub fn other(&self, key: &FlowKey) -> (FlowKey, Self) {
        let by = key.replaced();
        let other_key = key.other(self.by());
        let other = Self {
            check: other_key.check(),
            addr: by.addr,
            port: by.port.0,
            flags: self.flags ^ Self::REPLY,
            seen: 0,
            ..*self
        };
        (other_key, other)
    }

    /// Whether the entry leads from client to backend.
    #[inline(always)]
    #[must_use]
    pub const fn is_original(&self) -> bool {
        self.flags & Self::REPLY == 0
    }
}

/// What is kept of the packets of one direction.
pub mod seen {
    /// Any packet. UDP has no other.
    pub const PACKET: u32 = 1;
    /// TCP: SYN, alone or with ACK.
    pub const SYN: u32 = 1 << 1;
    /// TCP: ACK without SYN.
    pub const ACK: u32 = 1 << 2;
    /// TCP: FIN.
    pub const FIN: u32 = 1 << 3;
    /// TCP: RST.
    pub const RST: u32 = 1 << 4;
    /// SCTP: INIT or INIT ACK.
    pub const INIT: u32 = 1 << 5;
    /// SCTP: COOKIE ECHO or COOKIE ACK.
    pub const COOKIE: u32 = 1 << 6;
    /// SCTP: SHUTDOWN, SHUTDOWN ACK or SHUTDOWN COMPLETE.
    pub const SHUTDOWN: u32 = 1 << 7;
    /// SCTP: ABORT.
    pub const ABORT: u32 = 1 << 8;
    /// SCTP: anything else.
    pub const DATA: u32 = 1 << 9;

    /// TCP: SYN with ACK. SCTP: INIT ACK.
    pub const ANSWER: u32 = 1 << 10;

    const TCP_FIN: u8 = 1;
    const TCP_SYN: u8 = 2;
    const TCP_RST: u8 = 4;
    const TCP_ACK: u8 = 16;

    /// Of the flags of a TCP segment.
    #[inline(always)]
    #[must_use]
    pub const fn tcp(flags: u8) -> u32 {
        let mut seen = PACKET;
        if flags & TCP_SYN != 0 {
            seen |= SYN;
            if flags & TCP_ACK != 0 {
                seen |= ANSWER;
            }
        } else if flags & TCP_ACK != 0 {
            seen |= ACK;
        }
        if flags & TCP_FIN != 0 {
            seen |= FIN;
        }
        if flags & TCP_RST != 0 {
            seen |= RST;
        }
        seen
    }

    /// Of the first chunk of an SCTP packet.
    #[inline(always)]
    #[must_use]
    pub const fn sctp(chunk: u8) -> u32 {
        PACKET
            | match chunk {
                1 => INIT,
                2 => INIT | ANSWER,
                10 | 11 => COOKIE,
                7 | 8 | 14 => SHUTDOWN,
                6 => ABORT,
                _ => DATA,
            }
    }
}

/// What became of a flow, by conntrack's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// TCP: asked, not answered.
    SynSent,
    /// TCP: answered, not confirmed.
    SynRecv,
    /// TCP, SCTP: both sides talk.
    Established,
    /// TCP: one side has closed.
    CloseWait,
    /// TCP: both have.
    TimeWait,
    /// TCP: reset. SCTP: shut down or aborted.
    Close,
    /// SCTP: asked, not answered.
    CookieWait,
    /// SCTP: answered, not confirmed.
    CookieEchoed,
    /// UDP: one direction only.
    Unreplied,
    /// UDP: both.
    Replied,
}

impl State {
    /// Of the two halves' `seen`.
    #[inline(always)]
    #[must_use]
    pub const fn of(proto: Proto, original: u32, reply: u32) -> Self {
        let either = original | reply;
        match proto {
            Proto::TCP if either & seen::RST != 0 => Self::Close,
            Proto::TCP if reply == 0 => Self::SynSent,
            Proto::TCP if original & reply & seen::FIN != 0 => Self::TimeWait,
            Proto::TCP if either & seen::FIN != 0 => Self::CloseWait,
            Proto::TCP if original & seen::ACK == 0 => Self::SynRecv,
            Proto::SCTP if either & (seen::ABORT | seen::SHUTDOWN) != 0 => Self::Close,
            Proto::SCTP if reply == 0 => Self::CookieWait,
            Proto::SCTP if original & (seen::COOKIE | seen::DATA) == 0 => Self::CookieWait,
            Proto::SCTP if reply & (seen::COOKIE | seen::DATA) == 0 => Self::CookieEchoed,
            Proto::TCP | Proto::SCTP => Self::Established,
            _ if reply == 0 => Self::Unreplied,
            _ => Self::Replied,
        }
    }

    /// How long a flow in this state is remembered after its last packet. Conntrack's figures, but for
    /// the two that kube-proxy sets: established TCP and close wait.
    #[must_use]
    pub const fn timeout_secs(self) -> u32 {
        match self {
            Self::SynSent | Self::TimeWait | Self::Replied => 120,
            Self::SynRecv => 60,
            Self::Established => 24 * 3600,
            Self::CloseWait => 3600,
            Self::Close => 10,
            Self::CookieWait | Self::CookieEchoed => 3,
            Self::Unreplied => 30,
        }
    }

    /// Whether the flow may be given up for a newer one: anybody can begin a flow, so those that nobody
    /// has answered and confirmed must not push out others, nor those that are over.
    #[inline(always)]
    #[must_use]
    pub const fn is_expendable(self) -> bool {
        !matches!(self, Self::Established | Self::CloseWait | Self::Replied)
    }

    /// Whether a new flow may take this one's addresses.
    #[inline(always)]
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Close | Self::TimeWait)
    }

    /// As `conntrack -L` writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN_SENT",
            Self::SynRecv => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::CloseWait => "CLOSE_WAIT",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CookieWait => "COOKIE_WAIT",
            Self::CookieEchoed => "COOKIE_ECHOED",
            Self::Unreplied => "UNREPLIED",
            Self::Replied => "REPLIED",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(last: u8, port: u16) -> End {
        End {
            addr: Addr::v4([10, 0, 0, last]),
            port: Port(port),
        }
    }

    fn half(by: End, flags: u16) -> Half {
        Half {
            addr: by.addr,
            port: by.port.0,
            flags,
            ..Half::zeroed()
        }
    }

    const CLIENT: u8 = 1;
    const SERVICE: u8 = 10;
    const BACKEND: u8 = 2;
    const NODE: u8 = 3;

    #[test]
    fn a_reply_is_looked_for_as_it_leaves_and_gets_the_services_address() {
        let (client, service, backend) = (end(CLIENT, 4000), end(SERVICE, 80), end(BACKEND, 8080));
        let key = FlowKey::new(client, service, Proto::TCP, Hook::Ingress);

        let (reply, flow) = half(backend, 0).other(&key);

        assert_eq!((reply.from(), reply.to()), (backend, client));
        assert_eq!(reply.hook, Hook::Egress as u8);
        assert_eq!(flow.by(), service);
        assert!(!flow.is_original());
    }

    #[test]
    fn a_reply_to_the_node_is_looked_for_as_it_comes_and_goes_on_to_the_client() {
        let (client, backend, node) = (end(CLIENT, 4000), end(BACKEND, 8080), end(NODE, 61000));
        let key = FlowKey::new(client, backend, Proto::UDP, Hook::Egress);

        let (reply, flow) = half(node, Half::MASQUERADE).other(&key);

        assert_eq!((reply.from(), reply.to()), (backend, node));
        assert_eq!(reply.hook, Hook::Ingress as u8);
        assert_eq!(flow.by(), client);
        assert_eq!(flow.flags, Half::MASQUERADE | Half::REPLY);
    }

    #[test]
    fn each_half_makes_the_other_again() {
        for hook in [Hook::Ingress, Hook::Egress] {
            let key = FlowKey::new(end(CLIENT, 1), end(SERVICE, 2), Proto::SCTP, hook);
            let flow = Half {
                check: key.check(),
                ..half(end(BACKEND, 3), Half::MASQUERADE)
            };

            let (other_key, other) = flow.other(&key);

            assert_ne!(other_key, key);
            assert_eq!(other.other(&other_key), (key, flow));
        }
    }

    #[test]
    fn a_tcp_flow_is_named_as_conntrack_names_it() {
        use seen::{ACK, FIN, RST, SYN};
        let state = |original, reply| State::of(Proto::TCP, original, reply).name();

        assert_eq!(state(SYN, 0), "SYN_SENT");
        assert_eq!(state(SYN, SYN), "SYN_RECV");
        assert_eq!(state(SYN | ACK, SYN), "ESTABLISHED");
        assert_eq!(state(SYN | ACK | FIN, SYN | ACK), "CLOSE_WAIT");
        assert_eq!(state(SYN | ACK | FIN, SYN | ACK | FIN), "TIME_WAIT");
        assert_eq!(state(SYN, RST | ACK), "CLOSE");
        assert_eq!(state(ACK, ACK), "ESTABLISHED", "picked up on its way");
    }

    #[test]
    fn an_sctp_association_and_udp_are_named_as_conntrack_names_them() {
        use seen::{COOKIE, DATA, INIT, PACKET, SHUTDOWN};
        let sctp = |original, reply| State::of(Proto::SCTP, original, reply).name();
        let udp = |original, reply| State::of(Proto::UDP, original, reply).name();

        assert_eq!(sctp(INIT, 0), "COOKIE_WAIT");
        assert_eq!(sctp(INIT, INIT), "COOKIE_WAIT");
        assert_eq!(sctp(INIT | COOKIE, INIT), "COOKIE_ECHOED");
        assert_eq!(sctp(INIT | COOKIE | DATA, INIT | COOKIE), "ESTABLISHED");
        assert_eq!(
            sctp(INIT | COOKIE | SHUTDOWN, INIT | COOKIE | DATA),
            "CLOSE"
        );
        assert_eq!(udp(PACKET, 0), "UNREPLIED");
        assert_eq!(udp(PACKET, PACKET), "REPLIED");
    }

    #[test]
    fn the_answer_to_a_first_packet_is_told_from_it() {
        assert_eq!(seen::tcp(2) & seen::ANSWER, 0, "SYN");
        assert_ne!(seen::tcp(2 | 16) & seen::ANSWER, 0, "SYN with ACK");
        assert_eq!(seen::sctp(1) & seen::ANSWER, 0, "INIT");
        assert_ne!(seen::sctp(2) & seen::ANSWER, 0, "INIT ACK");
    }

    #[test]
    fn a_flood_of_first_packets_is_expendable_whatever_follows_them_unanswered() {
        use seen::{ACK, FIN, SYN};
        for original in [SYN, ACK, SYN | ACK, SYN | ACK | FIN] {
            let state = State::of(Proto::TCP, original, 0);
            assert!(state.is_expendable(), "{original}");
        }
        assert!(State::of(Proto::UDP, seen::PACKET, 0).is_expendable());
        assert!(!State::of(Proto::TCP, SYN | ACK, SYN | ACK).is_expendable());
    }
}
