//! Gives up a flow that is in the way of a new one, if it may be: the one that this CPU remembers longest
//! among those begun last, or one with the same addresses. Then the new one is remembered.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use lb_common::{
    addr::Proto,
    flow::{Call, FlowKey, Half, Hook, State},
    reason::Reason,
};

use crate::{
    calls::{call, handed_over},
    flows::Flows,
    maps::Maps,
    packet::Packet,
};

#[classifier]
pub(crate) fn nh_give_up(ctx: TcContext) -> i32 {
    let packet = Packet::new(ctx);
    if let Some(left) = handed_over()
        && let Some(found) = Flows.find(&left.in_the_way)
    {
        give_up(&left.in_the_way, &found.half);
    }
    call(&packet, Call::Remember)
}

/// As many beginnings as there are young flows take no more memory than that, however many there are.
#[inline(always)]
fn give_up(key: &FlowKey, half: &Half) {
    let reply_key = key.other(half.by());
    let reply = Flows.find(&reply_key).map_or(0, |reply| reply.half.seen);
    if !State::of(Proto(key.proto), half.seen, reply).is_expendable() {
        return;
    }
    Flows.remove(key);
    Flows.remove(&reply_key);
    let middle = FlowKey::new(key.from(), half.by(), Proto(key.proto), Hook::Egress);
    if let Some(around) = Flows.find(&middle)
        && around.half.flags & Half::MASQUERADE != 0
    {
        Flows.remove(&middle);
        Flows.remove(&middle.other(around.half.by()));
    }
    Maps.count_packet(Reason::FlowGivenUp);
}
