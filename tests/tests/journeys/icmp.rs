//! ICMP errors about packets of flows: from a router on the way, and from an end, both ways, plain and
//! masqueraded. What is quoted must be what the receiver sent, or it takes the error for somebody else's.

use crate::{
    bed::Bed,
    masquerade::hidden,
    packets::{ACK, Packet, icmp_about, tcp, udp},
    services::{Family, V4, V6},
};

const ERROR: &[&str] = &["packet-icmp-error"];

/// Errors of a family: type, code, and the word that says more.
fn errors(at: &Family) -> [(u8, u8, [u8; 4]); 4] {
    match at.pod == V4.pod {
        // Fragmentation needed, port unreachable, time exceeded, parameter problem.
        true => [
            (3, 4, [0, 0, 5, 120]),
            (3, 3, [0; 4]),
            (11, 0, [0; 4]),
            (12, 0, [20, 0, 0, 0]),
        ],
        // Packet too big, port unreachable, time exceeded, parameter problem.
        false => [
            (2, 0, [0, 0, 5, 120]),
            (1, 4, [0; 4]),
            (3, 0, [0; 4]),
            (4, 0, [0, 0, 0, 40]),
        ],
    }
}

const ROUTER: [&str; 2] = ["10.9.9.9", "fd00:9::9"];

fn router(at: &Family) -> &'static str {
    ROUTER[usize::from(at.pod == V6.pod)]
}

fn addr(end: &str) -> String {
    let end: std::net::SocketAddr = end.parse().unwrap();
    end.ip().to_string()
}

/// Each error from this address to that about a packet, and what it is to become with other ones.
fn each(
    at: &Family,
    sent: (&str, &str, &Packet),
    becomes: (&str, &str, &Packet),
) -> Vec<(Packet, Packet)> {
    let errors = errors(at).into_iter();
    let about = |(from, to, quoted): (&str, &str, &Packet), (kind, code, word)| {
        icmp_about(&addr(from), &addr(to), (kind, code), word, quoted)
    };
    errors
        .map(|error| (about(sent, error), about(becomes, error)))
        .collect()
}

fn flow(bed: &mut Bed, at: &Family) -> Packet {
    let syn = tcp(at.pod, at.web);
    bed.ingress(&syn)
        .becomes(&syn.to(at.backend), &["forward-unknown-zone"]);
    syn.flags(ACK).payload(&[1; 30])
}

#[test]
fn an_error_from_a_router_about_what_went_to_the_backend_speaks_of_the_service() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        let asked = flow(&mut bed, &at);
        let router = format!("{}:0", bracketed(router(&at)));
        for (sent, expected) in each(
            &at,
            (&router, at.pod, &asked.to(at.backend)),
            (&router, at.pod, &asked),
        ) {
            bed.egress(&sent).becomes(&expected, ERROR);
        }
    }
}

#[test]
fn an_error_from_the_backend_comes_from_the_service() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        let asked = flow(&mut bed, &at);
        for (sent, expected) in each(
            &at,
            (at.backend, at.pod, &asked.to(at.backend)),
            (at.web, at.pod, &asked),
        ) {
            bed.egress(&sent).becomes(&expected, ERROR);
        }
    }
}

#[test]
fn an_error_about_an_answer_goes_to_the_backend_and_speaks_of_its_own_packet() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        let asked = flow(&mut bed, &at);
        let answered = asked.turned();
        let from_backend = answered.from(at.backend);
        let router = format!("{}:0", bracketed(router(&at)));
        for who in [at.pod, router.as_str()] {
            for (sent, expected) in each(
                &at,
                (who, at.web, &answered),
                (who, at.backend, &from_backend),
            ) {
                bed.ingress(&sent).becomes(&expected, ERROR);
                bed.egress(&expected).is_left_alone(&["packet-pass"]);
            }
        }
    }
}

