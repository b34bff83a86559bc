//! What is programmed: the tables with names put back on, and the allocators they imply. Everything here
//! can be read back from the maps, so that a restarted agent goes on where the last one was killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use bytemuck::Zeroable;
use lb_common::{
    addr::{Port, Proto},
    tables::{
        Backend, BackendIndex, Frontend, FrontendKey, List, Locality, Membership, Name, Ring,
        Service, ServiceCidr, ServiceIndex, ZoneId, ZoneName,
    },
    text::Text,
};

use crate::{
    model::name::{Family, ServicePortId},
    tables::{
        build::BackendKey,
        ids::{Arena, Ids},
        op::Op,
        set::{Capacities, TableSet},
    },
};

/// One Service port in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    pub index: ServiceIndex,
    pub cell: Service,
    /// The members of each ring, in order.
    pub cluster: Vec<BackendIndex>,
    pub local: Vec<BackendIndex>,
    pub backends: BTreeMap<BackendKey, PlacedBackend>,
}

impl Placed {
    #[must_use]
    pub(super) fn new(index: ServiceIndex) -> Self {
        Self {
            index,
            cell: Service::zeroed(),
            cluster: Vec::new(),
            local: Vec::new(),
            backends: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn members(&self, list: List) -> &[BackendIndex] {
        match list {
            List::Cluster => &self.cluster,
            List::Local => &self.local,
        }
    }

    pub(super) fn set_ring(&mut self, list: List, ring: Ring, members: Vec<BackendIndex>) {
        match list {
            List::Cluster => (self.cell.cluster, self.cluster) = (ring, members),
            List::Local => (self.cell.local, self.local) = (ring, members),
        }
    }
}

/// One backend cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedBackend {
    pub index: BackendIndex,
    pub membership: Membership,
}

/// A live cell that no Service port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stray {
    pub backend: PlacedBackend,
    pub service: ServiceIndex,
}

/// What a reader may still be using: given back after a grace period.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Retiring {
    pub services: Vec<(ServiceIndex, Service)>,
    pub backends: Vec<BackendIndex>,
    /// Start and length.
    pub slots: Vec<(u32, u32)>,
}

/// Zone labels and their ids; an id is never given to another label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Zones {
    ids: BTreeMap<Arc<str>, ZoneId>,
    limit: u16,
}

impl Zones {
    /// The label's id, and whether it is new. Without room for it: "unknown", which only figures
    /// about zones suffer from.
    pub(super) fn id(&mut self, label: Option<&Arc<str>>) -> (ZoneId, bool) {
        let Some(label) = label else {
            return (ZoneId(0), false);
        };
        if let Some(id) = self.ids.get(label) {
            return (*id, false);
        }
        let next = self.ids.values().max().map_or(1, |last| last.0 + 1);
        if next >= self.limit {
            return (ZoneId(0), false);
        }
        self.ids.insert(Arc::clone(label), ZoneId(next));
        (ZoneId(next), true)
    }
}

/// The tables' content, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programmed {
    pub(super) ports: BTreeMap<ServicePortId, Placed>,
    pub(super) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(super) frontends_max: u32,
    pub(super) service_cidrs: Vec<ServiceCidr>,
    pub(super) zones: Zones,
    pub(super) service_ids: Ids,
    pub(super) backend_ids: Ids,
    pub(super) arena: Arena,
    /// Of the last use of each backend cell.
    pub(super) generations: Vec<u32>,
    /// Live cells that no Service port has: left by an agent that was killed between two operations.
    pub(super) strays: Vec<Stray>,
    pub(super) retiring: Retiring,
}

impl Programmed {
    /// Reads the tables back.
    #[must_use]
    pub fn restore(tables: &TableSet) -> Self {
        let capacities = tables.capacities();
        let labels = ZoneLabels::read(tables);
        let mut backends = backends_by_service(tables, &labels);
        let named = name_services(tables);
        let ports: BTreeMap<_, _> = named
            .ports
            .into_iter()
            .map(|(id, index)| (id, read_port(tables, index, backends.remove(&index))))
            .collect();
        let strays = find_strays(tables, &ports);
        let used_backends = live_backends(tables).map(|(index, _)| index.0).collect();
        let ring_ranges = tables.services.iter().flat_map(|service| {
            List::ALL.map(|list| (service.ring(list).base, u32::from(service.ring(list).len)))
        });
        Self {
            frontends: tables.frontends.clone(),
            frontends_max: tables.frontends_max,
            service_cidrs: tables.service_cidrs.clone(),
            zones: labels.into_zones(tables),
            service_ids: Ids::seeded(capacities.services, &named.used),
            backend_ids: Ids::seeded(capacities.backends, &used_backends),
            arena: Arena::seeded(capacities.slots, ring_ranges),
            generations: tables
                .backends
                .iter()
                .map(|cell| cell.membership.generation)
                .collect(),
            retiring: Retiring {
                services: named
                    .orphans
                    .iter()
                    .map(|index| (*index, tables.services[index.0 as usize]))
                    .collect(),
                ..Retiring::default()
            },
            strays,
            ports,
        }
    }

