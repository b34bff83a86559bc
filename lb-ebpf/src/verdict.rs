//! From what was decided to what the kernel is told: one match, which also counts the reason.
#![forbid(unsafe_code)]

use lb_common::reason::Reason;

use crate::{
    maps::Maps,
    packet::Packet,
    sock::{Family, SockAddr, set_error},
};

const PROCEED: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// What a hook did, with the reason that is counted.
pub(crate) enum Outcome {
    /// Nothing.
    Pass(Reason),
    /// It replaced the address in the call.
    Rewritten(Reason),
    /// The caller is to be told "connection refused". A packet has become the answer.
    Reject(Reason),
    /// The caller is to get no answer. A socket hook leaves the address alone: no packet of it goes out.
    Drop(Reason),
}

/// How a hook tells its caller "refused" where it cannot set the error.
pub(crate) enum Refusal {
    /// By a destination that refuses: connect.
    Elsewhere,
    /// By denying the call (EPERM): a datagram that goes elsewhere would still have been sent.
    Deny,
}

/// The return code of a hook that may refuse.
#[inline(always)]
pub(crate) fn finish<F: Family>(sock: &mut SockAddr<F>, outcome: Outcome, refusal: Refusal) -> i32 {
    match outcome {
        Outcome::Pass(reason) | Outcome::Rewritten(reason) | Outcome::Drop(reason) => {
            Maps.count(reason);
            PROCEED
        }
        Outcome::Reject(reason) => {
            Maps.count(reason);
            refuse(sock, refusal)
        }
    }
}

/// The next program on the interface has its turn.
const NEXT: i32 = -1;
const SHOT: i32 = 2;

/// The return code of a packet program.
#[inline(always)]
pub(crate) fn finish_packet(packet: &Packet, outcome: Outcome) -> i32 {
    match outcome {
        Outcome::Pass(reason) | Outcome::Rewritten(reason) => {
            Maps.count_packet(reason);
            NEXT
        }
        Outcome::Drop(reason) => {
            Maps.count_packet(reason);
            SHOT
        }
        Outcome::Reject(reason) => {
            Maps.count_packet(reason);
            packet.send_back()
        }
    }
}

/// The return code of a hook that only shows addresses: the kernel accepts no other.
#[inline(always)]
pub(crate) fn shown(reason: Reason) -> i32 {
    Maps.count(reason);
    PROCEED
}

#[inline(always)]
fn refuse<F: Family>(sock: &mut SockAddr<F>, refusal: Refusal) -> i32 {
    if Maps.can_set_retval() {
        set_error(ECONNREFUSED);
        return DENY;
    }
    match refusal {
        Refusal::Elsewhere => {
            sock.rewrite_to_nowhere();
            PROCEED
        }
        Refusal::Deny => DENY,
    }
}
