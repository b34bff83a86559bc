//! A node of packet programs, and what is asked of each packet that they let out.

use std::{
    array,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_agent::datapath::maps::LocalTables;
use lb_common::{
    addr::Addr,
    flow::Node,
    tables::{SERVICE_CIDRS_MAX, SERVICE_CIDRS_PER_FAMILY, ServiceCidr},
};
use lb_tests::journey::{Arrival, Came, Journeys, Verdict};

use crate::packets::{FRAGMENT, Packet};

const OBJECTS: &str = include_str!("objects.yaml");

/// Clients are hidden behind these.
pub(crate) const NODE: [&str; 2] = ["172.18.0.2", "fd00:18::2"];

const NO_CIDR: ServiceCidr = ServiceCidr {
    addr: Addr { bytes: [0; 16] },
    mask: Addr { bytes: [0; 16] },
    used: 0,
};

/// Programs with the maps of a node.
pub(crate) struct Bed(Journeys);

impl Bed {
    /// A node that tells no pods from others.
    pub(crate) fn new() -> Self {
        Self::with(NODE, 0, &[])
    }

    /// A node that hides every client of a ClusterIP.
    pub(crate) fn masquerading_all() -> Self {
        Self::with(NODE, Node::MASQUERADE_ALL, &[])
    }

    /// A node that takes 10.1.0.0/16 and fd00:1::/32 for the pods.
    pub(crate) fn with_pod_cidrs() -> Self {
        let cidr = |addr: &str, ones: usize| ServiceCidr {
            addr: addr.parse::<IpAddr>().unwrap().into(),
            mask: Addr {
                bytes: array::from_fn(|at| if at < ones { 0xff } else { 0 }),
            },
            used: 1,
        };
        // The first of each family; IPv4 lies as a mapped address.
        let cidrs = [
            (0, cidr("10.1.0.0", 14)),
            (SERVICE_CIDRS_PER_FAMILY, cidr("fd00:1::", 4)),
        ];
        Self::with(NODE, Node::DETECT_RANGE, &cidrs)
    }

    /// A node that has no address to hide clients behind, and is to hide all.
    pub(crate) fn without_address() -> Self {
        Self::with(["", ""], Node::MASQUERADE_ALL, &[])
    }

    fn with(addrs: [&str; 2], flags: u32, cidrs: &[(u32, ServiceCidr)]) -> Self {
        let none = Addr { bytes: [0; 16] };
        let [v4, v6] = addrs.map(|addr| addr.parse::<IpAddr>().map_or(none, Addr::from));
        let mut pod_cidrs = vec![NO_CIDR; SERVICE_CIDRS_MAX as usize];
        for (at, cidr) in cidrs {
            pod_cidrs[*at as usize] = *cidr;
        }
        let local = LocalTables {
            node: Node {
                v4,
                v6,
                flags,
                pad: 0,
            },
            pod_cidrs,
            pods: BTreeSet::new(),
        };
        let mut journeys = Journeys::new("node-1", OBJECTS).unwrap();
        journeys.write_local(&local).unwrap();
        Self(journeys)
    }

    /// What becomes of a packet that comes in.
    pub(crate) fn ingress(&mut self, sent: impl Frame) -> Journey {
        self.journey("nh_ingress", sent, Came::ByInterface)
    }

    /// What becomes of a packet that came by another interface and leaves.
    pub(crate) fn egress(&mut self, sent: impl Frame) -> Journey {
        self.journey("nh_egress", sent, Came::ByInterface)
    }

    /// What becomes of a packet of this node's own that leaves.
    pub(crate) fn egress_of_node(&mut self, sent: impl Frame) -> Journey {
        self.journey("nh_egress", sent, Came::FromNode)
    }

    fn journey(&mut self, program: &str, sent: impl Frame, came: Came) -> Journey {
        let sent = sent.bytes();
        let arrival = self.0.run(program, &sent, came).unwrap();
        Journey { sent, arrival }
    }

    /// Sends without looking at what comes out, nor at counters.
    pub(crate) fn flood(&mut self, packets: impl IntoIterator<Item = Packet>) {
        for packet in packets {
            self.0.send("nh_ingress", &packet.frame()).unwrap();
        }
    }

    /// A counter.
    pub(crate) fn counter(&self, reason: &str) -> u64 {
        self.0.maps().counters().unwrap()[reason]
    }
}

/// A frame to send or to expect.
pub(crate) trait Frame {
    fn bytes(&self) -> Vec<u8>;
}

impl Frame for &Packet {
    fn bytes(&self) -> Vec<u8> {
        self.frame()
    }
}

impl Frame for &Vec<u8> {
    fn bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Frame for &[u8] {
    fn bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

/// A packet that was sent, and what became of it.
pub(crate) struct Journey {
    pub(crate) sent: Vec<u8>,
    pub(crate) arrival: Arrival,
}

impl Journey {
    /// It goes on, as this.
    #[track_caller]
    pub(crate) fn becomes(&self, expected: impl Frame, counted: &[&str]) {
        self.ends(Verdict::Next, &expected.bytes(), counted);
    }

    /// It goes on, as it is.
    #[track_caller]
    pub(crate) fn is_left_alone(&self, counted: &[&str]) {
        self.ends(Verdict::Next, &self.sent, counted);
    }

    /// This goes back in its place.
    #[track_caller]
    pub(crate) fn is_answered(&self, by: impl Frame, counted: &[&str]) {
        self.ends(Verdict::SentBack, &by.bytes(), counted);
    }

    /// It is dropped.
    #[track_caller]
    pub(crate) fn is_dropped(&self, counted: &[&str]) {
        self.ends(Verdict::Dropped, &self.arrival.packet, counted);
    }

    #[track_caller]
    fn ends(&self, verdict: Verdict, expected: &[u8], counted: &[&str]) {
        let mut counts = BTreeMap::new();
        for reason in counted {
            *counts.entry(*reason).or_insert(0) += 1;
        }
        let arrival = &self.arrival;
        assert_eq!(
            (arrival.verdict, &arrival.counted),
            (verdict, &counts),
            "of {}",
            hex(&self.sent)
        );
        assert_eq!(
            hex(&arrival.packet),
            hex(expected),
            "from {}",
            hex(&self.sent)
        );
    }

    /// The address and port that the packet has as its source; it must have come out.
    pub(crate) fn source(&self) -> String {
        self.ends_of().0
    }

    /// The same of its destination.
    pub(crate) fn destination(&self) -> String {
        self.ends_of().1
    }

    /// Of frames without tags and options, and without extension headers but IPv6's fragment header.
    fn ends_of(&self) -> (String, String) {
        let packet = &self.arrival.packet;
        let addr = |at: usize| -> IpAddr {
            match packet[12..14] {
                [8, 0] => <[u8; 4]>::try_from(&packet[at..at + 4]).unwrap().into(),
                _ => <[u8; 16]>::try_from(&packet[at..at + 16]).unwrap().into(),
            }
        };
        let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let (from, to, l4) = match packet[12..14] {
            [8, 0] => (26, 30, 34),
            _ if packet[20] == FRAGMENT => (22, 38, 62),
            _ => (22, 38, 54),
        };
        let end = |addr, port| std::net::SocketAddr::new(addr, port).to_string();
        (end(addr(from), port(l4)), end(addr(to), port(l4 + 2)))
    }
}

/// Bytes in rows, so that two of them are compared by looking.
fn hex(bytes: &[u8]) -> String {
    let row = |row: &[u8]| -> String { row.iter().map(|byte| format!("{byte:02x} ")).collect() };
    let rows = bytes.chunks(16).map(row);
    rows.fold(format!("{} bytes", bytes.len()), |all, row| {
        all + "\n" + row.trim_end()
    })
}
