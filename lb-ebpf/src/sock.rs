//! `bpf_sock_addr` as safe values: the address a socket call names, in the form of the tables. One of
//! the two places where a port changes its byte order, and where the address families part.
#![expect(
    unsafe_code,
    reason = "the context is a pointer whose fields the verifier wants read one by one"
)]

use core::{marker::PhantomData, ptr};

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_boot_ns, bpf_set_retval},
    programs::SockAddrContext,
};
use lb_common::{
    addr::{Addr, Port, Proto},
    select::{Flow, Origin},
    tables::{Client, Peer, Socket},
};

use crate::maps::Maps;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

/// Where in the context an address family keeps its address.
pub(crate) trait Family {
    fn addr(ctx: *const bpf_sock_addr) -> Addr;
    fn set_addr(ctx: *mut bpf_sock_addr, addr: Addr);
    /// The loopback address that is reached from where `addr` would be.
    fn loopback(addr: Addr) -> Addr;
}

/// Programs whose names end in 4.
pub(crate) enum V4 {}

/// Programs whose names end in 6; they also see IPv4-mapped addresses.
pub(crate) enum V6 {}

const LOOPBACK_V4: Addr = Addr::v4([127, 0, 0, 1]);
const LOOPBACK_V6: Addr = Addr {
    bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
};

impl Family for V4 {
    #[inline(always)]
    fn addr(ctx: *const bpf_sock_addr) -> Addr {
        // SAFETY: the kernel passes a live context.
        let word = unsafe { &raw const (*ctx).user_ip4 };
        // SAFETY: as above; volatile keeps the access at the field's own offset and width.
        Addr::from_v4_word(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn set_addr(ctx: *mut bpf_sock_addr, addr: Addr) {
        // SAFETY: the kernel passes a live context, and these hooks may write this field.
        let word = unsafe { &raw mut (*ctx).user_ip4 };
        // SAFETY: as above.
        unsafe { word.write_volatile(addr.words()[3]) };
    }

    #[inline(always)]
    fn loopback(_addr: Addr) -> Addr {
        LOOPBACK_V4
    }
}

impl Family for V6 {
    #[inline(always)]
    fn addr(ctx: *const bpf_sock_addr) -> Addr {
        // SAFETY: the kernel passes a live context.
        let words = unsafe { &raw const (*ctx).user_ip6 }.cast::<u32>();
        // SAFETY: four words, read one by one: a 16-byte copy would add to the context pointer first,
        // which the verifier refuses.
        let word = |at: usize| unsafe { ptr::read_volatile(words.wrapping_add(at)) };
        Addr::from_words([word(0), word(1), word(2), word(3)])
    }

    #[inline(always)]
    fn set_addr(ctx: *mut bpf_sock_addr, addr: Addr) {
        // SAFETY: the kernel passes a live context, and these hooks may write this field.
        let words = unsafe { &raw mut (*ctx).user_ip6 }.cast::<u32>();
        let [a, b, c, d] = addr.words();
        // SAFETY: four words, written one by one, as for reading.
        let write =
            |at: usize, word: u32| unsafe { ptr::write_volatile(words.wrapping_add(at), word) };
        write(0, a);
        write(1, b);
        write(2, c);
        write(3, d);
    }

    #[inline(always)]
    fn loopback(addr: Addr) -> Addr {
        if addr.is_v4() {
            LOOPBACK_V4
        } else {
            LOOPBACK_V6
        }
    }
}

/// One socket call: its address can be read and replaced, and its socket has a memory.
pub(crate) struct SockAddr<F> {
    ctx: SockAddrContext,
    family: PhantomData<F>,
}

impl<F: Family> SockAddr<F> {
    #[inline(always)]
    pub(crate) fn new(ctx: SockAddrContext) -> Self {
        Self {
            ctx,
            family: PhantomData,
        }
    }

    /// The address in the call: a destination, or the source of what was received.
    #[inline(always)]
    pub(crate) fn addr(&self) -> Addr {
        F::addr(self.ctx.sock_addr)
    }

    /// Its port.
    #[inline(always)]
    pub(crate) fn port(&self) -> Port {
        // SAFETY: the kernel passes a live context.
        let word = unsafe { &raw const (*self.ctx.sock_addr).user_port };
        // SAFETY: as above; the port's two bytes come first in memory.
        let [high, low, ..] = unsafe { word.read_volatile() }.to_ne_bytes();
        Port(u16::from_be_bytes([high, low]))
    }

    /// What is asked for; `None` if the protocol has no Services here.
    #[inline(always)]
    pub(crate) fn flow(&self) -> Option<Flow> {
        let proto = self.proto()?;
        Some(Flow {
            addr: self.addr(),
            port: self.port(),
            proto,
            origin: Origin::Node,
        })
    }

    #[inline(always)]
    fn proto(&self) -> Option<Proto> {
        // SAFETY: the kernel passes a live context.
        let word = unsafe { &raw const (*self.ctx.sock_addr).protocol };
        // SAFETY: as above.
        match unsafe { word.read_volatile() } {
            IPPROTO_TCP => Some(Proto::TCP),
            IPPROTO_UDP => Some(Proto::UDP),
            _ => None,
        }
    }

    /// Replaces the address in the call.
    #[inline(always)]
    pub(crate) fn rewrite(&mut self, addr: Addr, port: Port) {
        let [high, low] = port.0.to_be_bytes();
        // SAFETY: the kernel passes a live context, and these hooks may write this field.
        let word = unsafe { &raw mut (*self.ctx.sock_addr).user_port };
        // SAFETY: as above.
        unsafe { word.write_volatile(u32::from_ne_bytes([high, low, 0, 0])) };
        F::set_addr(self.ctx.sock_addr, addr);
    }

    /// Sends the call to port 0 of loopback, where TCP is refused at once.
    #[inline(always)]
    pub(crate) fn rewrite_to_nowhere(&mut self) {
        let loopback = F::loopback(self.addr());
        self.rewrite(loopback, Port(0));
    }

    /// Who calls, as affinity tells clients apart.
    #[inline(always)]
    pub(crate) fn client(&self) -> Client {
        // SAFETY: the kernel passes a live context, and these hooks may call the helper.
        Client(unsafe { bpf_get_netns_cookie(self.ctx.sock_addr.cast()) })
    }

    /// What the socket asked for so far.
    #[inline(always)]
    pub(crate) fn memory(&self) -> Option<&Socket> {
        Maps.socket(&self.ctx)
    }

    /// The peer that an answer from the address in the call belongs to.
    #[inline(always)]
    pub(crate) fn peer_of_sender(&self) -> Option<&Peer> {
        let memory = self.memory()?;
        memory
            .peers
            .get(memory.find_backend(self.addr(), self.port())?)
    }

    /// The same, to be changed; made on first use. `None`: no memory.
    #[inline(always)]
    pub(crate) fn memory_mut(&mut self) -> Option<&mut Socket> {
        Maps.socket_mut(&mut self.ctx)
    }
}

/// 32 random bits.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: the helper takes no argument and may be called anywhere.
    unsafe { bpf_get_prandom_u32() }
}

/// Nanoseconds since boot.
#[inline(always)]
pub(crate) fn now_nanos() -> u64 {
    // SAFETY: the helper takes no argument and may be called anywhere.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Sets the error that the caller sees when the program returns 0. Only where the kernel has the helper.
#[inline(always)]
pub(crate) fn set_error(errno: i32) {
    // SAFETY: the helper takes an integer; callers ask `Maps::can_set_retval` first.
    unsafe { bpf_set_retval(-errno) };
}
