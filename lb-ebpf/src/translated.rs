//! A packet of a flow that is known: the same replacement as for the one before it.
#![forbid(unsafe_code)]

use lb_common::{
    addr::Proto,
    flow::{Call, End},
    reason::Reason,
    wire::Part,
};

use crate::{
    calls::call_with,
    flows::{Flows, Found},
    packet::{Packet, Side, Unwritable, View},
    sock::now_nanos,
    verdict::{Outcome, finish_packet},
};

#[inline(always)]
pub(crate) fn go_on(packet: &mut Packet, view: &View, found: &Found, side: Side) -> i32 {
    found.touch(view.seen, now_nanos());
    let reason = if found.half.is_original() {
        Reason::PacketOriginal
    } else {
        Reason::PacketReply
    };
    send(packet, view, side, found.half.by(), reason)
}

/// Sends a packet on with another address. Returns the program's verdict.
#[inline(always)]
pub(crate) fn send(packet: &mut Packet, view: &View, side: Side, by: End, reason: Reason) -> i32 {
    let old = match side {
        Side::Source => view.source.port,
        Side::Destination => view.destination.port,
    };
    let outcome = match rewrite(packet, view, side, by) {
        Ok(()) if view.proto == Proto::SCTP && old != by.port => {
            return call_with(packet, Call::Sctp, view, reason);
        }
        Ok(()) => Outcome::Rewritten(reason),
        Err(Unwritable) => Outcome::Drop(Reason::DropUnwritable),
    };
    finish_packet(packet, outcome)
}

/// Replaces one side, in this part of the packet and in those to come.
#[inline(always)]
fn rewrite(packet: &mut Packet, view: &View, side: Side, by: End) -> Result<(), Unwritable> {
    if matches!(view.part, Part::First) {
        Flows.keep_ports(
            &view.fragment_key(),
            (view.source.port, view.destination.port),
        );
    }
    packet.rewrite(view, side, by)
}
