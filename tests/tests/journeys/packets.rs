//! Packets to send and to expect, as whole frames. Every checksum is computed from nothing, so a frame
//! that came out as expected has the right ones.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader,
    checksum::Sum16BitWords,
};
use lb_common::crc32c;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

const HOPS: u8 = 64;
const WINDOW: u16 = 1024;
const FRAGMENTED_ID: u16 = 0x1234;

/// A packet with what a test may want to be different about it.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    carried: Carried,
    vlans: u8,
    v4_options: Vec<u8>,
    extensions: Vec<u8>,
    has_sum: bool,
    /// The link-layer addresses of an answer.
    flipped: bool,
}

#[derive(Clone, Debug)]
enum Carried {
    Tcp {
        flags: u8,
        sequence: u32,
        acknowledged: u32,
        window: u16,
        payload: Vec<u8>,
    },
    Udp {
        payload: Vec<u8>,
    },
    Sctp {
        chunk: u8,
        payload: Vec<u8>,
    },
    Icmp {
        kind: u8,
        code: u8,
        rest: Vec<u8>,
    },
}

/// A SYN.
pub(crate) fn tcp(from: &str, to: &str) -> Packet {
    let carried = Carried::Tcp {
        flags: SYN,
        sequence: 7,
        acknowledged: 0,
        window: WINDOW,
        payload: Vec::new(),
    };
    Packet::new(from, to, carried)
}

/// A datagram.
pub(crate) fn udp(from: &str, to: &str) -> Packet {
    let payload = b"hello".to_vec();
    Packet::new(from, to, Carried::Udp { payload })
}

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// An INIT.
pub(crate) fn sctp(from: &str, to: &str) -> Packet {
    let payload = b"an association".to_vec();
    let chunk = INIT;
    Packet::new(from, to, Carried::Sctp { chunk, payload })
}

/// An ICMP message of the version that the addresses have.
pub(crate) fn icmp(from: &str, to: &str, kind: u8, code: u8, rest: &[u8]) -> Packet {
    let rest = rest.to_vec();
    Packet::new(
        &with_port(from),
        &with_port(to),
        Carried::Icmp { kind, code, rest },
    )
}

/// "Port unreachable", as a program answers with it: about the begin of a packet.
pub(crate) fn unreachable(about: &Packet) -> Packet {
    let (kind, code, quoted) = match about.is_v4() {
        true => (3, 3, 20 + 8),
        false => (1, 4, 40 + 8),
    };
    let mut rest = vec![0; 4];
    rest.extend(&about.ip()[..quoted]);
    let carried = Carried::Icmp { kind, code, rest };
    Packet {
        carried,
        flipped: true,
        ..about.turned()
    }
}

/// An ICMP error with a word that says more, about the begin of a packet.
pub(crate) fn icmp_about(
    from: &str,
    to: &str,
    (kind, code): (u8, u8),
    word: [u8; 4],
    about: &Packet,
) -> Packet {
    let quoted = if about.is_v4() { 20 + 8 } else { 40 + 8 };
    let rest = [&word, &about.ip()[..quoted]].concat();
    icmp(from, to, kind, code, &rest)
}

fn with_port(addr: &str) -> String {
    SocketAddr::new(addr.parse().unwrap(), 0).to_string()
}

impl Packet {
    fn new(from: &str, to: &str, carried: Carried) -> Self {
        Self {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            carried,
            vlans: 0,
            v4_options: Vec::new(),
            extensions: Vec::new(),
            has_sum: true,
            flipped: false,
        }
    }

    pub(crate) fn from(&self, from: &str) -> Self {
        let from = from.parse().unwrap();
        Self {
            from,
            ..self.clone()
        }
    }

    pub(crate) fn to(&self, to: &str) -> Self {
        let to = to.parse().unwrap();
        Self { to, ..self.clone() }
    }

    /// Between the same, the other way.
    pub(crate) fn turned(&self) -> Self {
        Self {
            from: self.to,
            to: self.from,
            ..self.clone()
        }
    }

    /// TCP, with these flags.
    pub(crate) fn flags(&self, new: u8) -> Self {
        let mut packet = self.clone();
        let Carried::Tcp { flags, .. } = &mut packet.carried else {
            panic!("{self:?}")
        };
        *flags = new;
        packet
    }

    /// TCP, at this place of the stream and of the other's.
    pub(crate) fn at(&self, new_sequence: u32, new_acknowledged: u32) -> Self {
        let mut packet = self.clone();
        let Carried::Tcp {
            sequence,
            acknowledged,
            ..
        } = &mut packet.carried
        else {
            panic!("{self:?}")
        };
        (*sequence, *acknowledged) = (new_sequence, new_acknowledged);
        packet
    }

    /// TCP: a reset that answers this packet.
    pub(crate) fn reset(&self, flags: u8, sequence: u32, acknowledged: u32) -> Self {
        let carried = Carried::Tcp {
            flags,
            sequence,
            acknowledged,
            window: 0,
            payload: Vec::new(),
        };
        Self {
            carried,
            flipped: true,
            ..self.turned()
        }
    }

