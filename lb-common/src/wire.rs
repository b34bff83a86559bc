//! Headers of packets, read from bytes that anybody may have sent: nothing in them is believed before it
//! is looked at. The kernel programs read packets through this, and so does the fuzzer.
//!
//! One of the two places where a port changes its byte order.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, Port, Proto},
    flow::FragmentKey,
};

/// Bytes of a packet, from its link-layer header on.
pub trait Bytes {
    /// What lies at an offset; `None` where the packet ends before.
    fn at<T: Pod>(&self, offset: usize) -> Option<T>;
}

impl Bytes for [u8] {
    fn at<T: Pod>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        Some(bytemuck::pod_read_unaligned(bytes))
    }
}

/// Length of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
const ETHERTYPE_AT: usize = 12;
const ETHERTYPE_LEN: usize = 2;
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const ETHERTYPE_SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];
const VLAN_LEN: usize = 4;
/// Tags in a frame; a first one usually lies beside the packet, not in it.
const VLANS_MAX: usize = 2;

/// `IPPROTO_ICMP`.
pub const ICMP: u8 = 1;
/// `IPPROTO_ICMPV6`.
pub const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers before the transport header that are followed. A packet with more is not looked
/// into.
const EXTENSIONS_MAX: usize = 3;

const IPV4_LEN: usize = size_of::<Ipv4>();
const IPV6_LEN: usize = size_of::<Ipv6>();

/// An IPv4 header without options.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv4 {
    /// Version (4) and length in words of four bytes.
    pub version_len: u8,
    /// Type of service.
    pub tos: u8,
    /// Of the whole packet, network order.
    pub total_len: [u8; 2],
    /// Common to the fragments of one packet.
    pub id: [u8; 2],
    /// Flags and place among the fragments, network order.
    pub fragment: [u8; 2],
    /// Hops left.
    pub ttl: u8,
    /// `IPPROTO_*`.
    pub proto: u8,
    /// Of the header.
    pub checksum: [u8; 2],
    /// Sender.
    pub source: [u8; 4],
    /// Receiver.
    pub destination: [u8; 4],
}

/// An IPv6 header.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6 {
    /// Version, class and label.
    pub version_flow: [u8; 4],
    /// Of what follows, network order.
    pub payload_len: [u8; 2],
    /// What follows.
    pub next: u8,
    /// Hops left.
    pub hops: u8,
    /// Sender.
    pub source: [u8; 16],
    /// Receiver.
    pub destination: [u8; 16],
}

/// The begin of every IPv6 extension header.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Extension {
    next: u8,
    len: u8,
}

/// The IPv6 fragment header.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Ipv6Fragment {
    next: u8,
    reserved: u8,
    place: [u8; 2],
    id: [u8; 4],
}

/// The begin of TCP, UDP and SCTP alike.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Ports {
    source: [u8; 2],
    destination: [u8; 2],
}

/// Where the link-layer header ends, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Of the IP header.
    pub l3: usize,
    /// IPv4, else IPv6.
    pub is_v4: bool,
}

/// What part of an IP packet this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first of several, with the ports.
    First,
    /// Another, without ports.
    Later,
}

/// An IP header with its extensions, read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Sender.
    pub source: Addr,
    /// Receiver.
    pub destination: Addr,
    /// Where what it carries begins.
    pub l4: usize,
    /// What that is, `IPPROTO_*`.
    pub proto: u8,
    /// Whether that is all of it.
    pub part: Part,
    /// Common to the parts.
    pub id: u32,
    /// Where it ends by its own account. A frame may be padded beyond.
    pub end: usize,
}

impl Ip {
    /// The key under which the ports of a packet in parts are kept.
    #[inline(always)]
    #[must_use]
    pub fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: self.source,
            destination: self.destination,
            id: self.id,
            proto: u32::from(self.proto),
        }
    }
}

/// Finds the IP header of a frame. `None`: another protocol, or no whole header.
#[inline(always)]
pub fn link<B: Bytes + ?Sized>(bytes: &B) -> Option<Link> {
    let mut at = ETHERTYPE_AT;
    for _ in 0..=VLANS_MAX {
        let ethertype: [u8; 2] = bytes.at(at)?;
        match ethertype {
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => {
                return Some(Link {
                    l3: at + ETHERTYPE_LEN,
                    is_v4: ethertype == ETHERTYPE_IPV4,
                });
            }
            ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => at += VLAN_LEN,
            _ => return None,
        }
    }
    None
}

/// Reads the IP header at an offset.
#[inline(always)]
pub fn ip<B: Bytes + ?Sized>(bytes: &B, link: Link) -> Option<Ip> {
    if link.is_v4 {
        ipv4(bytes, link.l3)
    } else {
        ipv6(bytes, link.l3)
    }
}

