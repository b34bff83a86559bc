//! cgroup connect4 and connect6: TCP and connected UDP of every process below the attached cgroup. The
//! backend is chosen before the first packet exists, so nothing is translated afterwards and the
//! connection costs what a direct one does.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use lb_common::{
    addr::Port,
    reason::Reason,
    select::{Draw, Flow, Forward, Remembered, select},
    tables::Peer,
};

use crate::{
    maps::Maps,
    sock::{Family, SockAddr, V4, V6, random},
    verdict::{Outcome, Refusal, finish, outcome},
};

#[cgroup_sock_addr(connect4)]
pub(crate) fn nh_connect4(ctx: SockAddrContext) -> i32 {
    run(SockAddr::<V4>::new(ctx))
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn nh_connect6(ctx: SockAddrContext) -> i32 {
    run(SockAddr::<V6>::new(ctx))
}

#[inline(always)]
fn run<F: Family>(mut sock: SockAddr<F>) -> i32 {
    let outcome = connect(&mut sock);
    finish(&mut sock, outcome, Refusal::Elsewhere)
}

#[inline(always)]
fn connect<F: Family>(sock: &mut SockAddr<F>) -> Outcome {
    let Some(flow) = sock.flow() else {
        return Outcome::Pass(Reason::PassProtocol);
    };
    let decision = select(&Maps, &flow, &NewFlow);
    outcome(&decision, |chosen| {
        remember(sock, &flow, chosen);
        sock.rewrite(chosen.backend.addr, Port(chosen.backend.port));
    })
}

/// For getpeername and recvmsg. A connect starts anew: what the socket asked for before is forgotten.
#[inline(always)]
fn remember<F: Family>(sock: &mut SockAddr<F>, flow: &Flow, chosen: &Forward) {
    match sock.memory_mut() {
        Some(socket) => socket.connect(peer(flow, chosen)),
        None => Maps.count(Reason::PeerLost),
    }
}

/// What a socket keeps of a choice.
#[inline(always)]
pub(crate) fn peer(flow: &Flow, chosen: &Forward) -> Peer {
    Peer {
        service_addr: flow.addr,
        backend_addr: chosen.backend.addr,
        service_port: flow.port.0,
        backend_port: chosen.backend.port,
        service: chosen.service.0,
        backend: chosen.index.0,
        generation: chosen.backend.membership.generation,
    }
}

/// A connection is a flow of its own, whatever its socket did before.
struct NewFlow;

impl Draw for NewFlow {
    #[inline(always)]
    fn random(&self) -> u32 {
        random()
    }

    #[inline(always)]
    fn remembered(&self) -> Option<Remembered> {
        None
    }
}
