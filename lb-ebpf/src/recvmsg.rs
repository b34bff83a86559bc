//! cgroup recvmsg4 and recvmsg6: UDP on its way in. A datagram from a backend is shown as coming from
//! the Service that the socket asked: resolvers throw away answers from anybody else. A v4-mapped source
//! arrives at recvmsg6.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use lb_common::{addr::Port, reason::Reason};

use crate::{
    sock::{Family, SockAddr, V4, V6},
    verdict::shown,
};

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn nh_recvmsg4(ctx: SockAddrContext) -> i32 {
    shown(recvmsg(SockAddr::<V4>::new(ctx)))
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn nh_recvmsg6(ctx: SockAddrContext) -> i32 {
    shown(recvmsg(SockAddr::<V6>::new(ctx)))
}

#[inline(always)]
fn recvmsg<F: Family>(mut sock: SockAddr<F>) -> Reason {
    let Some(peer) = sock.peer_of_sender().copied() else {
        return Reason::PassNotAPeer;
    };
    sock.rewrite(peer.service_addr, Port(peer.service_port));
    Reason::RestoreSource
}
