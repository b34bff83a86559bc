//! A flow that cannot be remembered as it is, because another is in its way.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use lb_common::{
    addr::Proto,
    flow::{Call, FlowKey, Hook, State},
    reason::Reason,
};

use crate::{
    calls::{HandedOver, call, hand_over, handed_over},
    flows::{Flows, Found},
    packet::{Packet, Side},
    translated::go_on,
    verdict::{Outcome, finish_packet},
};

#[classifier]
pub(crate) fn nh_clash(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    match handed_over() {
        Some(left) => clash(&mut packet, left),
        None => finish_packet(&packet, Outcome::Drop(Reason::DropUnwritable)),
    }
}

/// There is a flow with this key: another CPU was faster, it is asked for once more, or it is over. Or the
/// answers of another look as this one's will.
#[inline(always)]
fn clash(packet: &mut Packet, left: &HandedOver) -> i32 {
    let key = &left.view.key(Hook::Ingress);
    let reply_key = key.other(left.half.by());
    let in_the_way = match Flows.find(key) {
        Some(found) if !is_over(key, &found) => {
            return go_on(packet, &left.view, &found, Side::Destination);
        }
        Some(_) => Some(*key),
        None => Flows
            .find(&reply_key)
            .map(|reply| reply_key.other(reply.half.by())),
    };
    match in_the_way {
        Some(in_the_way) if left.tries == 0 => try_again(packet, in_the_way),
        _ => finish_packet(packet, Outcome::Drop(Reason::DropFlowClash)),
    }
}

/// Once more, after what is in the way was given up.
#[inline(always)]
fn try_again(packet: &Packet, in_the_way: FlowKey) -> i32 {
    if let Some(left) = hand_over() {
        left.in_the_way = in_the_way;
        left.tries = 1;
    }
    call(packet, Call::GiveUp)
}

/// Both sides have closed, or one has reset.
#[inline(always)]
fn is_over(key: &FlowKey, found: &Found) -> bool {
    let reply = Flows.find(&key.other(found.half.by()));
    let seen = reply.map_or(0, |reply| reply.half.seen);
    State::of(Proto(key.proto), found.half.seen, seen).is_over()
}
