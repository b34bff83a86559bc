//! What one Service port wants in the tables, without saying in which cells. A changed Service replaces
//! what it wants here; nothing else is computed anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use bytemuck::Zeroable;
use lb_common::{
    addr::{Addr, Port},
    tables::{
        CELLS_MIN, FRONTENDS_MAX, FrontendKey, Kind, List, Locality, Membership, Ring,
        SERVICE_CIDRS_MAX, SERVICE_CIDRS_PER_FAMILY, Service, ServiceCidr,
    },
};

use crate::{
    model::{
        ServicePort,
        name::{ServiceName, ServicePortId},
        policy::Chosen,
        service::{Cidr, Policy},
    },
    tables::set::Capacities,
};

/// The kinds of address that the programs of this build answer at.
const SERVED: [Kind; 1] = [Kind::ClusterIp];

/// A backend by what it is. Another zone or distance is another backend: a live cell never changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendKey {
    pub addr: Addr,
    pub port: Port,
    pub zone: Option<Arc<str>>,
    pub locality: Locality,
}

/// What one Service port wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPort {
    pub frontends: BTreeMap<FrontendKey, Kind>,
    /// See [`Service::flags`].
    pub flags: u32,
    pub affinity_secs: u32,
    /// Every endpoint that is in a list or may keep its flows, with its [`Membership::lists`].
    pub backends: BTreeMap<BackendKey, u32>,
    /// The answer of each list when it is empty: [`Ring::on_empty`].
    pub cluster_on_empty: u8,
    pub local_on_empty: u8,
}

impl DesiredPort {
    /// What a resolved Service port wants, seen from a node in `zone`.
    #[must_use]
    pub fn build(port: &ServicePort, zone: Option<&str>) -> Self {
        let choice = &port.choice;
        let on_empty = |used: bool, answer: u8| if used { answer } else { Ring::UNUSED };
        let local_answer = if choice.has_any {
            Ring::DROP
        } else {
            Ring::REJECT
        };
        let backends = choice.endpoints.iter().filter_map(|endpoint| {
            let lists = lists_of(endpoint);
            (lists != 0).then(|| (key_of(endpoint, zone), lists))
        });
        Self {
            frontends: frontends(port),
            flags: flags(port),
            affinity_secs: port.affinity_secs.unwrap_or(0),
            backends: backends.collect(),
            cluster_on_empty: on_empty(choice.uses.cluster, Ring::REJECT),
            local_on_empty: on_empty(choice.uses.local, local_answer),
        }
    }

    /// The answer of a list when it is empty.
    #[must_use]
    pub fn on_empty(&self, list: List) -> u8 {
        match list {
            List::Cluster => self.cluster_on_empty,
            List::Local => self.local_on_empty,
        }
    }

    /// The members of a list, in the order of the ring.
    pub fn members(&self, list: List) -> impl Iterator<Item = &BackendKey> {
        let bit = membership_bit(list);
        self.backends
            .iter()
            .filter(move |(_, lists)| **lists & bit != 0)
            .map(|(key, _)| key)
    }
}

/// The bit by which a backend's membership names a list.
#[must_use]
pub fn membership_bit(list: List) -> u32 {
    match list {
        List::Cluster => Membership::CLUSTER,
        List::Local => Membership::LOCAL,
    }
}

fn lists_of(endpoint: &Chosen) -> u32 {
    let bit = |is: bool, bit: u32| if is { bit } else { 0 };
    bit(endpoint.is_in(List::Cluster), Membership::CLUSTER)
        | bit(endpoint.is_in(List::Local), Membership::LOCAL)
        | bit(endpoint.keeps_flows, Membership::SERVING)
}

fn key_of(endpoint: &Chosen, own_zone: Option<&str>) -> BackendKey {
    let zone = endpoint.zone.as_deref();
    let locality = match (endpoint.is_local, zone, own_zone) {
        (true, _, _) => Locality::Node,
        (false, Some(theirs), Some(ours)) if theirs == ours => Locality::Zone,
        (false, Some(_), Some(_)) => Locality::Other,
        (false, _, _) => Locality::Unknown,
    };
    BackendKey {
        addr: endpoint.at.addr,
        port: endpoint.at.port,
        zone: zone.map(Arc::from),
        locality,
    }
}

/// The addresses at which the port answers, and a mark on each `ClusterIP`, so that its other ports are
/// refused.
fn frontends(port: &ServicePort) -> BTreeMap<FrontendKey, Kind> {
    let mut keys = BTreeMap::new();
    for frontend in &port.frontends {
        let Some(addr) = frontend.addr.filter(|_| SERVED.contains(&frontend.kind)) else {
            continue;
        };
        keys.insert(
            FrontendKey::new(addr, frontend.port, port.id.proto),
            frontend.kind,
        );
        if frontend.kind == Kind::ClusterIp {
            keys.insert(FrontendKey::address(addr), frontend.kind);
        }
    }
    keys
}

fn flags(port: &ServicePort) -> u32 {
    let flag = |policy: Policy, flag: u32| if policy == Policy::Local { flag } else { 0 };
    flag(port.internal_policy, Service::INTERNAL_LOCAL)
        | flag(port.external_policy, Service::EXTERNAL_LOCAL)
        | port.choice.hints().as_flags()
}

/// All that is wanted, and what of it the tables have not been compared with yet.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    ports: BTreeMap<ServicePortId, DesiredPort>,
    /// Who wants to answer at an address. Two Services may; the first in this order does, which is the
    /// same after any sequence of changes.
    claims: BTreeSet<(FrontendKey, Kind, ServicePortId)>,
    service_cidrs: Vec<ServiceCidr>,
    pub(super) touched: Touched,
}