const IPV4_MORE_FRAGMENTS: u16 = 0x2000;
const IPV4_FRAGMENT_PLACE: u16 = 0x1fff;

#[inline(always)]
fn ipv4<B: Bytes + ?Sized>(bytes: &B, l3: usize) -> Option<Ip> {
    let header: Ipv4 = bytes.at(l3)?;
    let len = usize::from(header.version_len & 0xf) * 4;
    if header.version_len >> 4 != 4 || len < IPV4_LEN {
        return None;
    }
    let fragment = u16::from_be_bytes(header.fragment);
    Some(Ip {
        source: Addr::from_v4_word(u32::from_ne_bytes(header.source)),
        destination: Addr::from_v4_word(u32::from_ne_bytes(header.destination)),
        l4: l3 + len,
        proto: header.proto,
        part: part(
            fragment & IPV4_FRAGMENT_PLACE != 0,
            fragment & IPV4_MORE_FRAGMENTS != 0,
        ),
        id: u32::from(u16::from_ne_bytes(header.id)),
        end: l3 + usize::from(u16::from_be_bytes(header.total_len)),
    })
}

#[inline(always)]
fn part(has_place: bool, has_more: bool) -> Part {
    match (has_place, has_more) {
        (true, _) => Part::Later,
        (false, true) => Part::First,
        (false, false) => Part::Whole,
    }
}

const IPV6_FRAGMENT_PLACE: u16 = 0xfff8;
const IPV6_MORE_FRAGMENTS: u16 = 1;

#[inline(always)]
fn ipv6<B: Bytes + ?Sized>(bytes: &B, l3: usize) -> Option<Ip> {
    let header: Ipv6 = bytes.at(l3)?;
    if header.version_flow[0] >> 4 != 6 {
        return None;
    }
    let mut ip = Ip {
        source: Addr {
            bytes: header.source,
        },
        destination: Addr {
            bytes: header.destination,
        },
        l4: l3 + IPV6_LEN,
        proto: header.next,
        part: Part::Whole,
        id: 0,
        end: l3 + IPV6_LEN + usize::from(u16::from_be_bytes(header.payload_len)),
    };
    for _ in 0..EXTENSIONS_MAX {
        // What follows a later fragment's header is a piece of anything.
        if matches!(ip.part, Part::Later) || !is_extension(ip.proto) {
            return Some(ip);
        }
        if ip.proto == FRAGMENT {
            let fragment: Ipv6Fragment = bytes.at(ip.l4)?;
            let place = u16::from_be_bytes(fragment.place);
            ip.part = part(
                place & IPV6_FRAGMENT_PLACE != 0,
                place & IPV6_MORE_FRAGMENTS != 0,
            );
            ip.id = u32::from_ne_bytes(fragment.id);
            ip.proto = fragment.next;
            ip.l4 += size_of::<Ipv6Fragment>();
        } else {
            let extension: Extension = bytes.at(ip.l4)?;
            ip.l4 += extension_len(ip.proto, extension.len);
            ip.proto = extension.next;
        }
    }
    (!is_extension(ip.proto)).then_some(ip)
}

#[inline(always)]
fn is_extension(next: u8) -> bool {
    matches!(
        next,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
    )
}

/// The authentication header counts in words of four bytes, and two fewer than there are.
#[inline(always)]
fn extension_len(kind: u8, len: u8) -> usize {
    if kind == AUTHENTICATION {
        (usize::from(len) + 2) * 4
    } else {
        (usize::from(len) + 1) * 8
    }
}

/// The ports at the begin of a transport header: source, destination.
#[inline(always)]
pub fn ports<B: Bytes + ?Sized>(bytes: &B, l4: usize) -> Option<(Port, Port)> {
    let ports: Ports = bytes.at(l4)?;
    Some((
        Port(u16::from_be_bytes(ports.source)),
        Port(u16::from_be_bytes(ports.destination)),
    ))
}

/// A port as it lies in a packet.
#[inline(always)]
#[must_use]
pub const fn port_bytes(port: Port) -> [u8; 2] {
    port.0.to_be_bytes()
}

/// Whether a protocol has Services.
#[inline(always)]
#[must_use]
pub const fn has_services(proto: u8) -> bool {
    matches!(Proto(proto), Proto::TCP | Proto::UDP | Proto::SCTP)
}

/// Offset of the checksum in a transport header.
#[inline(always)]
#[must_use]
pub const fn checksum_offset(proto: u8) -> usize {
    match Proto(proto) {
        Proto::TCP => 16,
        Proto::UDP => 6,
        // SCTP's is 32 bits wide, ICMP's 16.
        Proto::SCTP => 8,
        _ => 2,
    }
}

/// Length of an ICMP header of either version.
pub const ICMP_LEN: usize = 8;

const UNREACHABLE: u8 = 3;
const SOURCE_QUENCH: u8 = 4;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
const V6_UNREACHABLE: u8 = 1;
const V6_PARAMETER_PROBLEM: u8 = 4;

