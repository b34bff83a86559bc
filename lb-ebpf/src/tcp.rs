//! `bpf_sock_ops` and `bpf_sock` as safe values: what the kernel tells of a socket beside the calls of
//! its application. Apart from `sock.rs`, since these are contexts of other programs.
#![expect(
    unsafe_code,
    reason = "the context is a pointer whose fields the verifier wants read one by one"
)]

use core::ptr;

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_TCP_CLOSE, BPF_TCP_SYN_RECV, BPF_TCP_SYN_SENT, bpf_sock_ops,
    },
    helpers::bpf_sock_ops_cb_flags_set,
    programs::{SockContext, SockOpsContext},
};
use lb_common::{
    addr::{Addr, Port},
    tables::Socket,
};

use crate::maps::Maps;

const AF_INET: u32 = 2;
const IPPROTO_UDP: u32 = 17;

/// What happens to a TCP socket.
pub(crate) enum Event {
    /// Its first packet is about to be sent.
    Connect,
    /// It ends; it may have been reset, or never established.
    Close { was_established: bool },
}

/// A TCP socket to which something happens.
pub(crate) struct Tcp {
    ops: *mut bpf_sock_ops,
}

impl Tcp {
    #[inline(always)]
    pub(crate) fn new(ctx: SockOpsContext) -> Self {
        Self { ops: ctx.ops }
    }

    /// `None` for what is nothing to us.
    #[inline(always)]
    pub(crate) fn event(&self) -> Option<Event> {
        // SAFETY: the kernel passes a live context.
        let op = unsafe { &raw const (*self.ops).op };
        // SAFETY: as above; volatile keeps each access at the field's own offset and width.
        match unsafe { op.read_volatile() } {
            BPF_SOCK_OPS_TCP_CONNECT_CB => Some(Event::Connect),
            BPF_SOCK_OPS_STATE_CB => self.change_of_state(),
            _ => None,
        }
    }

    #[inline(always)]
    fn change_of_state(&self) -> Option<Event> {
        // SAFETY: as in `event`; a union of arrays of the same words.
        let args = unsafe { &raw const (*self.ops).__bindgen_anon_1.args }.cast::<u32>();
        // SAFETY: as in `event`: the states before and after.
        let state = |at: usize| unsafe { ptr::read_volatile(args.wrapping_add(at)) };
        let was_established = !matches!(state(0), BPF_TCP_SYN_SENT | BPF_TCP_SYN_RECV);
        (state(1) == BPF_TCP_CLOSE).then_some(Event::Close { was_established })
    }

    /// The socket with its memory, if it asked for a Service.
    #[inline(always)]
    pub(crate) fn remembering(&mut self) -> Option<Remembering<'_>> {
        // SAFETY: as in `event`.
        let sk = unsafe { &raw const (*self.ops).__bindgen_anon_2.sk };
        // SAFETY: as in `event`; null where the kernel has no whole socket.
        let sk = unsafe { sk.read_volatile() };
        // SAFETY: the kernel gave us the socket, and holds its lock while this program runs; `&mut self`
        // lets there be one such reference.
        let memory = unsafe { Maps.memory_of(sk) }?;
        let ops = self.ops;
        Some(Remembering { ops, memory })
    }
}

/// A TCP socket that asked for a Service at some time.
pub(crate) struct Remembering<'a> {
    ops: *mut bpf_sock_ops,
    pub(crate) memory: &'a mut Socket,
}

impl Remembering<'_> {
    /// Whom the socket really talks to.
    #[inline(always)]
    pub(crate) fn peer(&self) -> (Addr, Port) {
        // SAFETY: the kernel passes a live context.
        let port = unsafe { &raw const (*self.ops).remote_port };
        // SAFETY: as above; the port's two bytes come last in memory.
        let [.., high, low] = unsafe { port.read_volatile() }.to_ne_bytes();
        (self.addr(), Port(u16::from_be_bytes([high, low])))
    }

    /// Reads the address of both families and then takes one: read in two branches, the compiler makes
    /// one access of them, at a computed place, which the verifier refuses.
    #[inline(always)]
    fn addr(&self) -> Addr {
        // SAFETY: as in `peer`.
        let family = unsafe { &raw const (*self.ops).family };
        // SAFETY: as in `peer`.
        let v4 = unsafe { &raw const (*self.ops).remote_ip4 };
        // SAFETY: as in `peer`.
        let v6 = unsafe { &raw const (*self.ops).remote_ip6 }.cast::<u32>();
        // SAFETY: as in `peer`; an address of the other family is any number.
        let read = |word: *const u32| unsafe { word.read_volatile() };
        let words = [0, 1, 2, 3].map(|at| read(v6.wrapping_add(at)));
        let v4 = read(v4);
        if read(family) == AF_INET {
            Addr::from_v4_word(v4)
        } else {
            Addr::from_words(words)
        }
    }

    /// Asks to be told of changes of state from here on, beside what others asked for.
    #[inline(always)]
    pub(crate) fn follow(&self) {
        // SAFETY: as in `peer`.
        let flags = unsafe { &raw const (*self.ops).bpf_sock_ops_cb_flags };
        // SAFETY: as in `peer`.
        let flags = unsafe { flags.read_volatile() } | BPF_SOCK_OPS_STATE_CB_FLAG;
        // SAFETY: the context is live. It fails for none but sockets without a memory.
        unsafe { bpf_sock_ops_cb_flags_set(self.ops, flags.cast_signed()) };
    }

    /// Bytes that the peer acknowledged, and bytes received from it. As TCP numbers them: the SYN and
    /// each FIN count as one.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> (u64, u64) {
        // SAFETY: as in `peer`.
        let out = unsafe { &raw const (*self.ops).bytes_acked };
        // SAFETY: as in `peer`.
        let in_ = unsafe { &raw const (*self.ops).bytes_received };
        // SAFETY: as in `peer`.
        let read = |field: *const u64| unsafe { field.read_volatile() };
        (read(out), read(in_))
    }
}

/// A socket that its last owner has closed.
pub(crate) struct Released {
    ctx: SockContext,
}

impl Released {
    #[inline(always)]
    pub(crate) fn new(ctx: SockContext) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    pub(crate) fn is_udp(&self) -> bool {
        // SAFETY: the kernel passes a live context.
        let protocol = unsafe { &raw const (*self.ctx.sock).protocol };
        // SAFETY: as above.
        unsafe { protocol.read_volatile() == IPPROTO_UDP }
    }

    /// What the socket asked for, if it asked for a Service. For UDP only: a TCP socket may be closing
    /// on another CPU, as this hook does not hold its lock.
    #[inline(always)]
    pub(crate) fn memory_mut(&mut self) -> Option<&mut Socket> {
        if !self.is_udp() {
            return None;
        }
        // SAFETY: the kernel gave us the socket. No call on it can be under way, as its last owner is
        // closing it, and only calls use the memory of a UDP socket.
        unsafe { Maps.memory_of(self.ctx.sock) }
    }
}
