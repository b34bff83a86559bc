//! Packet journeys: a packet in, and out come the verdict, the packet, and exactly the counters that
//! moved.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod packets;

use lb_common::flow::Node;
use lb_tests::journey::{Journeys, Verdict};
use packets::{Packet, tcp, udp};

const OBJECTS: &str = include_str!("objects.yaml");
const POD: &str = "10.1.0.9";
const WEB: &str = "10.96.0.10";
const BACKEND: &str = "10.1.0.5";

fn journeys() -> Journeys {
    let journeys = Journeys::new("node-1", OBJECTS).unwrap();
    journeys
        .maps()
        .write_node(&Node {
            v4: "172.18.0.2".parse::<std::net::IpAddr>().unwrap().into(),
            v6: "fd00:18::2".parse::<std::net::IpAddr>().unwrap().into(),
            flags: 0,
            pad: 0,
        })
        .unwrap();
    journeys
}

#[test]
fn a_packet_to_a_service_goes_to_its_backend_and_the_answer_comes_from_the_service() {
    let mut journeys = journeys();

    let out = journeys
        .run("nh_ingress", &tcp(POD, 4000, WEB, 80).syn())
        .unwrap();
    let sent = Packet::read(&out.packet);
    assert_eq!(out.verdict, Verdict::Next);
    assert_eq!(sent, Packet::of(POD, 4000, BACKEND, 8080));
    assert_eq!(
        Vec::from_iter(&out.counted),
        [(&"forward-unknown-zone", &1)]
    );

    let back = journeys
        .run("nh_egress", &tcp(BACKEND, 8080, POD, 4000).syn_ack())
        .unwrap();
    let sent = Packet::read(&back.packet);
    assert_eq!(sent, Packet::of(WEB, 80, POD, 4000));
    assert_eq!(Vec::from_iter(&back.counted), [(&"packet-reply", &1)]);
}

#[test]
fn a_packet_to_no_service_is_left_as_it_is() {
    let mut journeys = journeys();
    let packet = udp(POD, 4000, "10.1.0.7", 53).bytes(b"hello");

    let out = journeys.run("nh_ingress", &packet).unwrap();

    assert_eq!((out.verdict, out.packet), (Verdict::Next, packet));
    assert_eq!(Vec::from_iter(&out.counted), [(&"packet-pass", &1)]);
}

#[test]
fn a_port_that_is_none_of_the_services_is_refused_by_a_reset() {
    let mut journeys = journeys();

    let out = journeys
        .run("nh_ingress", &tcp(POD, 4000, WEB, 81).syn())
        .unwrap();

    let sent = Packet::read(&out.packet);
    assert_eq!(out.verdict, Verdict::SentBack);
    assert_eq!(sent, Packet::of(WEB, 81, POD, 4000));
    assert_eq!(Vec::from_iter(&out.counted), [(&"reject-unowned-port", &1)]);
}

#[test]
fn a_pod_that_asks_itself_is_hidden_behind_the_node() {
    let mut journeys = journeys();

    let out = journeys
        .run("nh_ingress", &tcp(BACKEND, 4000, WEB, 80).syn())
        .unwrap();
    assert_eq!(
        Packet::read(&out.packet),
        Packet::of(BACKEND, 4000, BACKEND, 8080)
    );
    let out = journeys.run("nh_egress", &out.packet).unwrap();
    let sent = Packet::read(&out.packet);
    assert_eq!(sent.source.ip().to_string(), "172.18.0.2");
    assert_eq!(sent.destination.to_string(), format!("{BACKEND}:8080"));

    let answer = tcp(BACKEND, 8080, "172.18.0.2", sent.source.port()).syn_ack();
    let out = journeys.run("nh_ingress", &answer).unwrap();
    assert_eq!(
        Packet::read(&out.packet),
        Packet::of(BACKEND, 8080, BACKEND, 4000)
    );
    let out = journeys.run("nh_egress", &out.packet).unwrap();
    assert_eq!(
        Packet::read(&out.packet),
        Packet::of(WEB, 80, BACKEND, 4000)
    );
}
