//! What becomes of the first packet to each kind of destination, of those that follow it, and of the
//! answers: TCP, UDP and SCTP over both families.

use crate::{
    bed::Bed,
    packets::{ACK, FIN, Packet, RST, SYN, icmp, sctp, tcp, udp, unreachable},
};

/// A client, and what it asks for, in one family.
pub(crate) struct Family {
    pub(crate) pod: &'static str,
    pub(crate) web: &'static str,
    pub(crate) backend: &'static str,
    unowned: &'static str,
    unallocated: &'static str,
    empty: &'static str,
    elsewhere: &'static str,
    other_pod: &'static str,
}

pub(crate) const V4: Family = Family {
    pod: "10.1.0.9:4000",
    web: "10.96.0.10:80",
    backend: "10.1.0.5:8080",
    unowned: "10.96.0.10:81",
    unallocated: "10.96.0.99:80",
    empty: "10.96.0.30:80",
    elsewhere: "10.96.0.40:80",
    other_pod: "10.1.0.7:80",
};

pub(crate) const V6: Family = Family {
    pod: "[fd00:1::9]:4000",
    web: "[fd00:96::10]:80",
    backend: "[fd00:1::5]:8080",
    unowned: "[fd00:96::10]:81",
    unallocated: "[fd00:96::99]:80",
    empty: "[fd00:96::30]:80",
    elsewhere: "[fd00:96::40]:80",
    other_pod: "[fd00:1::7]:80",
};

pub(crate) type Make = fn(&str, &str) -> Packet;

/// The three protocols over both families.
pub(crate) fn kinds() -> impl Iterator<Item = (Make, Family)> {
    let protocols: [Make; 3] = [tcp, udp, sctp];
    protocols
        .into_iter()
        .flat_map(|make| [(make, V4), (make, V6)])
}

#[test]
fn a_first_packet_goes_to_a_backend_the_next_ones_follow_and_answers_come_from_the_service() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let first = make(at.pod, at.web);
        let reply = first.answer(at.backend, at.pod);

        let journey = bed.ingress(&first);
        journey.becomes(&first.to(at.backend), &["forward-unknown-zone"]);
        let journey = bed.ingress(&first);
        journey.becomes(&first.to(at.backend), &["packet-original"]);
        let journey = bed.egress(&reply);
        journey.becomes(&reply.from(at.web), &["packet-reply"]);
    }
}

#[test]
fn a_packet_to_no_service_is_left_alone_both_ways() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let packet = make(at.pod, at.other_pod);

        bed.ingress(&packet).is_left_alone(&["packet-pass"]);
        bed.egress(&packet).is_left_alone(&["packet-pass"]);
        bed.egress(&packet.turned()).is_left_alone(&["packet-pass"]);
    }
}

#[test]
fn a_packet_to_an_address_that_no_service_has_is_dropped() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let packet = make(at.pod, at.unallocated);

        bed.ingress(&packet).is_dropped(&["drop-unallocated"]);
    }
}

#[test]
fn a_packet_to_a_service_with_no_endpoint_on_this_node_and_policy_local_is_dropped() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let packet = make(at.pod, at.elsewhere);

        bed.ingress(&packet).is_dropped(&["drop-no-local-endpoint"]);
    }
}

#[test]
fn a_port_that_is_none_of_the_services_and_a_service_without_endpoints_are_refused() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        for (to, why) in [
            (at.unowned, "reject-unowned-port"),
            (at.empty, "reject-no-endpoints"),
        ] {
            let packet = make(at.pod, to);
            let answer = match packet.is_tcp() {
                true => packet.reset(RST | ACK, 0, 8),
                false => unreachable(&packet),
            };

            bed.ingress(&packet).is_answered(&answer, &[why]);
        }
    }
}

