//! Packets of every shape: tags, options, extension headers, parts, padding, frames that end early, and
//! checksums at their edges.

use lb_tests::journey::Verdict;

use crate::{
    bed::{Bed, Journey},
    packets::{ACK, DESTINATION_OPTIONS, HOP_BY_HOP, RST, sctp, tcp, udp, unreachable},
    services::{Family, Make, V4, V6, kinds},
};

const FORWARD: &str = "forward-unknown-zone";

#[test]
fn a_frame_with_one_or_two_tags_is_translated_and_one_with_three_is_not_looked_into() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        for (vlans, counted) in [(1, FORWARD), (2, "packet-original")] {
            let packet = make(at.pod, at.web).vlans(vlans);
            // A new SYN or INIT is asked for again, and goes where the flow goes.
            bed.ingress(&packet)
                .becomes(&packet.to(at.backend), &[counted]);

            let reply = packet.answer(at.backend, at.pod);
            let journey = bed.egress(&reply);
            journey.becomes(&reply.from(at.web), &["packet-reply"]);
        }
        let packet = make(at.pod, at.web).vlans(3);
        bed.ingress(&packet).is_left_alone(&["packet-other"]);
    }
}

#[test]
fn a_refused_segment_with_a_tag_is_answered_with_the_tag() {
    let mut bed = Bed::new();
    for (at, to) in [(V4, "10.96.0.10:81"), (V6, "[fd00:96::10]:81")] {
        let syn = tcp(at.pod, to).vlans(1);

        let journey = bed.ingress(&syn);

        let reset = syn.reset(RST | ACK, 0, 8);
        journey.is_answered(&reset, &["reject-unowned-port"]);
    }
}

#[test]
fn options_of_ipv4_stay_where_they_are() {
    let mut bed = Bed::new();
    let no_operations = [1; 8];
    let most = [1; 40];
    for (port, options) in [(4001, &no_operations[..]), (4002, &most)] {
        for make in [tcp as Make, udp, sctp] {
            let packet = make(&format!("10.1.0.9:{port}"), V4.web).v4_options(options);

            let journey = bed.ingress(&packet);

            journey.becomes(&packet.to(V4.backend), &[FORWARD]);
        }
    }
    let syn = tcp(V4.pod, "10.96.0.10:81").v4_options(&no_operations);
    let journey = bed.ingress(&syn);
    journey.is_answered(&syn.reset(RST | ACK, 0, 8), &["reject-unowned-port"]);
}

#[test]
fn a_refused_datagram_with_options_is_dropped() {
    let packet = udp(V4.pod, "10.96.0.10:81").v4_options(&[1; 4]);

    let journey = Bed::new().ingress(&packet);

    journey.is_dropped(&["reject-unowned-port"]);
}

#[test]
fn extension_headers_of_ipv6_stay_where_they_are() {
    let mut bed = Bed::new();
    for (port, kinds) in [
        (4001, &[HOP_BY_HOP][..]),
        (4002, &[DESTINATION_OPTIONS]),
        (4003, &[HOP_BY_HOP, DESTINATION_OPTIONS]),
        (
            4004,
            &[HOP_BY_HOP, DESTINATION_OPTIONS, DESTINATION_OPTIONS],
        ),
    ] {
        for make in [tcp as Make, udp, sctp] {
            let packet = make(&format!("[fd00:1::9]:{port}"), V6.web).extensions(kinds);

            let journey = bed.ingress(&packet);

            journey.becomes(&packet.to(V6.backend), &[FORWARD]);
        }
    }
}

#[test]
fn a_packet_with_more_extension_headers_than_are_followed_is_left_alone() {
    let mut bed = Bed::new();
    for make in [tcp as Make, udp, sctp] {
        let kinds = [
            HOP_BY_HOP,
            DESTINATION_OPTIONS,
            DESTINATION_OPTIONS,
            DESTINATION_OPTIONS,
        ];
        let packet = make(V6.pod, V6.web).extensions(&kinds);

        bed.ingress(&packet).is_left_alone(&["packet-other"]);
    }
}

