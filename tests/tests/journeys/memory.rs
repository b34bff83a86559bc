//! What is remembered of flows: a repeated begin, a new one with the addresses of one that is over, two
//! flows that would look alike, clients that come back, and more beginnings than there is room for.

use std::collections::BTreeSet;

use lb_common::flow::YOUNG_MAX;

use crate::{
    bed::Bed,
    packets::{ACK, FIN, Packet, RST, SYN, tcp},
    services::{V4, V6, kinds},
};

const FORWARD: &str = "forward-unknown-zone";

const MANY: [&str; 2] = ["10.96.0.20:80", "[fd00:96::20]:80"];

#[test]
fn a_begin_that_is_repeated_goes_to_the_same_one_of_many_backends() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let many = MANY[usize::from(at.pod == V6.pod)];
        let first = make(at.pod, many);
        let journey = bed.ingress(&first);
        let backend = journey.destination();
        journey.becomes(&first.to(&backend), &[FORWARD]);

        for _ in 0..20 {
            let journey = bed.ingress(&first);
            journey.becomes(&first.to(&backend), &["packet-original"]);
        }
    }
}

#[test]
fn a_begin_within_a_connection_changes_nothing() {
    let mut bed = Bed::new();
    for (at, many) in [(V4, MANY[0]), (V6, MANY[1])] {
        let syn = tcp(at.pod, many);
        let backend = established(&mut bed, &syn);
        for _ in 0..20 {
            let journey = bed.ingress(&syn);
            journey.becomes(&syn.to(&backend), &["packet-original"]);
        }
    }
}

#[test]
fn a_new_connection_takes_the_addresses_of_one_that_both_sides_have_closed() {
    let mut bed = Bed::new();
    for (at, many) in [(V4, MANY[0]), (V6, MANY[1])] {
        let syn = tcp(at.pod, many);
        let backend = established(&mut bed, &syn);
        let fin = syn.flags(FIN | ACK);
        let answer = syn.answer(&backend, at.pod).flags(FIN | ACK);
        bed.ingress(&fin)
            .becomes(&fin.to(&backend), &["packet-original"]);
        bed.egress(&answer)
            .becomes(&answer.from(many), &["packet-reply"]);

        begins_anew(&mut bed, &syn);
    }
}

#[test]
fn a_new_connection_takes_the_addresses_of_one_that_was_reset() {
    let mut bed = Bed::new();
    for (at, many) in [(V4, MANY[0]), (V6, MANY[1])] {
        for by_client in [true, false] {
            let port = if by_client { ":4001" } else { ":4002" };
            let client = at.pod.replace(":4000", port);
            let syn = tcp(&client, many);
            let backend = established(&mut bed, &syn);
            if by_client {
                let rst = syn.flags(RST);
                bed.ingress(&rst)
                    .becomes(&rst.to(&backend), &["packet-original"]);
            } else {
                let rst = syn.answer(&backend, &client).flags(RST);
                bed.egress(&rst).becomes(&rst.from(many), &["packet-reply"]);
            }

            begins_anew(&mut bed, &syn);
        }
    }
}

#[test]
fn a_side_that_has_closed_keeps_the_connection() {
    let mut bed = Bed::new();
    let syn = tcp(V4.pod, MANY[0]);
    let backend = established(&mut bed, &syn);
    let fin = syn.flags(FIN | ACK);
    bed.ingress(&fin)
        .becomes(&fin.to(&backend), &["packet-original"]);

    let journey = bed.ingress(&syn);

    journey.becomes(&syn.to(&backend), &["packet-original"]);
}

/// A connection that both sides have confirmed. Returns the backend.
#[track_caller]
fn established(bed: &mut Bed, syn: &Packet) -> String {
    let journey = bed.ingress(syn);
    let backend = journey.destination();
    journey.becomes(&syn.to(&backend), &[FORWARD]);
    let answer = syn.answer(&backend, &syn.client());
    bed.egress(&answer)
        .becomes(&answer.from(&syn.service()), &["packet-reply"]);
    let ack = syn.flags(ACK);
    bed.ingress(&ack)
        .becomes(&ack.to(&backend), &["packet-original"]);
    backend
}

/// The one that is over is given up for it, and it is answered as any is.
#[track_caller]
fn begins_anew(bed: &mut Bed, syn: &Packet) {
    let journey = bed.ingress(syn);
    let backend = journey.destination();
    journey.becomes(&syn.to(&backend), &[FORWARD, "flow-given-up"]);
    let answer = syn.answer(&backend, &syn.client());
    bed.egress(&answer)
        .becomes(&answer.from(&syn.service()), &["packet-reply"]);
}

