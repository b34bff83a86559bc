//! The verdict "reject" on a packet: its sender is told at once, by a TCP reset or by ICMP "port
//! unreachable", from the address that it asked. The packet itself becomes the answer and goes back by
//! the interface it came from.
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "lengths of headers, and of packets, which say them in 16 bits"
)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use bytemuck::{Pod, Zeroable};
use lb_common::{
    addr::Proto,
    flow::seen,
    reason::Reason,
    wire::{self, ETHERNET_LEN, ICMP_LEN, Ipv4, Ipv6, Part},
};

use crate::{
    calls::handed_over,
    packet::{Packet, Unwritable, View, sum_of},
    verdict::{Outcome, finish_packet},
};

#[classifier]
pub(crate) fn nh_reset(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    answer(&mut packet, |packet, view| {
        // A reset is never answered.
        if view.seen & seen::RST != 0 {
            Err(Unwritable)
        } else if view.is_v4 {
            reset::<true>(packet, view)
        } else {
            reset::<false>(packet, view)
        }
    })
}

#[classifier]
pub(crate) fn nh_unreachable(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    answer(&mut packet, |packet, view| {
        // With options, extension headers or tags, a packet gets no answer.
        match view.l4() - view.l3() {
            V4_LEN if view.is_v4 && view.l3() == ETHERNET_LEN => unreachable_v4(packet, view),
            V6_LEN if !view.is_v4 && view.l3() == ETHERNET_LEN => unreachable_v6(packet, view),
            _ => Err(Unwritable),
        }
    })
}

/// Makes a packet that is refused into the answer. One that could not become the answer is dropped.
#[inline(always)]
fn answer(
    packet: &mut Packet,
    make: impl FnOnce(&mut Packet, &View) -> Result<(), Unwritable>,
) -> i32 {
    let Some(left) = handed_over() else {
        return finish_packet(packet, Outcome::Drop(Reason::DropUnwritable));
    };
    let is_whole = matches!(left.view.part, Part::Whole);
    let outcome = match is_whole && make(packet, &left.view).is_ok() {
        true => Outcome::Reject(left.reason),
        false => Outcome::Drop(left.reason),
    };
    finish_packet(packet, outcome)
}

const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
const TCP_LEN: usize = 20;
/// Of the transport header, so much is quoted.
const QUOTED_LEN: usize = 8;
const HOPS: u8 = 64;

#[inline(always)]
fn reset<const IS_V4: bool>(packet: &mut Packet, view: &View) -> Result<(), Unwritable> {
    let (l3, l4) = (view.l3(), view.l4());
    let old: Tcp = packet.load(l4).ok_or(Unwritable)?;
    let tcp_len = view.end().saturating_sub(l4);
    let mut new = reset_header(&old, tcp_len);
    let pseudo = |len| pseudo::<IS_V4>(view, len, Proto::TCP.0);
    // Where the kernel left the sum to whoever sends the packet at last, it holds the pseudo header's.
    new.sum = if old.sum == fold(pseudo(tcp_len)) {
        fold(pseudo(TCP_LEN))
    } else {
        !fold(sum_of(&new, pseudo(TCP_LEN)))
    };
    let macs: [u8; 12] = packet.load(0).ok_or(Unwritable)?;

    packet.set_len(l4 + TCP_LEN)?;
    packet.store(l4, &new)?;
    packet.store(0, &swapped(macs))?;
    if IS_V4 {
        // The sum over two addresses is the same in either order.
        let addrs = [
            view.destination.addr.words()[3],
            view.source.addr.words()[3],
        ];
        packet.store(l3 + 12, &addrs)?;
        replace_v4_word(packet, l3, 2, (l4 - l3 + TCP_LEN) as u16)?;
        replace_v4_word(packet, l3, 8, u16::from_be_bytes([HOPS, Proto::TCP.0]))
    } else {
        packet.store(l3 + 8, &view.destination.addr.words())?;
        packet.store(l3 + 24, &view.source.addr.words())?;
        let len = (l4 - l3 - V6_LEN + TCP_LEN) as u16;
        packet.store(l3 + 4, &len.to_be_bytes())?;
        packet.store(l3 + 7, &HOPS)
    }
}

/// A TCP header, as it lies in a packet.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Tcp {
    source: u16,
    destination: u16,
    sequence: u32,
    acknowledged: u32,
    len: u8,
    flags: u8,
    window: u16,
    sum: u16,
    urgent: u16,
}

/// RFC 9293, 3.5.2: at the place that the packet acknowledges, or else acknowledging all of it.
#[inline(always)]
fn reset_header(old: &Tcp, tcp_len: usize) -> Tcp {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let new = Tcp {
        source: old.destination,
        destination: old.source,
        len: (TCP_LEN as u8 / 4) << 4,
        ..Tcp::zeroed()
    };
    if old.flags & ACK != 0 {
        return Tcp {
            sequence: old.acknowledged,
            flags: RST,
            ..new
        };
    }
    let data = tcp_len.saturating_sub(usize::from(old.len >> 4) * 4);
    let counted = data as u32 + u32::from(old.flags & SYN != 0) + u32::from(old.flags & FIN != 0);
    Tcp {
        acknowledged: u32::from_be(old.sequence).wrapping_add(counted).to_be(),
        flags: RST | ACK,
        ..new
    }
}

