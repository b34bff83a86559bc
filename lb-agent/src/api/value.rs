//! The small values inside objects: addresses, ranges, ports, protocols. Each error is one that can
//! follow "is ignored:".

use std::net::{IpAddr, Ipv4Addr};

use lb_common::addr::{Addr, Port, Proto};

use crate::model::service::Cidr;

/// An address as Kubernetes admits it, in its one canonical form. Older clusters hold IPv4 addresses
/// with leading zeros, which are decimal here as in kube-proxy; `::ffff:a.b.c.d` is IPv4.
pub(super) fn addr(text: &str) -> Result<Addr, String> {
    let ip = match text.rsplit_once(':') {
        None => v4(text).map(IpAddr::V4),
        // An IPv6 address may end in an IPv4 one.
        Some((head, tail)) if tail.contains('.') => {
            v4(tail).and_then(|tail| format!("{head}:{tail}").parse().ok())
        }
        Some(_) => text.parse().ok(),
    };
    ip.map(Addr::from)
        .ok_or_else(|| format!("{text:?} is not an IP address"))
}

fn v4(text: &str) -> Option<Ipv4Addr> {
    let mut bytes = [0; 4];
    let mut parts = text.split('.');
    for byte in &mut bytes {
        *byte = decimal(parts.next()?)?;
    }
    parts.next().is_none().then(|| bytes.into())
}

fn decimal(text: &str) -> Option<u8> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

/// A range of addresses; white space around it is forgiven, as in kube-proxy.
pub(crate) fn cidr(text: &str) -> Result<Cidr, String> {
    let bad = || format!("{text:?} is not a range such as 10.0.0.0/8 or fd00::/64");
    let (start, len) = text.trim().split_once('/').ok_or_else(bad)?;
    let start = addr(start).map_err(|_| bad())?;
    Cidr::new(start, decimal(len).ok_or_else(bad)?).ok_or_else(bad)
}

/// A port number that a packet can carry.
pub(super) fn port(number: i32) -> Result<Port, String> {
    match u16::try_from(number) {
        Ok(port @ 1..) => Ok(Port(port)),
        Ok(0) | Err(_) => Err(format!("{number} is not a port; ports are 1 to 65535")),
    }
}

/// A protocol; the API's default is TCP.
pub(super) fn proto(name: Option<&str>) -> Result<Proto, String> {
    match name {
        None | Some("" | "TCP") => Ok(Proto::TCP),
        Some("UDP") => Ok(Proto::UDP),
        Some("SCTP") => Ok(Proto::SCTP),
        Some(other) => Err(format!("protocol {other:?} is none of TCP, UDP, SCTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_canonical() {
        for (text, expected) in [
            ("10.96.0.1", Some("10.96.0.1")),
            ("010.096.000.001", Some("10.96.0.1")),
            ("::ffff:10.96.0.1", Some("10.96.0.1")),
            ("::ffff:0a60:0001", Some("10.96.0.1")),
            ("::ffff:010.096.0.1", Some("10.96.0.1")),
            ("FD00:0:0::1", Some("fd00::1")),
            ("fd00:10::0001", Some("fd00:10::1")),
            ("::", Some("::")),
            ("", None),
            ("10.96.0", None),
            ("10.96.0.1.2", None),
            ("10.96.0.256", None),
            ("10.96.0.+1", None),
            ("10.96..1", None),
            ("10.96.0.1 ", None),
            ("fe80::1%eth0", None),
            ("fd00::g", None),
            ("web.example", None),
        ] {
            let read = addr(text).map(|addr| addr.to_string());

            assert_eq!(read.ok().as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn ranges_forgive_white_space_and_host_bits() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            (" 10.1.2.3/8\t", Some("10.0.0.0/8")),
            ("010.0.0.0/8", Some("10.0.0.0/8")),
            ("fd00::1/64", Some("fd00::/64")),
            ("10.0.0.0", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/-1", None),
            ("10.0.0.0/ 8", None),
            ("fd00::/129", None),
            ("here/8", None),
        ] {
            let read = cidr(text).map(|cidr| cidr.to_string());

            assert_eq!(read.ok().as_deref(), expected, "{text:?}");
        }
    }
}
