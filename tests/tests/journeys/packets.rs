//! Packets to send and to look at. A checksum that is wrong in what came out fails the test.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpHeaders, NetHeaders, PacketBuilder, PacketBuilderStep, PacketHeaders, TransportHeader,
};

const HOPS: u8 = 64;
const WINDOW: u16 = 1024;

/// The ends of a packet that came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
}

impl Packet {
    pub(crate) fn of(from: &str, from_port: u16, to: &str, to_port: u16) -> Self {
        Self {
            source: SocketAddr::new(ip(from), from_port),
            destination: SocketAddr::new(ip(to), to_port),
        }
    }

    pub(crate) fn read(bytes: &[u8]) -> Self {
        let packet = PacketHeaders::from_ethernet_slice(bytes).unwrap();
        let net = packet.net.unwrap();
        let payload = packet.payload.slice();
        let transport = packet.transport.unwrap();
        let (ports, sum, right) = match (&net, &transport) {
            (NetHeaders::Ipv4(ip, _), TransportHeader::Tcp(tcp)) => (
                (tcp.source_port, tcp.destination_port),
                tcp.checksum,
                tcp.calc_checksum_ipv4(ip, payload).unwrap(),
            ),
            (NetHeaders::Ipv6(ip, _), TransportHeader::Tcp(tcp)) => (
                (tcp.source_port, tcp.destination_port),
                tcp.checksum,
                tcp.calc_checksum_ipv6(ip, payload).unwrap(),
            ),
            (NetHeaders::Ipv4(ip, _), TransportHeader::Udp(udp)) => (
                (udp.source_port, udp.destination_port),
                udp.checksum,
                udp.calc_checksum_ipv4(ip, payload).unwrap(),
            ),
            (NetHeaders::Ipv6(ip, _), TransportHeader::Udp(udp)) => (
                (udp.source_port, udp.destination_port),
                udp.checksum,
                udp.calc_checksum_ipv6(ip, payload).unwrap(),
            ),
            other => panic!("{other:?}"),
        };
        assert_eq!(sum, right, "the transport checksum of {bytes:x?}");
        let (source, destination): (IpAddr, IpAddr) = match &net {
            NetHeaders::Ipv4(ip, _) => {
                assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "IPv4's");
                (ip.source.into(), ip.destination.into())
            }
            NetHeaders::Ipv6(ip, _) => (ip.source.into(), ip.destination.into()),
            NetHeaders::Arp(_) => panic!("ARP"),
        };
        Self {
            source: SocketAddr::new(source, ports.0),
            destination: SocketAddr::new(destination, ports.1),
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A TCP segment to be.
pub(crate) struct Tcp(Packet);

pub(crate) fn tcp(from: &str, from_port: u16, to: &str, to_port: u16) -> Tcp {
    Tcp(Packet::of(from, from_port, to, to_port))
}

impl Tcp {
    pub(crate) fn syn(&self) -> Vec<u8> {
        let step = ends(&self.0).tcp(self.0.source.port(), self.0.destination.port(), 7, WINDOW);
        written(step.syn(), b"")
    }

    pub(crate) fn syn_ack(&self) -> Vec<u8> {
        let step = ends(&self.0).tcp(self.0.source.port(), self.0.destination.port(), 9, WINDOW);
        written(step.syn().ack(8), b"")
    }
}

/// A datagram to be.
pub(crate) struct Udp(Packet);

pub(crate) fn udp(from: &str, from_port: u16, to: &str, to_port: u16) -> Udp {
    Udp(Packet::of(from, from_port, to, to_port))
}

impl Udp {
    pub(crate) fn bytes(&self, payload: &[u8]) -> Vec<u8> {
        let step = ends(&self.0).udp(self.0.source.port(), self.0.destination.port());
        let mut bytes = Vec::new();
        step.write(&mut bytes, payload).unwrap();
        bytes
    }
}

fn ends(packet: &Packet) -> PacketBuilderStep<IpHeaders> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    match (packet.source.ip(), packet.destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), HOPS),
        mixed => panic!("{mixed:?}"),
    }
}

fn written(step: PacketBuilderStep<etherparse::TcpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    step.write(&mut bytes, payload).unwrap();
    bytes
}