/// Whether an ICMP message holds the packet that it is about. Redirects do, and are left alone: they are
/// about the way to an address, and who asked for a Service knows no other address than the Service's.
#[inline(always)]
#[must_use]
pub const fn is_icmp_error(proto: u8, icmp_type: u8) -> bool {
    match proto {
        ICMP => matches!(
            icmp_type,
            UNREACHABLE | SOURCE_QUENCH | TIME_EXCEEDED | PARAMETER_PROBLEM
        ),
        ICMPV6 => matches!(icmp_type, V6_UNREACHABLE..=V6_PARAMETER_PROBLEM),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const A: Addr = Addr::v4([10, 0, 0, 1]);
    const B: Addr = Addr::v4([10, 96, 0, 10]);

    fn ethernet(ethertypes: &[[u8; 2]]) -> Vec<u8> {
        let mut frame = std::vec![0; ETHERTYPE_AT];
        for (at, ethertype) in ethertypes.iter().enumerate() {
            frame.extend(ethertype);
            if at + 1 < ethertypes.len() {
                frame.extend([0, 1]);
            }
        }
        frame
    }

    fn v4(version_len: u8, fragment: u16) -> Vec<u8> {
        let mut frame = ethernet(&[ETHERTYPE_IPV4]);
        let header = Ipv4 {
            version_len,
            fragment: fragment.to_be_bytes(),
            proto: Proto::UDP.0,
            source: [10, 0, 0, 1],
            destination: [10, 96, 0, 10],
            ..Ipv4::zeroed()
        };
        frame.extend(bytemuck::bytes_of(&header));
        frame
    }

    fn read(frame: &[u8]) -> Option<Ip> {
        ip(frame, link(frame)?)
    }

    #[test]
    fn the_ip_header_is_found_behind_two_tags_and_not_behind_three() {
        let tags = |count| [&[ETHERTYPE_VLAN].repeat(count)[..], &[ETHERTYPE_IPV6]].concat();

        for count in 0..=2 {
            let frame = ethernet(&tags(count));
            let l3 = ETHERNET_LEN + count * VLAN_LEN;
            assert_eq!(link(&frame[..]), Some(Link { l3, is_v4: false }));
        }
        assert_eq!(link(&ethernet(&tags(3))[..]), None);
        assert_eq!(link(&ethernet(&[[0x08, 0x06]])[..]), None, "ARP");
    }

    #[test]
    fn options_of_ipv4_are_stepped_over() {
        let plain = read(&v4(0x45, 0)).unwrap();
        let options = read(&v4(0x46, 0)).unwrap();

        assert_eq!((plain.source, plain.destination), (A, B));
        assert_eq!((plain.l4, options.l4), (34, 38));
        assert_eq!(read(&v4(0x44, 0)), None, "shorter than a header");
        assert_eq!(read(&v4(0x65, 0)), None, "another version");
    }

    #[test]
    fn a_fragment_is_first_or_later() {
        let part = |fragment| read(&v4(0x45, fragment)).unwrap().part;

        assert_eq!(part(0x4000), Part::Whole, "do not fragment");
        assert_eq!(part(0x2000), Part::First);
        assert_eq!(part(0x2010), Part::Later);
        assert_eq!(part(0x0010), Part::Later, "the last");
    }

    #[test]
    fn extension_headers_are_followed_to_the_transport_header() {
        let mut frame = ethernet(&[ETHERTYPE_IPV6]);
        let header = Ipv6 {
            version_flow: [0x60, 0, 0, 0],
            next: HOP_BY_HOP,
            ..Ipv6::zeroed()
        };
        frame.extend(bytemuck::bytes_of(&header));
        frame.extend([AUTHENTICATION, 1]);
        frame.extend([0; 14]);
        frame.extend([FRAGMENT, 1]);
        frame.extend([0; 10]);
        let fragment = |place: u16| {
            let [high, low] = place.to_be_bytes();
            [Proto::TCP.0, 0, high, low, 0, 0, 0, 7]
        };
        let with = |place| [&frame[..], &fragment(place)].concat();

        let first = read(&with(1)).unwrap();
        assert_eq!((first.proto, first.part), (Proto::TCP.0, Part::First));
        assert_eq!((first.l4, first.id), (90, u32::from_ne_bytes([0, 0, 0, 7])));
        assert_eq!(read(&with(8)).unwrap().part, Part::Later);
        assert_eq!(
            read(&with(0)).unwrap().part,
            Part::Whole,
            "an atomic fragment"
        );
    }

    #[test]
    fn a_frame_that_ends_early_is_no_packet() {
        let frame = v4(0x45, 0);
        for len in 0..frame.len() {
            assert_eq!(read(&frame[..len]), None, "{len}");
        }
        assert!(read(&frame).is_some());
    }
}
