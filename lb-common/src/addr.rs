//! Addresses, ports and protocols as both sides write them: newtypes, so that a swapped byte order
//! or a port where an index belongs is a type error.

use core::{
    fmt,
    hash::{Hash, Hasher},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use bytemuck::{Pod, Zeroable};

/// An IP address: 16 bytes in network order, IPv4 as `::ffff:a.b.c.d`.
///
/// Aligned to 4 because the kernel hands addresses over as 32-bit words and the BPF target copies
/// byte by byte what is aligned to less.
#[derive(Clone, Copy, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C, align(4))]
pub struct Addr {
    /// Network order.
    pub bytes: [u8; 16],
}

const _: () = assert!(size_of::<Addr>() == 16);

/// The third word of an IPv4-mapped address, as it lies in memory.
const V4_PREFIX: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Addr {
    /// From the four bytes of an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn v4([a, b, c, d]: [u8; 4]) -> Self {
        Self {
            bytes: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d],
        }
    }

    /// From the word of `user_ip4`, as it lies in memory.
    #[inline(always)]
    #[must_use]
    pub fn from_v4_word(word: u32) -> Self {
        Self::from_words([0, 0, V4_PREFIX, word])
    }

    /// From the four words of `user_ip6`, each as it lies in memory.
    #[inline(always)]
    #[must_use]
    pub fn from_words(words: [u32; 4]) -> Self {
        bytemuck::cast(words)
    }

    /// The four words of `user_ip6`, each as it lies in memory.
    #[inline(always)]
    #[must_use]
    pub fn words(self) -> [u32; 4] {
        bytemuck::cast(self)
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    #[must_use]
    pub fn is_v4(self) -> bool {
        let [a, b, c, _] = self.words();
        a == 0 && b == 0 && c == V4_PREFIX
    }
}

/// Word by word: the derived comparison goes byte by byte on the BPF target.
impl PartialEq for Addr {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.words(), other.words());
        a == e && b == f && c == g && d == h
    }
}

impl Hash for Addr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.words().hash(state);
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::v4(v4.octets()),
            IpAddr::V6(v6) => Self { bytes: v6.octets() },
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        Ipv6Addr::from(addr.bytes).to_canonical()
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A port number in host order. Converted from and to network order in exactly two places: `sock.rs`
/// of lb-ebpf and `wire.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Port(pub u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An IP protocol number (`IPPROTO_*`). 0 stands for "any" in the key that marks a Service's address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
#[repr(transparent)]
pub struct Proto(pub u8);

impl Proto {
    /// Any protocol: only in the `FRONTENDS` key that marks an address.
    pub const ANY: Self = Self(0);
    /// `IPPROTO_TCP`.
    pub const TCP: Self = Self(6);
    /// `IPPROTO_UDP`.
    pub const UDP: Self = Self(17);
    /// `IPPROTO_SCTP`.
    pub const SCTP: Self = Self(132);

    /// The name Kubernetes uses, or `None` for a number that no Service can have.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        match self {
            Self::TCP => Some("TCP"),
            Self::UDP => Some("UDP"),
            Self::SCTP => Some("SCTP"),
            _ => None,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => self.0.fmt(f),
        }
    }
}

impl fmt::Debug for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address and port, printed as users write it: `10.0.0.1:80`, `[fd00::1]:80`.
#[must_use]
pub fn socket_addr(addr: Addr, port: Port) -> SocketAddr {
    SocketAddr::new(addr.into(), port.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_stored_mapped_and_printed_plain() {
        let addr = Addr::from(IpAddr::from([10, 96, 0, 1]));

        assert_eq!(addr.bytes[10..], [0xff, 0xff, 10, 96, 0, 1]);
        assert!(addr.is_v4());
        assert_eq!(std::format!("{addr}"), "10.96.0.1");
    }

    #[test]
    fn words_are_the_bytes_as_they_lie() {
        let addr = Addr::from(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]));

        assert_eq!(Addr::from_words(addr.words()), addr);
        assert!(!addr.is_v4());
    }

    #[test]
    fn a_socket_address_is_written_as_users_do() {
        let v6 = Addr::from(IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]));

        assert_eq!(
            std::format!("{}", socket_addr(v6, Port(80))),
            "[fd00::1]:80"
        );
    }
}