/// SCTP has its checksum in the first part, and it is one over all parts: the port must stay.
const IN_PARTS: [(Make, Family, &str); 6] = [
    (tcp, V4, V4.web),
    (udp, V4, V4.web),
    (sctp, V4, "10.96.0.10:8080"),
    (tcp, V6, V6.web),
    (udp, V6, V6.web),
    (sctp, V6, "[fd00:96::10]:8080"),
];

#[test]
fn later_parts_of_a_packet_follow_the_first_in_any_order() {
    let mut bed = Bed::new();
    for (make, at, service) in IN_PARTS {
        let packet = make(at.pod, service).payload(&[7; 60]);
        let sent = packet.parts(&[24, 32, 48]);
        let expected = packet.to(at.backend).parts(&[24, 32, 48]);
        bed.ingress(&sent[0]).becomes(&expected[0], &[FORWARD]);
        for later in [3, 1, 2, 1] {
            let journey = bed.ingress(&sent[later]);
            journey.becomes(&expected[later], &["packet-original"]);
        }

        let reply = packet.answer(at.backend, at.pod);
        let sent = reply.parts(&[24, 32, 48]);
        let expected = reply.from(service).parts(&[24, 32, 48]);
        for part in [0, 2, 1, 3] {
            let journey = bed.egress(&sent[part]);
            journey.becomes(&expected[part], &["packet-reply"]);
        }
    }
}

#[test]
fn parts_of_a_hidden_clients_packet_find_their_way_to_the_backend_and_back() {
    let mut bed = Bed::masquerading_all();
    for (make, at) in kinds().filter(|(make, at)| !make(at.pod, at.web).is_sctp()) {
        let packet = make(at.pod, at.web).payload(&[7; 60]);
        let cuts = [24, 48];
        let to_backend = packet.to(at.backend);
        for (part, counted) in [FORWARD, "packet-original", "packet-original"]
            .into_iter()
            .enumerate()
        {
            let journey = bed.ingress(&packet.parts(&cuts)[part]);
            journey.becomes(&to_backend.parts(&cuts)[part], &[counted]);
        }
        let behind = bed.egress(&to_backend.parts(&cuts)[0]).source();
        let hidden = to_backend.from(&behind);
        for part in [0, 2, 1] {
            let journey = bed.egress(&to_backend.parts(&cuts)[part]);
            journey.becomes(&hidden.parts(&cuts)[part], &["packet-original"]);
        }

        let reply = packet.answer(at.backend, &behind);
        let to_client = reply.to(at.pod);
        for part in [0, 2, 1] {
            let journey = bed.ingress(&reply.parts(&cuts)[part]);
            journey.becomes(&to_client.parts(&cuts)[part], &["packet-reply"]);
            let journey = bed.egress(&to_client.parts(&cuts)[part]);
            let from_service = to_client.from(at.web);
            journey.becomes(&from_service.parts(&cuts)[part], &["packet-reply"]);
        }
    }
}

#[test]
fn parts_of_an_sctp_packet_whose_port_would_change_are_dropped() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        for part in sctp(at.pod, at.web).payload(&[7; 60]).parts(&[24, 48]) {
            bed.ingress(&part).is_dropped(&["drop-unwritable"]);
        }
    }
}

/// Where the parts are not put together before, as netfilter does.
#[test]
fn a_later_part_before_the_first_is_left_alone() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let parts = make(at.pod, at.web).payload(&[7; 60]).parts(&[32]);

        bed.ingress(&parts[1]).is_left_alone(&["packet-other"]);
    }
}

#[test]
fn the_first_part_of_a_refused_packet_gets_no_answer() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let to = at.web.replace("]:80", "]:81").replace(".10:80", ".10:81");
        let parts = make(at.pod, &to).payload(&[7; 60]).parts(&[32]);

        bed.ingress(&parts[0]).is_dropped(&["reject-unowned-port"]);
        bed.ingress(&parts[1]).is_left_alone(&["packet-other"]);
    }
}

#[test]
fn a_packet_in_one_part_is_a_whole_one() {
    let mut bed = Bed::new();
    for make in [tcp as Make, udp, sctp] {
        let packet = make(V6.pod, V6.web);

        let journey = bed.ingress(&packet.parts(&[])[0]);

        journey.becomes(&packet.to(V6.backend).parts(&[])[0], &[FORWARD]);
    }
}

