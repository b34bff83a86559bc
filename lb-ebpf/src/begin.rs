//! The first packet of a flow: `select` decides, and `FLOWS` remembers.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use lb_common::{
    addr::{Addr, Port, Proto},
    flow::{Call, End, FlowKey, Half, Hook, Node, interface},
    reason::Reason,
    select::{Decision, Draw, Flow, Origin, Remembered, select},
    tables::Client,
};

use crate::{
    affinity::settle,
    calls::{call, call_with, hand_over, handed_over},
    flows::Flows,
    maps::Maps,
    packet::{Packet, View},
    sock::{now_nanos, random},
    verdict::{Outcome, finish_packet},
};

#[classifier]
pub(crate) fn nh_begin(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    match handed_over() {
        Some(left) => begin(&mut packet, &left.view),
        None => finish_packet(&packet, Outcome::Pass(Reason::PacketOther)),
    }
}

/// Decides for a packet that no flow knows, or that begins one anew. It is remembered before the packet
/// goes on, so that the answer finds it. Returns the program's verdict.
#[inline(always)]
fn begin(packet: &mut Packet, view: &View) -> i32 {
    let key = &view.key(Hook::Ingress);
    let node = Flows.node();
    let is_pod = is_pod(packet, view, node);
    let decision = decide(view, is_pod);
    let reason = decision.reason();
    let outcome = match &decision {
        Decision::NotAService => Outcome::Pass(Reason::PacketPass),
        Decision::Reject(_) if view.proto == Proto::TCP => {
            return call_with(packet, Call::Reset, view, reason);
        }
        Decision::Reject(_) => return call_with(packet, Call::Unreachable, view, reason),
        Decision::Drop(_) => Outcome::Drop(reason),
        Decision::Forward(chosen) => {
            let chosen = settle(chosen, &NewFlow(view.source.addr));
            let by = End {
                addr: chosen.backend.addr,
                port: Port(chosen.backend.port),
            };
            if let Some(left) = hand_over() {
                left.reason = chosen.reason();
                left.half = Half {
                    check: key.check(),
                    seen: view.seen,
                    used_nanos: now_nanos(),
                    addr: by.addr,
                    port: by.port.0,
                    flags: 0,
                    service: chosen.service.0,
                    backend: chosen.index.0,
                    generation: chosen.backend.membership.generation,
                };
                let behind = masquerades(view, by, node, is_pod);
                left.tries = 0;
                left.hides = behind.is_some().into();
                left.behind = behind.unwrap_or(NO_ADDR);
            }
            return match Flows.begin(key) {
                Some(oldest) => give_up(packet, oldest),
                None => call(packet, Call::Remember),
            };
        }
    };
    finish_packet(packet, outcome)
}

#[inline(always)]
fn give_up(packet: &Packet, oldest: FlowKey) -> i32 {
    if let Some(left) = hand_over() {
        left.in_the_way = oldest;
    }
    call(packet, Call::GiveUp)
}

/// What `select` says. Without an answer to `is_pod` the client is a process of this node.
#[inline(always)]
pub(crate) fn decide(view: &View, is_pod: Option<bool>) -> Decision {
    let flow = Flow {
        addr: view.destination.addr,
        port: view.destination.port,
        proto: view.proto,
        origin: match is_pod {
            Some(false) => Origin::Outside,
            Some(true) | None => Origin::Node,
        },
    };
    select(&Maps, &flow, &NewFlow(view.source.addr))
}

/// Whether the client is a pod, as far as this cluster lets that be told; `None`: it does not.
#[inline(always)]
fn is_pod(packet: &Packet, view: &View, node: Option<&Node>) -> Option<bool> {
    let flags = node?.flags;
    if flags & Node::DETECT_RANGE != 0 {
        return Some(Flows.in_pod_cidr(view.source.addr));
    }
    if flags & Node::DETECT_INTERFACE != 0 {
        return Some(Flows.interface(packet.interface()) & interface::POD != 0);
    }
    None
}

/// Whether the backend must not see the client (contract §6): all are to be hidden, or it is no pod, or
/// it is the backend itself and would answer itself.
#[inline(always)]
fn masquerades(view: &View, by: End, node: Option<&Node>, is_pod: Option<bool>) -> Option<Addr> {
    let node = node?;
    let all = node.flags & Node::MASQUERADE_ALL != 0;
    let asked = all || is_pod == Some(false) || view.source.addr == by.addr;
    asked.then_some(if by.addr.is_v4() { node.v4 } else { node.v6 })
}

/// No address.
pub(crate) const NO_ADDR: Addr = Addr { bytes: [0; 16] };

/// A packet's flow is new, and its client is the address it comes from.
struct NewFlow(Addr);

impl Draw for NewFlow {
    #[inline(always)]
    fn random(&self) -> u32 {
        random()
    }

    #[inline(always)]
    fn remembered(&self) -> Option<Remembered> {
        None
    }

    #[inline(always)]
    fn client(&self) -> Client {
        Client::of_addr(self.0)
    }

    #[inline(always)]
    fn now_nanos(&self) -> u64 {
        now_nanos()
    }
}