#[test]
fn a_reset_says_what_it_answers() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        let segment = tcp(at.pod, at.unowned).at(1000, 2000);
        let data = segment.payload(b"hello");
        for (sent, reset) in [
            (segment.flags(SYN), segment.reset(RST | ACK, 0, 1001)),
            (data.flags(SYN), data.reset(RST | ACK, 0, 1006)),
            (data.flags(SYN | ACK), data.reset(RST, 2000, 0)),
            (segment.flags(ACK), segment.reset(RST, 2000, 0)),
            (data.flags(ACK), data.reset(RST, 2000, 0)),
            (segment.flags(FIN), segment.reset(RST | ACK, 0, 1001)),
            (data.flags(FIN), data.reset(RST | ACK, 0, 1006)),
            (segment.flags(FIN | ACK), segment.reset(RST, 2000, 0)),
            (segment.flags(0), segment.reset(RST | ACK, 0, 1000)),
        ] {
            let journey = bed.ingress(&sent);
            journey.is_answered(&reset, &["reject-unowned-port"]);
        }
    }
}

#[test]
fn a_reset_is_not_answered() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        for flags in [RST, RST | ACK, RST | SYN] {
            let packet = tcp(at.pod, at.unowned).flags(flags);

            bed.ingress(&packet).is_dropped(&["reject-unowned-port"]);
        }
    }
}

#[test]
fn the_number_of_a_reset_goes_around_zero() {
    let syn = tcp(V4.pod, V4.unowned).at(u32::MAX, 0);

    let journey = Bed::new().ingress(&syn);

    journey.is_answered(&syn.reset(RST | ACK, 0, 0), &["reject-unowned-port"]);
}

const ECHO: u8 = 8;
const V6_ECHO: u8 = 128;

#[test]
fn nobody_answers_an_echo_at_a_services_address() {
    let mut bed = Bed::new();
    let rest = b"\0\x01\0\x02ping";
    for (from, to, unallocated, kind) in [
        ("10.1.0.9", "10.96.0.10", "10.96.0.99", ECHO),
        ("fd00:1::9", "fd00:96::10", "fd00:96::99", V6_ECHO),
    ] {
        let echo = icmp(from, to, kind, 0, rest);
        bed.ingress(&echo)
            .is_answered(&unreachable(&echo), &["reject-unowned-port"]);

        let echo = icmp(from, unallocated, kind, 0, rest);
        bed.ingress(&echo).is_dropped(&["drop-unallocated"]);
    }
}

#[test]
fn an_echo_to_a_pod_is_left_alone() {
    let mut bed = Bed::new();
    for (from, to, kind) in [
        ("10.1.0.9", "10.1.0.7", ECHO),
        ("fd00:1::9", "fd00:1::7", V6_ECHO),
    ] {
        let echo = icmp(from, to, kind, 0, b"\0\x01\0\x02ping");

        bed.ingress(&echo).is_left_alone(&["packet-pass"]);
        bed.egress(&echo).is_left_alone(&["packet-pass"]);
    }
}

#[test]
fn what_a_process_of_this_node_sends_past_its_hooks_does_not_leave() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        for (to, why) in [
            (at.unowned, "reject-unowned-port"),
            (at.empty, "reject-no-endpoints"),
            (at.unallocated, "drop-unallocated"),
            (at.elsewhere, "drop-no-local-endpoint"),
        ] {
            let packet = make(at.pod, to);

            bed.egress_of_node(&packet).is_dropped(&[why]);
            bed.egress(&packet).is_left_alone(&["packet-pass"]);
        }
    }
}

#[test]
fn what_a_process_of_this_node_sends_elsewhere_or_to_a_service_with_backends_is_left_alone() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let journey = bed.egress_of_node(&make(at.pod, at.web));
        journey.is_left_alone(&["packet-unhooked"]);

        let journey = bed.egress_of_node(&make(at.pod, at.other_pod));
        journey.is_left_alone(&["packet-pass"]);
    }
}

#[test]
fn a_connection_of_this_nodes_own_that_is_under_way_is_not_asked_about() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        for flags in [ACK, FIN | ACK, RST, SYN | ACK] {
            let packet = tcp(at.pod, at.empty).flags(flags);

            bed.egress_of_node(&packet).is_left_alone(&["packet-pass"]);
        }
    }
}

#[test]
fn a_connection_whose_begin_nobody_remembers_is_taken_up_on_its_way() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        let packet = tcp(at.pod, at.web).flags(ACK).payload(b"on its way");

        let journey = bed.ingress(&packet);

        journey.becomes(&packet.to(at.backend), &["forward-unknown-zone"]);
    }
}
