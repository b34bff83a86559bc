//! cgroup getpeername4 and getpeername6: the application asks whom it is connected to, and is told the
//! address that it asked for. TLS stacks, proxies and logs compare the two.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use lb_common::reason::Reason;

use crate::{
    sock::{Family, SockAddr, V4, V6},
    translate::restore,
    verdict::shown,
};

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn nh_getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername(SockAddr::<V4>::new(ctx))
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn nh_getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername(SockAddr::<V6>::new(ctx))
}

/// A socket that was since connected to something else has another peer than the one remembered.
#[inline(always)]
fn getpeername<F: Family>(mut sock: SockAddr<F>) -> i32 {
    shown(restore(&mut sock, Reason::RestorePeername))
}
