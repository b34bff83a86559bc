//! Remembers a flow that was decided for, and sends its first packet.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use lb_common::{
    flow::{Call, Hook},
    reason::Reason,
};

use crate::{
    calls::{HandedOver, call, handed_over},
    flows::{Flows, Refused},
    packet::{Packet, Side},
    translated::send,
    verdict::{Outcome, finish_packet},
};

#[classifier]
pub(crate) fn nh_remember(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    match handed_over() {
        Some(left) => remember(&mut packet, left),
        None => finish_packet(&packet, Outcome::Drop(Reason::DropUnwritable)),
    }
}

#[inline(always)]
fn remember(packet: &mut Packet, left: &HandedOver) -> i32 {
    let key = left.view.key(Hook::Ingress);
    match Flows.add_pair(&key, &left.half) {
        Ok(()) if left.hides != 0 => call(packet, Call::Hide),
        Ok(()) => send(
            packet,
            &left.view,
            Side::Destination,
            left.half.by(),
            left.reason,
        ),
        Err(Refused::Full) => finish_packet(packet, Outcome::Drop(Reason::DropFlowsFull)),
        Err(Refused::Exists) => call(packet, Call::Clash),
    }
}