    /// The Service ports in the tables.
    #[must_use]
    pub fn ports(&self) -> &BTreeMap<ServicePortId, Placed> {
        &self.ports
    }

    /// The addresses in the tables.
    #[must_use]
    pub fn frontends(&self) -> &BTreeMap<FrontendKey, Frontend> {
        &self.frontends
    }

    /// How many cells there are.
    #[must_use]
    pub fn capacities(&self) -> Capacities {
        Capacities {
            frontends: self.frontends_max,
            services: self.service_ids.limit(),
            slots: self.arena.limit(),
            backends: self.backend_ids.limit(),
        }
    }

    /// How many of them are in use, also by readers of what was replaced.
    #[must_use]
    pub fn used(&self) -> Capacities {
        let frontends = u32::try_from(self.frontends.len());
        Capacities {
            frontends: frontends.expect("maps have fewer than 2^32 cells"),
            services: self.service_ids.used(),
            slots: self.arena.used(),
            backends: self.backend_ids.used(),
        }
    }

    /// Whether a table is more than half full: then an update of everything may find no room beside what
    /// it replaces.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        let used = self.used().by_map().into_iter();
        let mut tables = used.zip(self.capacities().by_map());
        tables.any(|((_, used), (_, cells))| used > cells / 2)
    }

    /// Whether something waits for a grace period.
    #[must_use]
    pub fn needs_grace(&self) -> bool {
        self.retiring != Retiring::default()
    }

    /// Gives back what was replaced before the last grace period. Returns the operations that mark it
    /// as free; figures of backends are kept before the name of their Service port goes.
    pub fn retire(&mut self) -> Vec<Op> {
        let retiring = mem::take(&mut self.retiring);
        for (start, len) in retiring.slots {
            self.arena.free(start, len);
        }
        let mut ops = Vec::new();
        for backend in retiring.backends {
            self.backend_ids.free(backend.0);
            ops.push(Op::KeepStats { backend });
        }
        for (index, cell) in retiring.services {
            self.retire_service(index, &cell, &mut ops);
        }
        ops
    }

    /// Gives back, of what agents left that were killed or failed, what no address leads to. A grace
    /// period must have passed since the tables were read. Doing it before anything else is what makes
    /// each new attempt shorter than the last, however often one fails.
    pub fn retire_unlinked(&mut self) -> Vec<Op> {
        let linked: BTreeSet<u32> = self.frontends.values().map(|to| to.service).collect();
        let is_unlinked = |service: ServiceIndex| !linked.contains(&service.0);
        let strays = self
            .strays
            .extract_if(.., |stray| is_unlinked(stray.service));
        let services = self
            .retiring
            .services
            .extract_if(.., |(index, _)| is_unlinked(*index));

        let mut ops = Vec::new();
        for Stray { backend, .. } in strays {
            let membership = Membership {
                lists: 0,
                ..backend.membership
            };
            ops.push(Op::PublishMembership {
                index: backend.index,
                membership,
            });
            self.retiring.backends.push(backend.index);
        }
        for (index, cell) in services.collect::<Vec<_>>() {
            self.retire_service(index, &cell, &mut ops);
        }
        ops
    }

    /// The name goes last: until then, a restarted agent knows what the rest belongs to.
    fn retire_service(&mut self, service: ServiceIndex, cell: &Service, ops: &mut Vec<Op>) {
        for list in List::ALL {
            let ring = cell.ring(list);
            self.arena.free(ring.base, u32::from(ring.len));
            if ring != Ring::zeroed() {
                ops.push(Op::PublishRing {
                    service,
                    list,
                    ring: Ring::zeroed(),
                });
            }
        }
        if (cell.affinity_secs, cell.flags) != (0, 0) {
            ops.push(Op::PublishSettings {
                service,
                affinity_secs: 0,
                flags: 0,
            });
        }
        ops.push(Op::WriteName {
            service,
            name: Name::zeroed(),
        });
        self.service_ids.free(service.0);
    }
}

/// The name cell of a Service port.
#[must_use]
pub fn name_cell(id: &ServicePortId) -> Name {
    let family = match id.family {
        Family::V4 => 4,
        Family::V6 => 6,
    };
    Name {
        text: Text::new(&id.to_string()),
        proto: id.proto.0,
        family,
        ..Name::zeroed()
    }
}

/// The Service port that a name cell stands for; `None` for a free cell, or one that nobody wrote.
#[must_use]
pub fn parse_name(name: &Name) -> Option<ServicePortId> {
    let family = match name.family {
        4 => Family::V4,
        6 => Family::V6,
        _ => return None,
    };
    let (service, port) = match name.text.as_str().split_once(':') {
        Some((service, port)) => (service, port),
        None => (name.text.as_str(), ""),
    };
    Some(ServicePortId {
        service: service.parse().ok()?,
        port: port.to_owned(),
        proto: Proto(name.proto),
        family,
    })
}

