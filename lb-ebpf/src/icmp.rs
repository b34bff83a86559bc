//! ICMP, of both versions. An error holds the begin of the packet that it is about, and means nothing to
//! its receiver unless that is translated, too: without, path MTU discovery through a Service fails.
//!
//! The quoted packet went the other way, so the flow is that of the quoted addresses, turned round. What
//! the flow's entry replaces in a packet, it replaces in the error's own header, and the same address in
//! the quotation, where it stands on the other side.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use lb_common::{
    addr::{Port, Proto},
    flow::{Call, End, FlowKey, Hook, seen},
    reason::Reason,
    select::Decision,
    wire::{self, ICMP_LEN, Ip, Link, Part},
};

use crate::{
    begin::decide,
    calls::call_with,
    flows::Flows,
    packet::{Packet, Side, Unwritable, View},
    verdict::{Outcome, finish_packet},
};

#[classifier]
pub(crate) fn nh_icmp_in(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    ingress(&mut packet)
}

#[classifier]
pub(crate) fn nh_icmp_out(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    let outcome = egress(&mut packet);
    finish_packet(&packet, outcome)
}

/// A message to a Service's address: an error about a packet of a flow, or one that no Service answers.
#[inline(always)]
fn ingress(packet: &mut Packet) -> i32 {
    let Some((link, ip)) = packet.ip() else {
        return finish_packet(packet, Outcome::Pass(Reason::PacketOther));
    };
    if is_error(packet, &ip) {
        let outcome = error(packet, link, &ip, Hook::Ingress);
        return finish_packet(packet, outcome);
    }
    let view = View::new(link, &ip, (Port(0), Port(0)), seen::PACKET);
    let decision = decide(&view, None);
    match decision {
        Decision::NotAService | Decision::Forward(_) => {
            finish_packet(packet, Outcome::Pass(Reason::PacketPass))
        }
        Decision::Drop(_) => finish_packet(packet, Outcome::Drop(decision.reason())),
        Decision::Reject(_) => call_with(packet, Call::Unreachable, &view, decision.reason()),
    }
}

/// A message that leaves: an error about a packet of a flow, or none of ours.
#[inline(always)]
fn egress(packet: &mut Packet) -> Outcome {
    match packet.ip() {
        Some((link, ip)) if is_error(packet, &ip) => error(packet, link, &ip, Hook::Egress),
        Some(_) => Outcome::Pass(Reason::PacketPass),
        None => Outcome::Pass(Reason::PacketOther),
    }
}

#[inline(always)]
fn is_error(packet: &Packet, ip: &Ip) -> bool {
    let kind: Option<u8> = packet.load(ip.l4);
    matches!(ip.part, Part::Whole) && kind.is_some_and(|kind| wire::is_icmp_error(ip.proto, kind))
}

/// Translates an error about a packet of a flow.
#[inline(always)]
fn error(packet: &mut Packet, link: Link, ip: &Ip, hook: Hook) -> Outcome {
    match translate(packet, &link, ip, hook) {
        Ok(Some(())) => Outcome::Rewritten(Reason::PacketIcmpError),
        Ok(None) => Outcome::Pass(Reason::PacketPass),
        Err(Unwritable) => Outcome::Drop(Reason::DropUnwritable),
    }
}

/// `None`: it is about no flow.
#[inline(always)]
fn translate(
    packet: &mut Packet,
    link: &Link,
    ip: &Ip,
    hook: Hook,
) -> Result<Option<()>, Unwritable> {
    let quoted_link = Link {
        l3: ip.l4 + ICMP_LEN,
        is_v4: link.is_v4,
    };
    let Some(quoted) = wire::ip(packet, quoted_link) else {
        return Ok(None);
    };
    if !wire::has_services(quoted.proto) || matches!(quoted.part, Part::Later) {
        return Ok(None);
    }
    let Some((from, to)) = wire::ports(packet, quoted.l4) else {
        return Ok(None);
    };
    let end = |addr, port| End { addr, port };
    let key = FlowKey::new(
        end(quoted.destination, to),
        end(quoted.source, from),
        Proto(quoted.proto),
        hook,
    );
    let Some(found) = Flows.find(&key) else {
        return Ok(None);
    };
    let (old, by) = (key.replaced(), found.half.by());
    let (outer, inner, port_at) = match hook {
        Hook::Ingress => (Side::Destination, Side::Source, quoted.l4),
        Hook::Egress => (Side::Source, Side::Destination, quoted.l4 + 2),
    };
    // A router on the way to the backend keeps its own address.
    let outer_addr = match hook {
        Hook::Ingress => ip.destination,
        Hook::Egress => ip.source,
    };
    let sum_at = ip.l4 + wire::checksum_offset(ip.proto);
    packet.replace_port_in_sum(sum_at, old.port, by.port)?;
    packet.store(port_at, &wire::port_bytes(by.port))?;
    if !link.is_v4 {
        packet.replace_addr_in_sum(sum_at, old.addr, by.addr, false)?;
    }
    packet.rewrite_addr(quoted_link, inner, old.addr, by.addr)?;
    if outer_addr == old.addr {
        if !link.is_v4 {
            packet.replace_addr_in_sum(sum_at, old.addr, by.addr, true)?;
        }
        packet.rewrite_addr(*link, outer, old.addr, by.addr)?;
    }
    Ok(Some(()))
}
