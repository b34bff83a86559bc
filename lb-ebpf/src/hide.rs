//! Hides a client behind this node: a second flow around the one that was remembered, with a port of this
//! node that no other flow to the same backend has.
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "a port of a range that ends at 65,535"
)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use lb_common::{
    flow::{FlowKey, Half, Hook, Node},
    reason::Reason,
};

use crate::{
    begin::NO_ADDR,
    calls::{HandedOver, handed_over},
    flows::{Flows, Refused},
    packet::{Packet, Side},
    sock::random,
    translated::send,
    verdict::{Outcome, finish_packet},
};

#[classifier]
pub(crate) fn nh_hide(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    let Some(left) = handed_over() else {
        return finish_packet(&packet, Outcome::Drop(Reason::DropUnwritable));
    };
    let by = left.half.by();
    match hide(left) {
        Ok(()) => send(&mut packet, &left.view, Side::Destination, by, left.reason),
        Err(reason) => {
            let key = left.view.key(Hook::Ingress);
            Flows.remove(&key);
            Flows.remove(&key.other(by));
            finish_packet(&packet, Outcome::Drop(reason))
        }
    }
}

/// Tries for a port.
const PORT_TRIES: u32 = 16;

#[inline(always)]
fn hide(left: &HandedOver) -> Result<(), Reason> {
    if left.behind == NO_ADDR {
        return Err(Reason::DropNoMasquerade);
    }
    let by = left.half.by();
    let middle = FlowKey::new(left.view.source, by, left.view.proto, Hook::Egress);
    let mut half = Half {
        check: middle.check(),
        flags: Half::MASQUERADE,
        addr: left.behind,
        ..left.half
    };
    let mut offset = random();
    for _ in 0..PORT_TRIES {
        offset = offset.wrapping_add(1) % u32::from(Node::MASQUERADE_PORTS);
        half.port = Node::MASQUERADE_PORT_FIRST + offset as u16;
        match Flows.add_pair(&middle, &half) {
            Ok(()) => return Ok(()),
            Err(Refused::Full) => return Err(Reason::DropFlowsFull),
            Err(Refused::Exists) => {}
        }
    }
    Err(Reason::DropNoMasquerade)
}