#[test]
fn padding_behind_a_short_packet_stays() {
    let mut bed = Bed::new();
    for (make, at) in kinds() {
        let packet = make(at.pod, at.web);
        let expected = packet.to(at.backend);

        let journey = bed.ingress(&packet.padded(128));

        journey.becomes(&expected.padded(128), &[FORWARD]);
    }
}

#[test]
fn padding_is_no_data_to_a_reset() {
    let syn = tcp(V4.pod, "10.96.0.10:81");

    let journey = Bed::new().ingress(&syn.padded(60));

    journey.is_answered(&syn.reset(RST | ACK, 0, 8), &["reject-unowned-port"]);
}

#[test]
fn padding_is_not_quoted() {
    let datagram = udp(V4.pod, "10.96.0.10:81").payload(b"");

    let journey = Bed::new().ingress(&datagram.padded(60));

    journey.is_answered(&unreachable(&datagram), &["reject-unowned-port"]);
}

#[test]
fn a_datagram_without_a_checksum_stays_without() {
    let mut bed = Bed::new();
    let datagram = udp(V4.pod, V4.web).without_sum();
    let reply = udp(V4.backend, V4.pod).without_sum();

    bed.ingress(&datagram)
        .becomes(&datagram.to(V4.backend), &[FORWARD]);
    bed.egress(&reply)
        .becomes(&reply.from(V4.web), &["packet-reply"]);
}

#[test]
fn a_datagrams_checksum_that_comes_to_zero_is_written_as_ones() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        let with = |filler: u16| udp(at.pod, at.web).payload(&filler.to_be_bytes());
        let filler = (0..=u16::MAX).find(|filler| with(*filler).to(at.backend).sum() == [0xff; 2]);
        let datagram = with(filler.unwrap());

        let journey = bed.ingress(&datagram);

        journey.becomes(&datagram.to(at.backend), &[FORWARD]);
    }
}

#[test]
fn an_sctp_checksum_that_is_left_to_the_kernel_stays_zero() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        let packet = sctp(at.pod, at.web).without_sum();

        let journey = bed.ingress(&packet);

        journey.becomes(&packet.to(at.backend), &[FORWARD]);
    }
}

#[test]
fn an_sctp_checksum_is_right_at_every_length() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        for len in (0..40).chain([1400, 3000]) {
            let packet = sctp(at.pod, at.web).payload(&vec![9; len]);
            let journey = bed.ingress(&packet);
            let counted = if len == 0 { FORWARD } else { "packet-original" };
            journey.becomes(&packet.to(at.backend), &[counted]);
        }
    }
}

#[test]
fn an_sctp_packet_whose_port_stays_is_not_summed_again() {
    let mut bed = Bed::new();
    for (at, service) in [(V4, "10.96.0.10:8080"), (V6, "[fd00:96::10]:8080")] {
        let packet = sctp(at.pod, service);

        let journey = bed.ingress(&packet);

        journey.becomes(&packet.to(at.backend), &[FORWARD]);
    }
}

/// A frame that ends early goes on as it is, or is dropped, or is translated if what ends early is its
/// payload; it is never translated in part.
#[test]
fn a_frame_that_ends_early_is_never_translated_in_part() {
    for (make, at) in kinds() {
        let mut bed = Bed::new();
        // The tag hides from the kernel that the IP header is cut: it would refuse to run the program.
        let packet = make(at.pod, at.web).vlans(1);
        let (frame, expected) = (packet.frame(), packet.to(at.backend).frame());
        for len in 15..=frame.len() {
            let journey = bed.ingress(&frame[..len]);
            whole_or_not_at_all(&journey, &expected[..len]);
        }
    }
}

#[track_caller]
fn whole_or_not_at_all(journey: &Journey, expected: &[u8]) {
    let (arrival, sent) = (&journey.arrival, &journey.sent);
    let fine = match arrival.verdict {
        Verdict::Next => arrival.packet == *sent || arrival.packet == expected,
        Verdict::Dropped => arrival.counted.contains_key("drop-unwritable"),
        Verdict::SentBack | Verdict::Other(_) => false,
    };
    assert!(fine, "{} bytes: {arrival:x?}", sent.len());
    assert_eq!(arrival.counted.values().sum::<u64>(), 1, "{arrival:x?}");
}