const TWIN: [&str; 2] = ["10.96.0.11:80", "[fd00:96::11]:80"];

/// Two Services with one backend, and one client port: the answers would look alike.
#[test]
fn a_flow_whose_answers_would_be_taken_for_another_flows_takes_its_place_while_nobody_answers() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let twin = TWIN[usize::from(at.pod == V6.pod)];
        let (first, second) = (make(at.pod, at.web), make(at.pod, twin));
        bed.ingress(&first)
            .becomes(&first.to(at.backend), &[FORWARD]);

        let journey = bed.ingress(&second);

        journey.becomes(&second.to(at.backend), &[FORWARD, "flow-given-up"]);
        let answer = second.answer(at.backend, at.pod);
        bed.egress(&answer)
            .becomes(&answer.from(twin), &["packet-reply"]);
    }
}

#[test]
fn a_flow_whose_answers_would_be_taken_for_an_established_ones_is_dropped() {
    let mut bed = Bed::new();
    for (at, twin) in [(V4, TWIN[0]), (V6, TWIN[1])] {
        let syn = tcp(at.pod, at.web);
        established(&mut bed, &syn);

        for _ in 0..3 {
            let journey = bed.ingress(&tcp(at.pod, twin));
            journey.is_dropped(&["drop-flow-clash"]);
        }

        let ack = syn.flags(ACK);
        let journey = bed.ingress(&ack);
        journey.becomes(&ack.to(at.backend), &["packet-original"]);
        let answer = syn.answer(at.backend, at.pod);
        let journey = bed.egress(&answer);
        journey.becomes(&answer.from(at.web), &["packet-reply"]);
    }
}

const STICKY: [&str; 2] = ["10.96.0.21:80", "[fd00:96::21]:80"];

#[test]
fn a_client_is_given_the_same_backend_again_where_the_service_wants_that() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let sticky = STICKY[usize::from(at.pod == V6.pod)];
        let mut backends = BTreeSet::new();
        for flow in 0..50 {
            let client = at.pod.replace(":4000", &format!(":{}", 5000 + flow));
            let first = make(&client, sticky);
            let journey = bed.ingress(&first);
            let backend = journey.destination();
            let counted = if flow == 0 { FORWARD } else { "forward-affine" };
            journey.becomes(&first.to(&backend), &[counted]);
            backends.insert(backend);
        }
        assert_eq!(backends.len(), 1, "{backends:?}");
    }
}

#[test]
fn clients_are_given_different_backends() {
    for service in [STICKY[0], MANY[0]] {
        let mut bed = Bed::new();
        let backends: BTreeSet<_> = (1..=200)
            .map(|last| bed.ingress(&tcp(&format!("10.1.7.{last}:4000"), service)))
            .map(|journey| journey.destination())
            .collect();
        // One of eight is missed by 200 draws once in 10^11.
        assert_eq!(backends.len(), 8, "{backends:?}");
    }
}

#[test]
fn beginnings_that_nobody_answers_take_no_room_from_each_other_nor_from_what_is_established() {
    const BEGINNINGS: u32 = 100_000;
    let mut bed = Bed::new();
    let client = |flow: u32| {
        let [.., high, low] = flow.to_be_bytes();
        format!("10.1.{}.{}:{}", 100 + high % 100, low, 1024 + flow % 60_000)
    };
    let kept: Vec<_> = (0..100)
        .map(|flow| tcp(&format!("10.1.9.9:{}", 2000 + flow), MANY[0]))
        .map(|syn| (established(&mut bed, &syn), syn))
        .collect();

    bed.flood((0..BEGINNINGS).map(|flow| tcp(&client(flow), V4.web).flags(SYN)));

    for (backend, syn) in &kept {
        let ack = syn.flags(ACK);
        let journey = bed.ingress(&ack);
        journey.becomes(&ack.to(backend), &["packet-original"]);
        let answer = syn.answer(backend, &syn.client());
        let journey = bed.egress(&answer);
        journey.becomes(&answer.from(MANY[0]), &["packet-reply"]);
    }
    let begun = bed.counter(FORWARD) - 100;
    assert_eq!(begun, u64::from(BEGINNINGS), "each is a flow of its own");
    let left = begun - bed.counter("flow-given-up");
    let most = u64::from(YOUNG_MAX) * cpus();
    assert!(left <= most, "{left} are remembered, {most} may be");
}

/// Each has its own memory of what has just begun.
fn cpus() -> u64 {
    std::thread::available_parallelism().unwrap().get() as u64
}
