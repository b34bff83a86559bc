//! The maps as a plain value, cell by cell: what a datapath hands back when it is read, and what tests
//! look flows up in with the kernel's own `select`.

use std::collections::BTreeMap;

use bytemuck::Zeroable;
use lb_common::{
    addr::Addr,
    select::Tables,
    tables::{
        Affinity, AffinityKey, Backend, BackendIndex, CELLS_MIN, FRONTENDS_MAX, Frontend,
        FrontendKey, List, Name, Ring, SERVICE_CIDRS_MAX, SERVICE_CIDRS_PER_FAMILY, Service,
        ServiceCidr, ServiceIndex, Slot, ZONES_MAX, ZoneName, names,
    },
};

use crate::tables::op::Op;

/// How many cells each map has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    pub frontends: u32,
    pub services: u32,
    pub slots: u32,
    pub backends: u32,
}

impl Capacities {
    /// Each count, by the name of its map.
    #[must_use]
    pub fn by_map(self) -> [(&'static str, u32); 4] {
        [
            (names::FRONTENDS, self.frontends),
            (names::SERVICES, self.services),
            (names::SLOTS, self.slots),
            (names::BACKENDS, self.backends),
        ]
    }

    /// Room for what either has room for.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            frontends: self.frontends.max(other.frontends),
            services: self.services.max(other.services),
            slots: self.slots.max(other.slots),
            backends: self.backends.max(other.backends),
        }
    }

    /// Twice the room in one map.
    #[must_use]
    pub fn doubled_in(mut self, map: &str) -> Self {
        let cells = match map {
            names::FRONTENDS => &mut self.frontends,
            names::SERVICES => &mut self.services,
            names::SLOTS => &mut self.slots,
            names::BACKENDS => &mut self.backends,
            _ => return self,
        };
        *cells = cells.saturating_mul(2);
        self
    }
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            frontends: FRONTENDS_MAX,
            services: CELLS_MIN,
            slots: CELLS_MIN,
            backends: CELLS_MIN,
        }
    }
}

/// All tables that the agent writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSet {
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    pub frontends_max: u32,
    pub services: Vec<Service>,
    pub slots: Vec<Slot>,
    pub backends: Vec<Backend>,
    pub names: Vec<Name>,
    pub zones: Vec<ZoneName>,
    pub service_cidrs: Vec<ServiceCidr>,
}

impl TableSet {
    /// As the kernel makes them: all zeros.
    #[must_use]
    pub fn new(capacities: Capacities) -> Self {
        fn cells<T: Zeroable + Clone>(count: u32) -> Vec<T> {
            vec![T::zeroed(); count as usize]
        }
        Self {
            frontends: BTreeMap::new(),
            frontends_max: capacities.frontends,
            services: cells(capacities.services),
            slots: cells(capacities.slots),
            backends: cells(capacities.backends),
            names: cells(capacities.services),
            zones: cells(ZONES_MAX),
            service_cidrs: cells(SERVICE_CIDRS_MAX),
        }
    }

    #[must_use]
    pub fn capacities(&self) -> Capacities {
        fn len<T>(cells: &[T]) -> u32 {
            u32::try_from(cells.len()).expect("maps have fewer than 2^32 cells")
        }
        Capacities {
            frontends: self.frontends_max,
            services: len(&self.services),
            slots: len(&self.slots),
            backends: len(&self.backends),
        }
    }

    /// Does to the value what a datapath does to the maps.
    ///
    /// # Panics
    ///
    /// On an index beyond a map's capacity, which `diff` does not give out.
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::WriteName { service, name } => self.names[service.0 as usize] = *name,
            Op::WriteZone { zone, name } => self.zones[usize::from(zone.0)] = *name,
            Op::WriteBackend { index, backend } => self.backends[index.0 as usize] = *backend,
            Op::WriteSlots { base, slots } => {
                self.slots[*base as usize..][..slots.len()].copy_from_slice(slots);
            }
            Op::WriteCidr { at, cidr } => self.service_cidrs[*at as usize] = *cidr,
            Op::PublishRing {
                service,
                list,
                ring,
            } => {
                let cell = &mut self.services[service.0 as usize];
                match list {
                    List::Cluster => cell.cluster = *ring,
                    List::Local => cell.local = *ring,
                }
            }
            Op::PublishSettings {
                service,
                affinity_secs,
                flags,
            } => {
                let cell = &mut self.services[service.0 as usize];
                (cell.affinity_secs, cell.flags) = (*affinity_secs, *flags);
            }
            Op::PublishMembership { index, membership } => {
                self.backends[index.0 as usize].membership = *membership;
            }
            // Nothing is looked up in figures.
            Op::KeepStats { .. } => {}
            Op::PutFrontend { key, frontend } => {
                self.frontends.insert(*key, *frontend);
            }
            Op::DeleteFrontend { key } => {
                self.frontends.remove(key);
            }
        }
    }
}

impl Tables for TableSet {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn ring(&self, service: ServiceIndex, list: List) -> Option<Ring> {
        Some(self.services.get(service.0 as usize)?.ring(list))
    }

    fn affinity_secs(&self, service: ServiceIndex) -> u32 {
        let cell = self.services.get(service.0 as usize);
        cell.map_or(0, |cell| cell.affinity_secs)
    }

    /// The hooks write these entries, so there are none here.
    fn affinity(&self, _key: &AffinityKey) -> Option<Affinity> {
        None
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.slots.get(index as usize).copied()
    }

    fn backend(&self, index: BackendIndex) -> Option<Backend> {
        self.backends.get(index.0 as usize).copied()
    }

    fn in_service_cidr(&self, addr: Addr) -> bool {
        let first = if addr.is_v4() {
            0
        } else {
            SERVICE_CIDRS_PER_FAMILY as usize
        };
        self.service_cidrs[first..][..SERVICE_CIDRS_PER_FAMILY as usize]
            .iter()
            .take_while(|cidr| cidr.used != 0)
            .any(|cidr| cidr.contains(addr))
    }
}