#[test]
fn an_error_to_the_node_finds_the_client_that_is_hidden_behind_it() {
    let mut bed = Bed::masquerading_all();
    for at in [V4, V6] {
        let behind = hidden(&mut bed, tcp, at.pod, &at);
        let asked = tcp(at.pod, at.web).flags(ACK).payload(&[1; 30]);
        let to_backend = asked.to(at.backend);
        let router = format!("{}:0", bracketed(router(&at)));
        for (who, seen_as) in [(router.as_str(), router.as_str()), (at.backend, at.web)] {
            for ((sent, inside), (_, expected)) in each(
                &at,
                (who, &behind, &to_backend.from(&behind)),
                (who, at.pod, &to_backend),
            )
            .into_iter()
            .zip(each(
                &at,
                (who, at.pod, &to_backend),
                (seen_as, at.pod, &asked),
            )) {
                bed.ingress(&sent).becomes(&inside, ERROR);
                bed.egress(&inside).becomes(&expected, ERROR);
            }
        }
    }
}

#[test]
fn an_error_about_an_answer_to_a_hidden_client_reaches_the_backend_from_the_node() {
    let mut bed = Bed::masquerading_all();
    for at in [V4, V6] {
        let behind = hidden(&mut bed, tcp, at.pod, &at);
        let answered = tcp(at.web, at.pod).flags(ACK).payload(&[1; 30]);
        let inner = answered.from(at.backend);
        let router = format!("{}:0", bracketed(router(&at)));
        for (who, seen_as) in [(router.as_str(), router.as_str()), (at.pod, &behind)] {
            for ((sent, inside), (_, expected)) in
                each(&at, (who, at.web, &answered), (who, at.backend, &inner))
                    .into_iter()
                    .zip(each(
                        &at,
                        (who, at.backend, &inner),
                        (seen_as, at.backend, &inner.to(&behind)),
                    ))
            {
                bed.ingress(&sent).becomes(&inside, ERROR);
                bed.egress(&inside).becomes(&expected, ERROR);
            }
        }
    }
}

#[test]
fn port_unreachable_about_a_datagram_speaks_of_the_service() {
    let mut bed = Bed::new();
    let asked = udp(V4.pod, V4.web).without_sum();
    bed.ingress(&asked)
        .becomes(&asked.to(V4.backend), &["forward-unknown-zone"]);

    let about =
        |from: &str, to: &str| icmp_about(&addr(from), "10.1.0.9", (3, 3), [0; 4], &asked.to(to));
    let journey = bed.egress(&about(V4.backend, V4.backend));

    journey.becomes(&about(V4.web, V4.web), ERROR);
}

#[test]
fn an_error_about_no_flow_is_left_alone() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        let router = format!("{}:0", bracketed(router(&at)));
        let other = tcp(at.pod, at.backend);
        for (sent, _) in each(&at, (&router, at.pod, &other), (&router, at.pod, &other)) {
            bed.ingress(&sent).is_left_alone(&["packet-pass"]);
            bed.egress(&sent).is_left_alone(&["packet-pass"]);
        }
    }
}

#[test]
fn a_redirect_is_left_alone() {
    let mut bed = Bed::new();
    for (at, kind) in [(V4, 5), (V6, 137)] {
        let asked = flow(&mut bed, &at);
        let redirect = icmp_about(
            router(&at),
            &addr(at.pod),
            (kind, 1),
            [0; 4],
            &asked.to(at.backend),
        );

        bed.egress(&redirect).is_left_alone(&["packet-pass"]);
        bed.ingress(&redirect).is_left_alone(&["packet-pass"]);
    }
}

#[test]
fn an_error_that_ends_within_its_quotation_is_left_alone() {
    let mut bed = Bed::new();
    for at in [V4, V6] {
        let asked = flow(&mut bed, &at);
        let (kind, code, word) = errors(&at)[0];
        let about = asked.to(at.backend);
        let error = icmp_about(router(&at), &addr(at.pod), (kind, code), word, &about);
        // The tag hides from the kernel that the IP header is cut: it would refuse to run the program.
        let frame = error.vlans(1).frame();
        let (link_len, ip_len) = (18, if error.is_v4() { 20 } else { 40 });
        let up_to_ports = link_len + ip_len + 8 + ip_len + 4;
        for len in 15..up_to_ports {
            let journey = bed.egress(&frame[..len]);
            let counted = match len < link_len + ip_len {
                true => "packet-other",
                false => "packet-pass",
            };
            journey.is_left_alone(&[counted]);
        }
    }
}

fn bracketed(addr: &str) -> String {
    match addr.contains(':') {
        true => format!("[{addr}]"),
        false => addr.to_owned(),
    }
}
