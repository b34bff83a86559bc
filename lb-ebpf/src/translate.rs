//! What the hooks share: a destination becomes a backend and the socket remembers it; a backend's
//! address becomes the Service's again. The hook decides how to choose, and what to forget and to count.
#![forbid(unsafe_code)]

use lb_common::{
    addr::Port,
    reason::Reason,
    select::{Decision, Flow, Forward},
    tables::{Peer, Socket},
};

use crate::{
    maps::Maps,
    sock::{Family, SockAddr},
    verdict::Outcome,
};

/// Sends the call to a backend, if `choose` finds one for what it asks and `settle` agrees.
#[inline(always)]
pub(crate) fn translate<F: Family>(
    sock: &mut SockAddr<F>,
    choose: impl FnOnce(&SockAddr<F>, &Flow) -> Decision,
    settle: impl FnOnce(&SockAddr<F>, &Flow, &Forward) -> Forward,
    remember: impl FnOnce(&mut Socket, &Flow, &Forward),
) -> Outcome {
    let Some(flow) = sock.flow() else {
        return Outcome::Pass(Reason::PassProtocol);
    };
    let decision = choose(sock, &flow);
    let reason = decision.reason();
    match &decision {
        Decision::NotAService => Outcome::Pass(reason),
        Decision::Reject(_) => Outcome::Reject(reason),
        Decision::Drop(_) => Outcome::Drop(reason),
        Decision::Forward(chosen) => {
            let chosen = settle(sock, &flow, chosen);
            match sock.memory_mut() {
                Some(socket) => remember(socket, &flow, &chosen),
                None => Maps.count(Reason::PeerLost),
            }
            sock.rewrite(chosen.backend.addr, Port(chosen.backend.port));
            Outcome::Rewritten(chosen.reason())
        }
    }
}

/// Shows the Service's address where the call holds that of a backend this socket was given.
#[inline(always)]
pub(crate) fn restore<F: Family>(sock: &mut SockAddr<F>, restored: Reason) -> Reason {
    let Some(peer) = sock.peer_of_sender().copied() else {
        return Reason::PassNotAPeer;
    };
    sock.rewrite(peer.service_addr, Port(peer.service_port));
    restored
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
