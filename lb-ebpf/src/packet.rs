//! Packets as safe values: what a TC program may read, and rewriting that keeps checksums right, so that
//! forgetting one cannot be written. Reading is direct; writing goes through the kernel's helpers, which
//! know about shared, paged and partly checksummed buffers.
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets of headers, and what helpers return wider than it is"
)]
#![expect(
    unsafe_code,
    reason = "packet bytes are pointers, and helpers take the context as one"
)]

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::{bpf_csum_diff, bpf_redirect, bpf_skb_change_head, bpf_skb_change_tail},
    programs::TcContext,
};
use bytemuck::Pod;
use lb_common::{
    addr::{Addr, Port, Proto},
    flow::{End, FlowKey, FragmentKey, Hook, seen},
    wire::{self, Bytes, Ip, Link, Part},
};

use crate::flows::Flows;

/// Everything before a transport header ends below this; the verifier wants a bound.
const OFFSET_MAX: usize = 1024;

/// What is read of most packets: Ethernet, IPv6 and TCP headers.
const HEADERS_LEN: u32 = 74;

/// A packet at a TC hook.
pub(crate) struct Packet {
    ctx: TcContext,
}

/// The headers of a packet of a protocol that has Services. Offsets are 16 bits wide, so that the
/// verifier knows a bound wherever they are taken from memory.
#[derive(Clone, Copy)]
pub(crate) struct View {
    pub(crate) source: End,
    pub(crate) destination: End,
    pub(crate) id: u32,
    /// What [`seen`] says of it.
    pub(crate) seen: u32,
    l3: u16,
    l4: u16,
    end: u16,
    pub(crate) part: Part,
    pub(crate) proto: Proto,
    pub(crate) is_v4: bool,
}

/// Which of a packet's two addresses.
#[derive(Clone, Copy)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// The kernel would not change the packet.
pub(crate) struct Unwritable;

/// What a packet is to us.
pub(crate) enum Read {
    /// It has ports, or had when its first part came by.
    Flow(View),
    /// ICMP of either version.
    Icmp,
    /// No IP, cut short, or a protocol without Services.
    Other,
}

impl View {
    #[inline(always)]
    pub(crate) fn new(link: Link, ip: &Ip, ports: (Port, Port), seen: u32) -> Self {
        let end = |addr, port| End { addr, port };
        Self {
            source: end(ip.source, ports.0),
            destination: end(ip.destination, ports.1),
            l3: link.l3 as u16,
            l4: ip.l4 as u16,
            end: ip.end as u16,
            is_v4: link.is_v4,
            id: ip.id,
            part: ip.part,
            proto: Proto(ip.proto),
            seen,
        }
    }

    /// Where the IP header begins.
    #[inline(always)]
    pub(crate) fn l3(&self) -> usize {
        usize::from(self.l3)
    }

    /// Where the transport header begins.
    #[inline(always)]
    pub(crate) fn l4(&self) -> usize {
        usize::from(self.l4)
    }

    /// Where the packet ends.
    #[inline(always)]
    pub(crate) fn end(&self) -> usize {
        usize::from(self.end)
    }

    #[inline(always)]
    fn link(&self) -> Link {
        Link {
            l3: self.l3(),
            is_v4: self.is_v4,
        }
    }

    /// The key under which the ports of a packet in parts are kept.
    #[inline(always)]
    pub(crate) fn fragment_key(&self) -> FragmentKey {
        FragmentKey {
            source: self.source.addr,
            destination: self.destination.addr,
            id: self.id,
            proto: u32::from(self.proto.0),
        }
    }

    /// The key of the packet at a hook.
    #[inline(always)]
    pub(crate) fn key(&self, hook: Hook) -> FlowKey {
        FlowKey::new(self.source, self.destination, self.proto, hook)
    }

    /// Whether this asks for a new connection, whatever there is with these addresses.
    #[inline(always)]
    pub(crate) fn begins_anew(&self) -> bool {
        match self.proto {
            Proto::TCP => self.seen & (seen::SYN | seen::ANSWER) == seen::SYN,
            Proto::SCTP => self.seen & (seen::INIT | seen::ANSWER) == seen::INIT,
            _ => false,
        }
    }

    /// Whether this may be the first packet of a flow. Only TCP says.
    #[inline(always)]
    pub(crate) fn may_begin(&self) -> bool {
        self.proto != Proto::TCP || self.begins_anew()
    }
}

impl Bytes for Packet {
    #[inline(always)]
    fn at<T: Pod>(&self, offset: usize) -> Option<T> {
        if offset > OFFSET_MAX {
            return None;
        }
        let start = self.ctx.data() + offset;
        if start + size_of::<T>() > self.ctx.data_end() {
            return None;
        }
        // SAFETY: the bytes lie in the packet, as was just compared; any bytes are a T.
        Some(unsafe { ptr::read_unaligned(start as *const T) })
    }
}

