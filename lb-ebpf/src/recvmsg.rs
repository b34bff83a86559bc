//! cgroup recvmsg4 and recvmsg6: UDP on its way in. A datagram from a backend is shown as coming from
//! the Service that the socket asked: resolvers throw away answers from anybody else. A v4-mapped source
//! arrives at recvmsg6.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use lb_common::reason::Reason;

use crate::{
    sock::{Family, SockAddr, V4, V6},
    translate::restore,
    verdict::shown,
};

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn nh_recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg(SockAddr::<V4>::new(ctx))
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn nh_recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg(SockAddr::<V6>::new(ctx))
}

#[inline(always)]
fn recvmsg<F: Family>(mut sock: SockAddr<F>) -> i32 {
    shown(restore(&mut sock, Reason::RestoreSource))
}
