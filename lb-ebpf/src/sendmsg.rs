//! cgroup sendmsg4 and sendmsg6: unconnected UDP on its way out, where each datagram names its
//! destination. The next datagram to the same Service goes to the same backend, as it would by
//! conntrack; one socket may talk to several Services, as resolvers do. A v4-mapped destination arrives
//! at sendmsg4.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use lb_common::{
    reason::Reason,
    select::{Draw, Flow, Forward, Found, Remembered, select},
    tables::{BackendIndex, Client, Socket},
};

use crate::{
    affinity::settle,
    maps::Maps,
    sock::{Family, SockAddr, V4, V6, now_nanos, random},
    translate::{peer, translate},
    verdict::{Refusal, finish},
};

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn nh_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(SockAddr::<V4>::new(ctx))
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn nh_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(SockAddr::<V6>::new(ctx))
}

#[inline(always)]
fn sendmsg<F: Family>(mut sock: SockAddr<F>) -> i32 {
    let choose = |sock: &_, flow: &_| select(&Maps, flow, &NextDatagram { sock, flow });
    let settle = |sock: &_, flow: &_, chosen: &_| settle(chosen, &NextDatagram { sock, flow });
    let outcome = translate(&mut sock, choose, settle, remember);
    finish(&mut sock, outcome, Refusal::Deny)
}

#[inline(always)]
fn remember(socket: &mut Socket, flow: &Flow, chosen: &Forward) {
    let (at, evicts) = socket.place_for(flow.addr, flow.port);
    if chosen.found == Found::BySocket {
        return socket.used(at);
    }
    if evicts {
        Maps.count(Reason::PeerEvicted);
    }
    if let Some(given) = socket.uncount(at)
        && let Some(figures) = Maps.stats_if_same(given)
    {
        figures.closed();
    }
    socket.put(at, peer(flow, chosen));
    if let Some(figures) = Maps.stats_of(chosen.index) {
        figures.opened();
        socket.count(at);
    }
}

/// A datagram belongs to the flow of those before it. The socket is asked only once the destination is
/// known to be a Service.
struct NextDatagram<'a, F> {
    sock: &'a SockAddr<F>,
    flow: &'a Flow,
}

impl<F: Family> Draw for NextDatagram<'_, F> {
    #[inline(always)]
    fn random(&self) -> u32 {
        random()
    }

    #[inline(always)]
    fn remembered(&self) -> Option<Remembered> {
        let socket = self.sock.memory()?;
        let peer = socket
            .peers
            .get(socket.find_service(self.flow.addr, self.flow.port)?)?;
        Some(Remembered {
            backend: BackendIndex(peer.backend),
            generation: peer.generation,
        })
    }

    #[inline(always)]
    fn client(&self) -> Client {
        self.sock.client()
    }

    #[inline(always)]
    fn now_nanos(&self) -> u64 {
        now_nanos()
    }
}
