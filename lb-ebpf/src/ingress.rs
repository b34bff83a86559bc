//! TC ingress, on the host's side of pods' interfaces and on those to other machines: what no socket hook
//! saw asks for a Service, and gets a backend. Here, before routing, so that the kernel then sends the
//! packet to the backend as it would send any packet, whatever the pod network is made of.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use lb_common::{
    flow::{Call, End, Hook},
    reason::Reason,
    select::Tables,
    tables::FrontendKey,
};

use crate::{
    calls::{call, call_with},
    flows::Flows,
    maps::Maps,
    packet::{Packet, Read, Side, View},
    translated::go_on,
    verdict::{Outcome, finish_packet},
};

#[classifier]
pub(crate) fn nh_ingress(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    match packet.read() {
        Read::Flow(view) => flow(&mut packet, &view),
        Read::Icmp => call(&packet, Call::IcmpIn),
        Read::Other => finish_packet(&packet, Outcome::Pass(Reason::PacketOther)),
    }
}

/// A packet of a flow goes where the flow went. Any other asks, and so does one that begins a flow with
/// the addresses of another that may be over.
#[inline(always)]
fn flow(packet: &mut Packet, view: &View) -> i32 {
    match Flows.find(&view.key(Hook::Ingress)) {
        Some(found) if !view.begins_anew() => go_on(packet, view, &found, Side::Destination),
        None if asks_nobody(view) => finish_packet(packet, Outcome::Pass(Reason::PacketPass)),
        _ => call_with(packet, Call::Begin, view, Reason::PacketPass),
    }
}

/// Whether `select` would say that this is no Service: most packets, and they need no call.
#[inline(always)]
fn asks_nobody(view: &View) -> bool {
    let End { addr, port } = view.destination;
    let key = FrontendKey::new(addr, port, view.proto);
    Maps.frontend(&key).is_none() && !Maps.in_service_cidr(addr)
}