/// Replaces two bytes of an IPv4 header and adapts its checksum.
#[inline(always)]
fn replace_v4_word(packet: &mut Packet, l3: usize, at: usize, to: u16) -> Result<(), Unwritable> {
    let old: u16 = packet.load(l3 + at).ok_or(Unwritable)?;
    packet.replace_header_sum(l3 + 10, old, to.to_be())?;
    packet.store(l3 + at, &to.to_be())
}

#[inline(always)]
fn unreachable_v4(packet: &mut Packet, view: &View) -> Result<(), Unwritable> {
    const QUOTE: usize = V4_LEN + QUOTED_LEN;
    let l3 = view.l3();
    let mut icmp = Icmp::new(3, 3);
    let quote: [u32; QUOTE / 4] = packet.load(l3).ok_or(Unwritable)?;
    icmp.sum = !fold(sum_of(&quote, sum_of(&icmp, 0)));
    let mut ip = Ipv4 {
        version_len: 0x45,
        total_len: ((V4_LEN + ICMP_LEN + QUOTE) as u16).to_be_bytes(),
        fragment: [0x40, 0],
        ttl: HOPS,
        proto: wire::ICMP,
        source: view.destination.addr.words()[3].to_ne_bytes(),
        destination: view.source.addr.words()[3].to_ne_bytes(),
        ..Ipv4::zeroed()
    };
    ip.checksum = (!fold(sum_of(&ip, 0))).to_ne_bytes();
    let ethernet = packet.load(0).ok_or(Unwritable)?;

    packet.set_len(l3 + QUOTE)?;
    packet.push(V4_LEN + ICMP_LEN)?;
    packet.store(0, &answered(ethernet))?;
    packet.store(ETHERNET_LEN, &ip)?;
    packet.store(ETHERNET_LEN + V4_LEN, &icmp)
}

#[inline(always)]
fn unreachable_v6(packet: &mut Packet, view: &View) -> Result<(), Unwritable> {
    const QUOTE: usize = V6_LEN + QUOTED_LEN;
    let l3 = view.l3();
    let mut icmp = Icmp::new(1, 4);
    let quote: [u32; QUOTE / 4] = packet.load(l3).ok_or(Unwritable)?;
    let pseudo = pseudo::<false>(view, ICMP_LEN + QUOTE, wire::ICMPV6);
    icmp.sum = !fold(sum_of(&quote, sum_of(&icmp, pseudo)));
    let ip = Ipv6 {
        version_flow: [0x60, 0, 0, 0],
        payload_len: ((ICMP_LEN + QUOTE) as u16).to_be_bytes(),
        next: wire::ICMPV6,
        hops: HOPS,
        source: view.destination.addr.bytes,
        destination: view.source.addr.bytes,
    };
    let ethernet = packet.load(0).ok_or(Unwritable)?;

    packet.set_len(l3 + QUOTE)?;
    packet.push(V6_LEN + ICMP_LEN)?;
    packet.store(0, &answered(ethernet))?;
    packet.store(ETHERNET_LEN, &ip)?;
    packet.store(ETHERNET_LEN + V6_LEN, &icmp)
}

/// The header of an ICMP error of either version.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Icmp {
    kind: u8,
    code: u8,
    sum: u16,
    unused: u32,
}

impl Icmp {
    #[inline(always)]
    fn new(kind: u8, code: u8) -> Self {
        Self {
            kind,
            code,
            ..Self::zeroed()
        }
    }
}

/// An Ethernet header for the way back.
#[inline(always)]
fn answered(ethernet: [u8; ETHERNET_LEN]) -> [u8; ETHERNET_LEN] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, x, y] = ethernet;
    [g, h, i, j, k, l, a, b, c, d, e, f, x, y]
}

#[inline(always)]
fn swapped(macs: [u8; 12]) -> [u8; 12] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = macs;
    [g, h, i, j, k, l, a, b, c, d, e, f]
}

/// The sum over the pseudo header, in either direction.
#[inline(always)]
fn pseudo<const IS_V4: bool>(view: &View, len: usize, proto: u8) -> u32 {
    let numbers = [(len as u16).to_be(), u16::from(proto).to_be()];
    let (source, destination) = (view.source.addr.words(), view.destination.addr.words());
    if IS_V4 {
        return sum_of(&[source[3], destination[3]], sum_of(&numbers, 0));
    }
    sum_of(&source, sum_of(&destination, sum_of(&numbers, 0)))
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}
