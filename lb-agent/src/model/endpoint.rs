//! `EndpointSlices` as they arrive, and the endpoints of one Service port merged from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_common::addr::{Addr, Port, Proto, socket_addr};

use crate::model::name::{Family, ServiceName, SliceName};

/// One `EndpointSlice`: its ports apply to each of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub name: SliceName,
    /// Whom the label `kubernetes.io/service-name` names.
    pub service: ServiceName,
    pub family: Family,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
    /// When the Pod or Service changed for which the slice was last written, as its writer says.
    pub triggered: Option<Moment>,
}

/// A point in time: nanoseconds of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

impl Slice {
    /// Whether both say the same about endpoints, whenever they were written.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        let Self {
            name,
            service,
            family,
            ports,
            endpoints,
            triggered: _,
        } = self;
        *name == other.name
            && *service == other.service
            && *family == other.family
            && *ports == other.ports
            && *endpoints == other.endpoints
    }
}

/// A port number, and the Service port whose name and protocol it answers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: String,
    pub proto: Proto,
    pub port: Port,
}

/// One endpoint: an address and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub addr: Addr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<String>,
    /// Where the endpoint is. Hints decide, never this; it is for figures about zones.
    pub zone: Option<String>,
    pub for_nodes: BTreeSet<String>,
    pub for_zones: BTreeSet<String>,
}

impl Endpoint {
    /// Not for new connections unless nothing is ready, yet able to serve them.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.serving && self.terminating
    }
}

/// An endpoint's identity: the same address on two ports is two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointAddr {
    pub addr: Addr,
    pub port: Port,
}

impl fmt::Display for EndpointAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        socket_addr(self.addr, self.port).fmt(f)
    }
}

/// The endpoints of one Service port and family, each once.
pub type Merged<'a> = BTreeMap<EndpointAddr, &'a Endpoint>;

/// Merge what the slices of one Service say about one port.
///
/// An endpoint that is not terminating replaces what is there, and a terminating one does not: a new
/// pod may have got the address of one that is going away. Between two that are not terminating the
/// API leaves the winner open; the later slice in the given order wins, so callers pass the slices in
/// the order of their names and get the same answer each time.
pub fn merge<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    family: Family,
    port_name: &str,
    proto: Proto,
) -> Merged<'a> {
    let mut merged = Merged::new();
    for slice in slices.filter(|slice| slice.family == family) {
        for port in &slice.ports {
            if port.name == port_name && port.proto == proto {
                slice
                    .endpoints
                    .iter()
                    .for_each(|endpoint| insert(&mut merged, port.port, endpoint));
            }
        }
    }
    merged
}

fn insert<'a>(merged: &mut Merged<'a>, port: Port, endpoint: &'a Endpoint) {
    let key = EndpointAddr {
        addr: endpoint.addr,
        port,
    };
    if !endpoint.terminating || !merged.contains_key(&key) {
        merged.insert(key, endpoint);
    }
}
