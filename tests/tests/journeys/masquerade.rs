//! Clients that a backend must not see: who is hidden behind the node, with a port of its own, and that
//! the way back leads to the client.

use crate::{
    bed::{Bed, NODE},
    packets::{Packet, sctp, tcp, udp},
    services::{Family, Make, V4, V6, kinds},
};

/// Who no pod is.
pub(crate) const OUTSIDE: [&str; 2] = ["192.0.2.7:4000", "[2001:db8::7]:4000"];

fn outside(at: &Family) -> &'static str {
    OUTSIDE[usize::from(at.pod == V6.pod)]
}

/// A packet's way to a backend that must not see the client, and the answer's way back. Returns what the
/// backend took for the client.
#[track_caller]
pub(crate) fn hidden(bed: &mut Bed, make: Make, client: &str, at: &Family) -> String {
    let first = make(client, at.web);
    let to_backend = first.to(at.backend);
    bed.ingress(&first)
        .becomes(&to_backend, &["forward-unknown-zone"]);
    let journey = bed.egress(&to_backend);
    let behind = journey.source();
    journey.becomes(&to_backend.from(&behind), &["packet-original"]);
    is_of_this_node(&behind);

    let reply = first.answer(at.backend, &behind);
    let to_client = reply.to(client);
    bed.ingress(&reply).becomes(&to_client, &["packet-reply"]);
    bed.egress(&to_client)
        .becomes(&to_client.from(at.web), &["packet-reply"]);

    bed.ingress(&first)
        .becomes(&to_backend, &["packet-original"]);
    let again = to_backend.from(&behind);
    bed.egress(&to_backend)
        .becomes(&again, &["packet-original"]);
    behind
}

#[track_caller]
fn is_of_this_node(behind: &str) {
    let behind: std::net::SocketAddr = behind.parse().unwrap();
    let node = NODE.map(|node| node.parse::<std::net::IpAddr>().unwrap());
    assert!(node.contains(&behind.ip()), "{behind}");
    assert!(behind.port() >= 61_000, "{behind}");
}

#[track_caller]
fn not_hidden(bed: &mut Bed, make: Make, client: &str, at: &Family) {
    let first = make(client, at.web);
    let to_backend = first.to(at.backend);
    bed.ingress(&first)
        .becomes(&to_backend, &["forward-unknown-zone"]);
    bed.egress(&to_backend).is_left_alone(&["packet-pass"]);
}

#[test]
fn a_client_that_is_no_pod_is_hidden() {
    let mut bed = Bed::with_pod_cidrs();
    for (make, at) in kinds() {
        hidden(&mut bed, make, outside(&at), &at);
    }
}

#[test]
fn a_pod_is_not_hidden() {
    let mut bed = Bed::with_pod_cidrs();
    for (make, at) in kinds() {
        not_hidden(&mut bed, make, at.pod, &at);
    }
}

#[test]
fn nobody_is_hidden_where_pods_cannot_be_told_from_others() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        not_hidden(&mut bed, make, outside(&at), &at);
    }
}

#[test]
fn everybody_is_hidden_where_that_is_asked_for() {
    let mut bed = Bed::masquerading_all();
    for (make, at) in kinds() {
        hidden(&mut bed, make, at.pod, &at);
    }
}

#[test]
fn a_pod_that_asks_itself_is_hidden() {
    let mut bed = Bed::with_pod_cidrs();
    for (make, at, client) in [
        (tcp as Make, V4, "10.1.0.5:4000"),
        (udp, V4, "10.1.0.5:4000"),
        (sctp, V4, "10.1.0.5:4000"),
        (tcp, V6, "[fd00:1::5]:4000"),
        (udp, V6, "[fd00:1::5]:4000"),
        (sctp, V6, "[fd00:1::5]:4000"),
    ] {
        hidden(&mut bed, make, client, &at);
    }
}

#[test]
fn clients_with_one_port_are_hidden_behind_several() {
    let mut bed = Bed::masquerading_all();
    let client = |last| format!("10.1.0.{last}:4000");

    let mut ports: Vec<_> = (100..130)
        .map(|last| hidden(&mut bed, tcp, &client(last), &V4))
        .collect();

    ports.sort();
    ports.dedup();
    assert_eq!(ports.len(), 30);
}

#[test]
fn without_an_address_to_hide_a_client_behind_its_packets_are_dropped_each_time() {
    let mut bed = Bed::without_address();
    for (make, at) in kinds() {
        let first: Packet = make(at.pod, at.web);

        // Nothing is remembered of it: the second is the first again.
        for _ in 0..2 {
            bed.ingress(&first).is_dropped(&["drop-no-masquerade"]);
        }
        let reply = first.answer(at.backend, at.pod);
        bed.egress(&reply).is_left_alone(&["packet-pass"]);
    }
}