impl Packet {
    /// Headers that the driver left in pages are brought to where programs can read them.
    #[inline(always)]
    pub(crate) fn new(ctx: TcContext) -> Self {
        let linear = ctx.data_end().wrapping_sub(ctx.data());
        let wanted = HEADERS_LEN.min(ctx.len());
        if linear < wanted as usize {
            // What is still missing then is missing in the packet.
            let _ = ctx.pull_data(wanted);
        }
        Self { ctx }
    }

    /// What the kernel gave the program.
    #[inline(always)]
    pub(crate) fn context(&self) -> *mut __sk_buff {
        self.ctx.skb.skb
    }

    /// Reads the headers up to the ports.
    #[inline(always)]
    pub(crate) fn read(&self) -> Read {
        let Some((link, ip)) = self.ip() else {
            return Read::Other;
        };
        if matches!(ip.proto, wire::ICMP | wire::ICMPV6) {
            return Read::Icmp;
        }
        if !wire::has_services(ip.proto) {
            return Read::Other;
        }
        let ports = match ip.part {
            Part::Later => Flows.ports(&ip.fragment_key()),
            Part::Whole | Part::First => wire::ports(self, ip.l4),
        };
        let Some((source, destination)) = ports else {
            return Read::Other;
        };
        Read::Flow(View::new(link, &ip, (source, destination), self.seen(&ip)))
    }

    /// Reads the headers up to what the IP packet carries.
    #[inline(always)]
    pub(crate) fn ip(&self) -> Option<(Link, Ip)> {
        let link = wire::link(self)?;
        Some((link, wire::ip(self, link)?))
    }

    #[inline(always)]
    fn seen(&self, ip: &Ip) -> u32 {
        const TCP_FLAGS_AT: usize = 13;
        const SCTP_CHUNK_AT: usize = 12;
        let byte = |at| self.at::<u8>(ip.l4 + at).unwrap_or(0);
        if matches!(ip.part, Part::Later) {
            return seen::PACKET;
        }
        match Proto(ip.proto) {
            Proto::TCP => seen::tcp(byte(TCP_FLAGS_AT)),
            Proto::SCTP => seen::sctp(byte(SCTP_CHUNK_AT)),
            _ => seen::PACKET,
        }
    }

    /// Replaces one side's address and port.
    #[inline(always)]
    pub(crate) fn rewrite(&mut self, view: &View, side: Side, by: End) -> Result<(), Unwritable> {
        let old = match side {
            Side::Source => view.source,
            Side::Destination => view.destination,
        };
        if !matches!(view.part, Part::Later) {
            self.rewrite_port(view, side, old, by)?;
        }
        self.rewrite_addr(view.link(), side, old.addr, by.addr)
    }

    #[inline(always)]
    fn rewrite_port(
        &mut self,
        view: &View,
        side: Side,
        old: End,
        by: End,
    ) -> Result<(), Unwritable> {
        let (l4, proto) = (view.l4(), view.proto);
        if proto != Proto::SCTP {
            let at = l4 + wire::checksum_offset(proto.0);
            self.replace_checksum(at, proto, view.is_v4, old, by)?;
        }
        let at = match side {
            Side::Source => l4,
            Side::Destination => l4 + 2,
        };
        self.store(at, &wire::port_bytes(by.port))
    }

    /// Of TCP and UDP, over the addresses and ports. Without a checksum (UDP over IPv4) it stays so.
    #[inline(always)]
    fn replace_checksum(
        &mut self,
        at: usize,
        proto: Proto,
        is_v4: bool,
        old: End,
        by: End,
    ) -> Result<(), Unwritable> {
        let mangled = match proto {
            Proto::UDP => u64::from(BPF_F_MARK_MANGLED_0),
            _ => 0,
        };
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | mangled;
        let port = |port: Port| u64::from(u16::from_ne_bytes(wire::port_bytes(port)));
        let replaced = if is_v4 {
            let [.., from] = old.addr.words();
            let [.., to] = by.addr.words();
            self.ctx
                .skb
                .l4_csum_replace(at, from.into(), to.into(), pseudo | 4)
        } else {
            let difference = difference(old.addr, by.addr);
            self.ctx
                .skb
                .l4_csum_replace(at, 0, difference.into(), pseudo)
        };
        replaced.map_err(|_| Unwritable)?;
        self.ctx
            .skb
            .l4_csum_replace(at, port(old.port), port(by.port), mangled | 2)
            .map_err(|_| Unwritable)
    }

    #[inline(always)]
    pub(crate) fn rewrite_addr(
        &mut self,
        link: Link,
        side: Side,
        old: Addr,
        by: Addr,
    ) -> Result<(), Unwritable> {
        const V4_CHECKSUM_AT: usize = 10;
        const V4_SOURCE_AT: usize = 12;
        const V6_SOURCE_AT: usize = 8;
        let (source, len) = if link.is_v4 {
            (V4_SOURCE_AT, 4)
        } else {
            (V6_SOURCE_AT, 16)
        };
        let at = link.l3
            + match side {
                Side::Source => source,
                Side::Destination => source + len,
            };
        if !link.is_v4 {
            return self.store(at, &by.words());
        }
        let [.., from] = old.words();
        let [.., to] = by.words();
        self.ctx
            .skb
            .l3_csum_replace(link.l3 + V4_CHECKSUM_AT, from.into(), to.into(), 4)
            .map_err(|_| Unwritable)?;
        self.store(at, &to)
    }

