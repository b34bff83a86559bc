//! cgroup connect4 and connect6: TCP and connected UDP of every process below the attached cgroup. The
//! backend is chosen before the first packet exists, so nothing is translated afterwards and the
//! connection costs what a direct one does.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use lb_common::{
    addr::Proto,
    select::{Draw, Flow, Forward, Remembered, select},
    tables::{Client, PEERS_MAX, Socket},
};

use crate::{
    affinity::settle,
    maps::Maps,
    sock::{Family, SockAddr, V4, V6, now_nanos, random},
    translate::{peer, translate},
    verdict::{Refusal, finish},
};

#[cgroup_sock_addr(connect4)]
pub(crate) fn nh_connect4(ctx: SockAddrContext) -> i32 {
    connect(SockAddr::<V4>::new(ctx))
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn nh_connect6(ctx: SockAddrContext) -> i32 {
    connect(SockAddr::<V6>::new(ctx))
}

/// A connect starts anew: what the socket asked for before is forgotten.
#[inline(always)]
fn connect<F: Family>(mut sock: SockAddr<F>) -> i32 {
    let choose = |sock: &_, flow: &_| select(&Maps, flow, &NewFlow(sock));
    let settle = |sock: &_, _: &_, chosen: &_| settle(chosen, &NewFlow(sock));
    let outcome = translate(&mut sock, choose, settle, start_anew);
    finish(&mut sock, outcome, Refusal::Elsewhere)
}

/// A UDP socket is counted here, as it sends no packet that says so. TCP is where its first packet is
/// sent (`sock_ops.rs`).
#[inline(always)]
fn start_anew(socket: &mut Socket, flow: &Flow, chosen: &Forward) {
    if socket.counted != 0 {
        uncount_all(socket);
    }
    socket.connect(peer(flow, chosen));
    if flow.proto == Proto::UDP
        && let Some(figures) = Maps.stats_of(chosen.index)
    {
        figures.opened();
        socket.count(0);
    }
}

/// Ends what the socket is counted for.
#[inline(always)]
pub(crate) fn uncount_all(socket: &mut Socket) {
    for at in 0..PEERS_MAX {
        if let Some(given) = socket.uncount(at)
            && let Some(figures) = Maps.stats_if_same(given)
        {
            figures.closed();
        }
    }
}

/// A connection is a flow of its own, whatever its socket did before.
struct NewFlow<'a, F>(&'a SockAddr<F>);

impl<F: Family> Draw for NewFlow<'_, F> {
    #[inline(always)]
    fn random(&self) -> u32 {
        random()
    }

    #[inline(always)]
    fn remembered(&self) -> Option<Remembered> {
        None
    }

    #[inline(always)]
    fn client(&self) -> Client {
        self.0.client()
    }

    #[inline(always)]
    fn now_nanos(&self) -> u64 {
        now_nanos()
    }
}