    pub(crate) fn payload(&self, new: &[u8]) -> Self {
        let mut packet = self.clone();
        match &mut packet.carried {
            Carried::Tcp { payload, .. }
            | Carried::Udp { payload }
            | Carried::Sctp { payload, .. } => *payload = new.to_vec(),
            Carried::Icmp { .. } => panic!("{self:?}"),
        }
        packet
    }

    /// The first packet of an answer, from and to these.
    pub(crate) fn answer(&self, from: &str, to: &str) -> Self {
        let mut packet = self.from(from).to(to);
        match &mut packet.carried {
            Carried::Tcp {
                flags,
                acknowledged,
                ..
            } => (*flags, *acknowledged) = (SYN | ACK, 8),
            Carried::Sctp { chunk, .. } => *chunk = INIT_ACK,
            Carried::Udp { .. } | Carried::Icmp { .. } => {}
        }
        packet
    }

    /// With so many tags in the frame.
    pub(crate) fn vlans(&self, vlans: u8) -> Self {
        Self {
            vlans,
            ..self.clone()
        }
    }

    /// With IPv4 options, whose length is a multiple of four.
    pub(crate) fn v4_options(&self, options: &[u8]) -> Self {
        Self {
            v4_options: options.to_vec(),
            ..self.clone()
        }
    }

    /// With IPv6 extension headers of these kinds, each of eight bytes of padding.
    pub(crate) fn extensions(&self, kinds: &[u8]) -> Self {
        Self {
            extensions: kinds.to_vec(),
            ..self.clone()
        }
    }

    /// The checksum of what IP carries is zero: there is none.
    pub(crate) fn without_sum(&self) -> Self {
        Self {
            has_sum: false,
            ..self.clone()
        }
    }

    /// Where it comes from.
    pub(crate) fn client(&self) -> String {
        self.from.to_string()
    }

    /// Where it goes.
    pub(crate) fn service(&self) -> String {
        self.to.to_string()
    }

    pub(crate) fn is_tcp(&self) -> bool {
        self.proto() == TCP
    }

    pub(crate) fn is_sctp(&self) -> bool {
        self.proto() == SCTP
    }

    pub(crate) fn is_v4(&self) -> bool {
        self.from.is_ipv4()
    }

    /// The whole frame.
    pub(crate) fn frame(&self) -> Vec<u8> {
        [self.link(), self.ip()].concat()
    }

    /// The frame, with zeros behind the packet up to this length.
    pub(crate) fn padded(&self, len: usize) -> Vec<u8> {
        let mut frame = self.frame();
        assert!(frame.len() < len, "{} bytes", frame.len());
        frame.resize(len, 0);
        frame
    }

    /// Frames with a part of the packet each: up to these bytes of what IP carries, and the rest.
    pub(crate) fn parts(&self, cuts: &[usize]) -> Vec<Vec<u8>> {
        let whole = self.transport();
        let ends = cuts.iter().copied().chain([whole.len()]);
        let begins = [0].into_iter().chain(cuts.iter().copied());
        let part = |(begin, end): (usize, usize)| {
            let place = Place {
                at: begin,
                has_more: end < whole.len(),
            };
            let ip = self.ip_around(&whole[begin..end], Some(place));
            [self.link(), ip].concat()
        };
        begins.zip(ends).map(part).collect()
    }

    /// From the IP header on.
    pub(crate) fn ip(&self) -> Vec<u8> {
        self.ip_around(&self.transport(), None)
    }

    fn link(&self) -> Vec<u8> {
        const A: [u8; 6] = [2, 0, 0, 0, 0, 1];
        const B: [u8; 6] = [2, 0, 0, 0, 0, 2];
        let (to, from) = if self.flipped { (A, B) } else { (B, A) };
        let mut link = [to, from].concat();
        for vlan in 0..self.vlans {
            link.extend([0x81, 0, 0, 100 + vlan]);
        }
        link.extend(if self.is_v4() { [8, 0] } else { [0x86, 0xdd] });
        link
    }