/// Indices by the name they carry.
#[derive(Default)]
struct Named {
    ports: BTreeMap<ServicePortId, ServiceIndex>,
    /// Cells in use that are nobody's: of two indices with one name, the one fewer addresses lead to.
    orphans: BTreeSet<ServiceIndex>,
    used: BTreeSet<u32>,
}

fn name_services(tables: &TableSet) -> Named {
    let mut addresses: BTreeMap<u32, usize> = BTreeMap::new();
    for frontend in tables.frontends.values() {
        *addresses.entry(frontend.service).or_default() += 1;
    }
    let addresses_of = |index: ServiceIndex| addresses.get(&index.0).copied().unwrap_or(0);
    let mut named = Named::default();
    for (index, (name, cell)) in (0..).zip(tables.names.iter().zip(&tables.services)) {
        let index = ServiceIndex(index);
        if *name == Name::zeroed() && *cell == Service::zeroed() {
            continue;
        }
        named.used.insert(index.0);
        let Some(id) = parse_name(name) else {
            named.orphans.insert(index);
            continue;
        };
        match named.ports.get(&id).copied() {
            Some(other) if addresses_of(other) >= addresses_of(index) => {
                named.orphans.insert(index);
            }
            other => {
                named.orphans.extend(other);
                named.ports.insert(id, index);
            }
        }
    }
    named
}

fn backends_by_service(
    tables: &TableSet,
    labels: &ZoneLabels,
) -> BTreeMap<ServiceIndex, BTreeMap<BackendKey, PlacedBackend>> {
    let mut services: BTreeMap<ServiceIndex, BTreeMap<_, _>> = BTreeMap::new();
    for (index, backend) in live_backends(tables) {
        let key = BackendKey {
            addr: backend.addr,
            port: Port(backend.port),
            zone: labels.label(ZoneId(backend.zone)),
            locality: Locality::from_cell(backend.locality),
        };
        let placed = PlacedBackend {
            index,
            membership: backend.membership,
        };
        services
            .entry(ServiceIndex(backend.service))
            .or_default()
            .insert(key, placed);
    }
    services
}

fn read_port(
    tables: &TableSet,
    index: ServiceIndex,
    backends: Option<BTreeMap<BackendKey, PlacedBackend>>,
) -> Placed {
    let cell = tables.services[index.0 as usize];
    Placed {
        index,
        cell,
        cluster: read_ring(tables, cell.cluster),
        local: read_ring(tables, cell.local),
        backends: backends.unwrap_or_default(),
    }
}

fn read_ring(tables: &TableSet, ring: Ring) -> Vec<BackendIndex> {
    let start = ring.base as usize;
    let slots = tables
        .slots
        .get(start..start + usize::from(ring.len))
        .unwrap_or_default();
    slots
        .iter()
        .map(|slot| BackendIndex(slot.backend))
        .collect()
}

fn live_backends(tables: &TableSet) -> impl Iterator<Item = (BackendIndex, &Backend)> {
    let cells = (0..).map(BackendIndex).zip(&tables.backends);
    cells.filter(|(_, backend)| backend.membership.lists != 0)
}

/// Live cells that no port found: their Service has no name, or they repeat one that is there.
fn find_strays(tables: &TableSet, ports: &BTreeMap<ServicePortId, Placed>) -> Vec<Stray> {
    let placed = ports.values().flat_map(|port| port.backends.values());
    let placed: BTreeSet<BackendIndex> = placed.map(|backend| backend.index).collect();
    live_backends(tables)
        .filter(|(index, _)| !placed.contains(index))
        .map(|(index, backend)| Stray {
            backend: PlacedBackend {
                index,
                membership: backend.membership,
            },
            service: ServiceIndex(backend.service),
        })
        .collect()
}

/// Zone labels by id, each once in memory.
struct ZoneLabels(BTreeMap<ZoneId, Arc<str>>);

impl ZoneLabels {
    fn read(tables: &TableSet) -> Self {
        let cells = (0..).map(ZoneId).zip(&tables.zones);
        let used = cells.filter(|(_, zone)| !zone.text.is_empty());
        Self(
            used.map(|(id, zone)| (id, Arc::from(zone.text.as_str())))
                .collect(),
        )
    }

    fn label(&self, id: ZoneId) -> Option<Arc<str>> {
        self.0.get(&id).cloned()
    }

    fn into_zones(self, tables: &TableSet) -> Zones {
        let ids = self.0.into_iter().map(|(id, label)| (label, id)).collect();
        Zones {
            ids,
            limit: u16::try_from(tables.zones.len()).unwrap_or(u16::MAX),
        }
    }
}

/// The cell of a zone label.
#[must_use]
pub(super) fn zone_cell(label: &str) -> ZoneName {
    ZoneName {
        text: Text::new(label),
    }
}
