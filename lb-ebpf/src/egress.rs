//! TC egress, on the same interfaces: an answer that leaves for a client has its backend's address, and
//! gets the Service's. Here, after routing, so that routing, reverse-path filters and the kernel's
//! conntrack have seen client and backend only, and so that it does not matter by which interface an
//! answer leaves.
//!
//! What a process of this node sends to a Service passes here too, where its socket hook could only say
//! "drop" and leave the address alone.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use lb_common::{
    flow::{Call, Hook},
    reason::Reason,
    select::Decision,
};

use crate::{
    begin::decide,
    calls::call,
    flows::Flows,
    packet::{Packet, Read, Side, View},
    translated::go_on,
    verdict::{Outcome, finish_packet},
};

#[classifier]
pub(crate) fn nh_egress(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    match packet.read() {
        Read::Flow(view) => flow(&mut packet, &view),
        Read::Icmp => call(&packet, Call::IcmpOut),
        Read::Other => finish_packet(&packet, Outcome::Pass(Reason::PacketOther)),
    }
}

#[inline(always)]
fn flow(packet: &mut Packet, view: &View) -> i32 {
    if let Some(found) = Flows.find(&view.key(Hook::Egress)) {
        return go_on(packet, view, &found, Side::Source);
    }
    if packet.is_from_node() && view.may_begin() {
        return finish_packet(packet, of_node(view));
    }
    finish_packet(packet, Outcome::Pass(Reason::PacketPass))
}

/// A socket hook has decided already, and what it sent to a backend is no Service's any more. What is
/// still to a Service must not leave if the answer was "drop" or "reject"; where a backend could be had,
/// no hook covers the process, and it is left alone as everything of the node's own that no hook sees.
#[inline(always)]
fn of_node(view: &View) -> Outcome {
    let decision = decide(view, None);
    match decision {
        Decision::Reject(_) | Decision::Drop(_) => Outcome::Drop(decision.reason()),
        Decision::NotAService => Outcome::Pass(Reason::PacketPass),
        Decision::Forward(_) => Outcome::Pass(Reason::PacketUnhooked),
    }
}