    fn ip_around(&self, bytes: &[u8], place: Option<Place>) -> Vec<u8> {
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = Ipv4Header {
                    total_len: word(20 + self.v4_options.len() + bytes.len()),
                    dont_fragment: place.is_none(),
                    time_to_live: HOPS,
                    protocol: IpNumber(self.proto()),
                    source: from.octets(),
                    destination: to.octets(),
                    options: self.v4_options.as_slice().try_into().unwrap(),
                    ..Ipv4Header::default()
                };
                if let Some(place) = place {
                    header.identification = FRAGMENTED_ID;
                    header.more_fragments = place.has_more;
                    header.fragment_offset = IpFragOffset::try_new(place.units()).unwrap();
                }
                header.header_checksum = header.calc_header_checksum();
                [&header.to_bytes()[..], bytes].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut kinds = self.extensions.clone();
                kinds.extend(place.as_ref().map(|_| FRAGMENT));
                kinds.push(self.proto());
                let mut extensions = Vec::new();
                for pair in kinds.windows(2) {
                    extensions.extend(match (pair[0], &place) {
                        (FRAGMENT, Some(place)) => place.header(pair[1]),
                        // One option, "padding", of four bytes.
                        _ => [pair[1], 0, 1, 4, 0, 0, 0, 0],
                    });
                }
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: word(extensions.len() + bytes.len()),
                    next_header: IpNumber(kinds[0]),
                    hop_limit: HOPS,
                    source: from.octets(),
                    destination: to.octets(),
                };
                [&header.to_bytes()[..], &extensions, bytes].concat()
            }
            mixed => panic!("{mixed:?}"),
        }
    }

    fn proto(&self) -> u8 {
        match (&self.carried, self.is_v4()) {
            (Carried::Tcp { .. }, _) => TCP,
            (Carried::Udp { .. }, _) => UDP,
            (Carried::Sctp { .. }, _) => SCTP,
            (Carried::Icmp { .. }, true) => ICMP,
            (Carried::Icmp { .. }, false) => ICMPV6,
        }
    }

    /// What IP carries, with its checksum.
    fn transport(&self) -> Vec<u8> {
        let (mut bytes, sum_at) = self.unsummed();
        if !self.has_sum {
            return bytes;
        }
        if self.proto() == SCTP {
            let sum = bytes
                .iter()
                .fold(crc32c::BEGIN, |sum, byte| crc32c::add(sum, *byte));
            bytes[sum_at..sum_at + 4].copy_from_slice(&crc32c::end(sum));
            return bytes;
        }
        let sum = self.pseudo(bytes.len()).add_slice(&bytes);
        // The library's sums are as they lie in memory.
        let sum = match self.proto() {
            UDP => sum.to_ones_complement_with_no_zero(),
            _ => sum.ones_complement(),
        };
        bytes[sum_at..sum_at + 2].copy_from_slice(&sum.to_ne_bytes());
        bytes
    }

    /// With zeros for a checksum, and where that is.
    fn unsummed(&self) -> (Vec<u8>, usize) {
        let (from, to) = (self.from.port(), self.to.port());
        let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
        match &self.carried {
            Carried::Tcp {
                flags,
                sequence,
                acknowledged,
                window,
                payload,
            } => {
                let header = TcpHeader {
                    fin: flags & FIN != 0,
                    syn: flags & SYN != 0,
                    rst: flags & RST != 0,
                    ack: flags & ACK != 0,
                    acknowledgment_number: *acknowledged,
                    ..TcpHeader::new(from, to, *sequence, *window)
                };
                ([&header.to_bytes()[..], payload].concat(), 16)
            }
            Carried::Udp { payload } => {
                let len = word(8 + payload.len()).to_be_bytes();
                ([&ports[..], &len, &[0; 2], payload].concat(), 6)
            }
            Carried::Sctp { chunk, payload } => {
                let [high, low] = word(4 + payload.len()).to_be_bytes();
                let chunk = [*chunk, 0, high, low];
                let mut bytes = [&ports[..], &[1, 2, 3, 4], &[0; 4], &chunk, payload].concat();
                bytes.resize(bytes.len().next_multiple_of(4), 0);
                (bytes, 8)
            }
            Carried::Icmp { kind, code, rest } => ([&[*kind, *code, 0, 0][..], rest].concat(), 2),
        }
    }

    /// The checksum of UDP.
    pub(crate) fn sum(&self) -> [u8; 2] {
        let bytes = self.transport();
        [bytes[6], bytes[7]]
    }

    fn pseudo(&self, len: usize) -> Sum16BitWords {
        let sum = Sum16BitWords::new();
        let with = |sum: Sum16BitWords| {
            let len = word(len).to_be_bytes();
            sum.add_2bytes([0, self.proto()]).add_2bytes(len)
        };
        match (self.from.ip(), self.to.ip()) {
            _ if self.proto() == ICMP => sum,
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                with(sum.add_slice(&from.octets()).add_slice(&to.octets()))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                with(sum.add_slice(&from.octets()).add_slice(&to.octets()))
            }
            mixed => panic!("{mixed:?}"),
        }
    }
}

fn word(number: usize) -> u16 {
    number.try_into().unwrap()
}

/// A part's place in a packet.
struct Place {
    at: usize,
    has_more: bool,
}

impl Place {
    /// Parts lie at multiples of eight bytes.
    fn units(&self) -> u16 {
        assert!(self.at.is_multiple_of(8), "{}", self.at);
        word(self.at / 8)
    }

    /// IPv6's fragment header.
    fn header(&self, next: u8) -> [u8; 8] {
        let [high, low] = (self.units() << 3 | u16::from(self.has_more)).to_be_bytes();
        let [a, b] = FRAGMENTED_ID.to_be_bytes();
        [next, 0, high, low, 0, 0, a, b]
    }
}