    #[inline(always)]
    pub(crate) fn store<T: Pod>(&mut self, at: usize, value: &T) -> Result<(), Unwritable> {
        self.ctx.skb.store(at, value, 0).map_err(|_| Unwritable)
    }

    /// Copies bytes out, from pages too.
    #[inline(always)]
    pub(crate) fn load<T: Pod>(&self, at: usize) -> Option<T> {
        self.ctx.load(at).ok()
    }

    /// Adapts a 16-bit checksum over no pseudo header to a port that changed.
    #[inline(always)]
    pub(crate) fn replace_port_in_sum(
        &mut self,
        at: usize,
        old: Port,
        new: Port,
    ) -> Result<(), Unwritable> {
        let port = |port: Port| u64::from(u16::from_ne_bytes(wire::port_bytes(port)));
        self.ctx
            .skb
            .l4_csum_replace(at, port(old), port(new), 2)
            .map_err(|_| Unwritable)
    }

    /// Adapts a 16-bit checksum to an IPv6 address that changed, in the pseudo header or in what it
    /// covers.
    #[inline(always)]
    pub(crate) fn replace_addr_in_sum(
        &mut self,
        at: usize,
        old: Addr,
        new: Addr,
        in_pseudo_header: bool,
    ) -> Result<(), Unwritable> {
        let flags = if in_pseudo_header {
            u64::from(BPF_F_PSEUDO_HDR)
        } else {
            0
        };
        self.ctx
            .skb
            .l4_csum_replace(at, 0, difference(old, new).into(), flags)
            .map_err(|_| Unwritable)
    }

    /// Adapts an IPv4 header's checksum to two bytes, as they lie in it, that changed.
    #[inline(always)]
    pub(crate) fn replace_header_sum(
        &mut self,
        at: usize,
        old: u16,
        new: u16,
    ) -> Result<(), Unwritable> {
        self.ctx
            .skb
            .l3_csum_replace(at, old.into(), new.into(), 2)
            .map_err(|_| Unwritable)
    }

    /// Cuts or lengthens the packet at its end.
    #[inline(always)]
    pub(crate) fn set_len(&mut self, len: usize) -> Result<(), Unwritable> {
        // SAFETY: the context is live, and nothing that was read before is used as a pointer after.
        match unsafe { bpf_skb_change_tail(self.ctx.skb.skb, len as u32, 0) } {
            0 => Ok(()),
            _ => Err(Unwritable),
        }
    }

    /// Makes room before the link-layer header.
    #[inline(always)]
    pub(crate) fn push(&mut self, len: usize) -> Result<(), Unwritable> {
        // SAFETY: as for `set_len`.
        match unsafe { bpf_skb_change_head(self.ctx.skb.skb, len as u32, 0) } {
            0 => Ok(()),
            _ => Err(Unwritable),
        }
    }

    /// Sends the packet out of the interface at which the program runs. Returns the program's verdict.
    #[inline(always)]
    pub(crate) fn send_back(&self) -> i32 {
        // SAFETY: the helper takes integers.
        (unsafe { bpf_redirect(self.interface(), 0) }) as i32
    }

    /// The interface at which the program runs.
    #[inline(always)]
    pub(crate) fn interface(&self) -> u32 {
        // SAFETY: the kernel passes a live context.
        let field = unsafe { &raw const (*self.ctx.skb.skb).ifindex };
        // SAFETY: as above; volatile keeps the access at the field's own offset and width.
        unsafe { field.read_volatile() }
    }

    /// Whether a process of this node sent it: it came in by no interface.
    #[inline(always)]
    pub(crate) fn is_from_node(&self) -> bool {
        // SAFETY: the kernel passes a live context.
        let field = unsafe { &raw const (*self.ctx.skb.skb).ingress_ifindex };
        // SAFETY: as above.
        unsafe { field.read_volatile() == 0 }
    }
}

/// The ones' complement sum of bytes, added to another, not folded. Whatever the machine's byte order, a
/// sum of words as they lie in memory is the sum as it is to lie in memory.
#[inline(always)]
pub(crate) fn sum_of<T: Pod>(value: &T, sum: u32) -> u32 {
    const { assert!(size_of::<T>().is_multiple_of(4) && size_of::<T>() <= 512) };
    let bytes = ptr::from_ref(value).cast_mut().cast();
    // SAFETY: reads a T, whose length is a multiple of four, and compares it with nothing.
    let sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, bytes, size_of::<T>() as u32, sum) };
    sum as u32
}

/// What a checksum changes by when one IPv6 address takes the place of another.
#[inline(always)]
fn difference(old: Addr, new: Addr) -> u32 {
    let (mut old, mut new) = (old.words(), new.words());
    // SAFETY: both are 16 bytes on the stack, a multiple of four.
    let sum = unsafe { bpf_csum_diff(old.as_mut_ptr(), 16, new.as_mut_ptr(), 16, 0) };
    sum as u32
}
