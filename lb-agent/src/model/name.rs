//! The names by which everything about a Service is found.

use std::{fmt, str::FromStr};

use lb_common::addr::{Addr, Proto};

/// IPv4 or IPv6. The halves of a dual-stack Service share nothing but its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    #[must_use]
    pub fn of(addr: Addr) -> Self {
        if addr.is_v4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A Service, of any family: what an `EndpointSlice`'s label points at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `namespace/name`, as it is printed.
impl FromStr for ServiceName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(()),
        }
    }
}

/// One port of a Service in one family: the unit that has a backend list of its own.
///
/// The protocol belongs to it because one port name may be used once per protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortId {
    pub service: ServiceName,
    /// The port's name; empty when it has none.
    pub port: String,
    pub proto: Proto,
    pub family: Family,
}

impl ServicePortId {
    /// The least id of all.
    #[must_use]
    pub fn first() -> Self {
        Self::first_of(&ServiceName {
            namespace: String::new(),
            name: String::new(),
        })
    }

    /// The least id that a port of this Service can have.
    #[must_use]
    pub fn first_of(service: &ServiceName) -> Self {
        Self {
            service: service.clone(),
            port: String::new(),
            proto: Proto::ANY,
            family: Family::V4,
        }
    }
}

impl fmt::Display for ServicePortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port.as_str() {
            "" => self.service.fmt(f),
            port => write!(f, "{}:{port}", self.service),
        }
    }
}

/// An `EndpointSlice`; its Service lives in the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceName {
    pub namespace: String,
    pub name: String,
}