/// What the next diff looks at.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched {
    pub ports: BTreeSet<ServicePortId>,
    pub keys: BTreeSet<FrontendKey>,
    pub cidrs: bool,
    /// Everything, also what is programmed and not wanted.
    pub all: bool,
}

impl Desired {
    /// Nothing wanted yet; the first diff looks at everything.
    #[must_use]
    pub fn new() -> Self {
        Self {
            touched: Touched {
                all: true,
                ..Touched::default()
            },
            ..Self::default()
        }
    }

    /// Makes `ports` all that this Service wants, seen from a node in `zone`.
    pub fn replace(&mut self, service: &ServiceName, ports: &[ServicePort], zone: Option<&str>) {
        let before: Vec<_> = self.ids_of(service).cloned().collect();
        for id in before {
            self.remove(&id);
        }
        for port in ports {
            self.insert(port.id.clone(), DesiredPort::build(port, zone));
        }
    }

    /// Makes `cidrs` the ranges of ClusterIPs. Returns those that have no room.
    pub fn set_service_cidrs(&mut self, cidrs: &BTreeSet<Cidr>) -> Vec<Cidr> {
        let mut cells = vec![ServiceCidr::zeroed(); SERVICE_CIDRS_MAX as usize];
        let (v4, v6): (Vec<Cidr>, Vec<Cidr>) = cidrs.iter().partition(|cidr| cidr.addr.is_v4());
        let room = SERVICE_CIDRS_PER_FAMILY as usize;
        for (first, family) in [(0, &v4), (room, &v6)] {
            for (cell, cidr) in cells[first..][..room].iter_mut().zip(family) {
                *cell = ServiceCidr {
                    addr: cidr.addr,
                    mask: cidr.mask(),
                    used: 1,
                };
            }
        }
        self.touched.cidrs |= cells != self.service_cidrs;
        self.service_cidrs = cells;
        [v4, v6]
            .into_iter()
            .flat_map(|family| family.into_iter().skip(room))
            .collect()
    }

    /// Lets the next diff look at everything again: after an operation failed, what the maps hold is
    /// read back.
    pub fn touch_all(&mut self) {
        self.touched.all = true;
    }

    /// Lets the next diff look at one port again.
    pub fn touch(&mut self, id: &ServicePortId) {
        self.touched.ports.insert(id.clone());
        if let Some(port) = self.ports.get(id) {
            self.touched.keys.extend(port.frontends.keys());
        }
    }

    /// Lets the next diff look at one port and nothing else.
    pub fn touch_only(&mut self, id: &ServicePortId) {
        self.touched = Touched::default();
        self.touch(id);
    }

    /// How many cells each map should have: the power of two above twice the need, since an update
    /// needs room beside what it replaces.
    #[must_use]
    pub fn capacities(&self) -> Capacities {
        let slots: usize = self
            .ports
            .values()
            .map(|port| {
                List::ALL
                    .map(|list| port.members(list).count())
                    .iter()
                    .sum::<usize>()
            })
            .sum();
        let backends: usize = self.ports.values().map(|port| port.backends.len()).sum();
        Capacities {
            frontends: room_for(self.claims.len()).max(FRONTENDS_MAX),
            services: room_for(self.ports.len()),
            slots: room_for(slots),
            backends: room_for(backends),
        }
    }

    /// The ports wanted.
    #[must_use]
    pub fn ports(&self) -> &BTreeMap<ServicePortId, DesiredPort> {
        &self.ports
    }

    /// Who answers at an address.
    #[must_use]
    pub fn owner(&self, key: &FrontendKey) -> Option<(Kind, &ServicePortId)> {
        let first = (*key, Kind::ClusterIp, ServicePortId::first());
        let (claimed, kind, id) = self.claims.range(first..).next()?;
        (claimed == key).then_some((*kind, id))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &FrontendKey> {
        self.claims.iter().map(|(key, ..)| key)
    }

    pub(super) fn service_cidrs(&self) -> &[ServiceCidr] {
        &self.service_cidrs
    }

    pub(super) fn take_touched(&mut self) -> Touched {
        mem::take(&mut self.touched)
    }

    fn ids_of(&self, service: &ServiceName) -> impl Iterator<Item = &ServicePortId> {
        let first = ServicePortId::first_of(service);
        self.ports
            .range(first..)
            .map(|(id, _)| id)
            .take_while(move |id| id.service == *service)
    }

    /// `id` must not be wanted yet.
    pub(super) fn insert(&mut self, id: ServicePortId, port: DesiredPort) {
        for (key, kind) in &port.frontends {
            self.claims.insert((*key, *kind, id.clone()));
        }
        self.touched.keys.extend(port.frontends.keys());
        self.touched.ports.insert(id.clone());
        self.ports.insert(id, port);
    }

    pub(super) fn remove(&mut self, id: &ServicePortId) {
        let Some(port) = self.ports.remove(id) else {
            return;
        };
        for (key, kind) in &port.frontends {
            self.claims.remove(&(*key, *kind, id.clone()));
        }
        self.touched.keys.extend(port.frontends.keys());
        self.touched.ports.insert(id.clone());
    }
}

fn room_for(need: usize) -> u32 {
    let twice = u32::try_from(need.saturating_mul(2) + 1).unwrap_or(u32::MAX);
    twice
        .checked_next_power_of_two()
        .unwrap_or(1 << 31)
        .max(CELLS_MIN)
}
