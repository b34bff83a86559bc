//! The maps in the kernel: carries out operations on them and reads them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    mem::offset_of,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, MapData, MapError, PerCpuArray};
use lb_common::{
    addr::Proto,
    flow::{FLOWS_MAX, FlowKey, Half, Hook, Node, interface},
    reason::Reason,
    tables::{
        Affinity, AffinityKey, Backend, BackendIndex, Frontend, FrontendKey, List, Membership,
        Name, SCHEMA, Service, ServiceCidr, ServiceIndex, Slot, Stats, Status, ZoneName, names,
    },
};

use rustix::system::sysinfo;

use crate::{
    datapath::{
        cells::Cells,
        flows::{PART, Walk, has_lost_its_endpoint, has_timed_out},
        grace::Grace,
        load::is_readable,
        pins::{MapSet, Pins},
        store::{MapStore, StoreError},
        sys::{Raw, next_key},
    },
    tables::{
        Op, TableSet,
        set::Capacities,
        stats::{ServiceStats, StatsCells},
    },
};

/// What the packet programs must know of this node.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalTables {
    pub node: Node,
    /// Cells of `POD_CIDRS`, all of them.
    pub pod_cidrs: Vec<ServiceCidr>,
    /// The numbers of pods' interfaces.
    pub pods: BTreeSet<u32>,
}

/// All maps that the agent reads or writes.
pub struct BpfMaps {
    frontends: HashMap<MapData, Raw<FrontendKey>, Raw<Frontend>>,
    frontends_max: u32,
    services: Cells<Service>,
    slots: Cells<Slot>,
    backends: Cells<Backend>,
    backend_stats: Cells<Stats>,
    service_stats: Cells<Stats>,
    names: Cells<Name>,
    zones: Cells<ZoneName>,
    service_cidrs: Cells<ServiceCidr>,
    counters: PerCpuArray<MapData, u64>,
    status: Cells<Status>,
    node: Cells<Node>,
    pod_cidrs: Cells<ServiceCidr>,
    interfaces: HashMap<MapData, u32, u32>,
    flows: HashMap<MapData, Raw<FlowKey>, Raw<Half>>,
    /// The same map.
    flow_keys: MapData,
    flow_hints: Cells<u64>,
    affinity: HashMap<MapData, Raw<AffinityKey>, Raw<Affinity>>,
    /// Made for the first wait: who only reads needs none, nor the locked memory that it counts as.
    grace: Option<Grace>,
}

impl BpfMaps {
    /// Opens each map as `map` finds it by its name.
    ///
    /// # Errors
    ///
    /// A map is not there, or is not what its name says.
    pub fn open(map: impl Fn(&'static str) -> Result<MapData>) -> Result<Self> {
        fn cells<T: bytemuck::Pod>(name: &str, map: Result<MapData>) -> Result<Cells<T>> {
            Cells::open(&map?).with_context(|| format!("mapping {name} into memory"))
        }
        let frontends = map(names::FRONTENDS)?;
        Ok(Self {
            frontends_max: frontends.info()?.max_entries(),
            frontends: HashMap::try_from(aya::maps::Map::HashMap(frontends))
                .context(names::FRONTENDS)?,
            services: cells(names::SERVICES, map(names::SERVICES))?,
            slots: cells(names::SLOTS, map(names::SLOTS))?,
            backends: cells(names::BACKENDS, map(names::BACKENDS))?,
            backend_stats: cells(names::BACKEND_STATS, map(names::BACKEND_STATS))?,
            service_stats: cells(names::SERVICE_STATS, map(names::SERVICE_STATS))?,
            names: cells(names::NAMES, map(names::NAMES))?,
            zones: cells(names::ZONES, map(names::ZONES))?,
            service_cidrs: cells(names::SERVICE_CIDRS, map(names::SERVICE_CIDRS))?,
            counters: PerCpuArray::try_from(aya::maps::Map::PerCpuArray(map(names::COUNTERS)?))
                .context(names::COUNTERS)?,
            status: cells(names::STATUS, map(names::STATUS))?,
            node: cells(names::NODE, map(names::NODE))?,
            pod_cidrs: cells(names::POD_CIDRS, map(names::POD_CIDRS))?,
            interfaces: HashMap::try_from(aya::maps::Map::HashMap(map(names::INTERFACES)?))
                .context(names::INTERFACES)?,
            flows: HashMap::try_from(aya::maps::Map::HashMap(map(names::FLOWS)?))
                .context(names::FLOWS)?,
            flow_keys: map(names::FLOWS)?,
            flow_hints: cells(names::FLOW_HINTS, map(names::FLOW_HINTS))?,
            affinity: HashMap::try_from(aya::maps::Map::HashMap(map(names::AFFINITY)?))
                .context(names::AFFINITY)?,
            grace: None,
        })
    }

    /// Opens what is pinned, and serves or is about to.
    ///
    /// # Errors
    ///
    /// Nothing is pinned, it has another layout, or it is not ours to open.
    pub fn open_pinned(pins: &Pins) -> Result<Self> {
        let set = pins.sets()?.pop();
        let set =
            set.with_context(|| format!("no maps are pinned at {}", pins.root().display()))?;
        ensure!(
            is_readable(&set)?,
            "this program cannot read the maps in {}, whose layout is not its own ({SCHEMA}); use the \
             lb-agent of the version that runs",
            set.folder().display(),
        );
        Self::open_set(&set)
    }

    /// Opens a set of maps that [`is_readable`].
    ///
    /// # Errors
    ///
    /// A map is not there, or not ours to open.
    pub fn open_set(set: &MapSet) -> Result<Self> {
        Self::open(|name| pinned(set, name))
    }

    /// Says of every backend cell which set's it is, before its first use.
    ///
    /// # Errors
    ///
    /// A cell cannot be written.
    pub(super) fn begin_generations(&self, set: &MapSet) -> Result<()> {
        let unused = Membership {
            lists: 0,
            generation: set.first_generation(),
        };
        let offset = offset_of!(Backend, membership);
        (0..self.backends.count())
            .try_for_each(|at| self.backends.publish(at, offset, unused.word()))
            .context(names::BACKENDS)
    }

    #[must_use]
    pub fn capacities(&self) -> Capacities {
        Capacities {
            frontends: self.frontends_max,
            services: self.services.count(),
            slots: self.slots.count(),
            backends: self.backends.count(),
        }
    }

    /// Copies what these maps hold into those of a set in which some are larger. The others are the same
    /// maps in both.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub(super) fn fill(&self, larger: &mut Self) -> Result<()> {
        self.services
            .fill(&larger.services)
            .context(names::SERVICES)?;
        self.slots.fill(&larger.slots).context(names::SLOTS)?;
        self.backends
            .fill(&larger.backends)
            .context(names::BACKENDS)?;
        self.names.fill(&larger.names).context(names::NAMES)?;
        self.service_stats
            .fill(&larger.service_stats)
            .context(names::SERVICE_STATS)?;
        if larger.frontends_max > self.frontends_max {
            self.fill_frontends(&mut larger.frontends)
                .context(names::FRONTENDS)?;
        }
        Ok(())
    }

    fn fill_frontends(
        &self,
        larger: &mut HashMap<MapData, Raw<FrontendKey>, Raw<Frontend>>,
    ) -> Result<()> {
        for entry in self.frontends.iter() {
            let (key, frontend) = entry?;
            larger.insert(key, frontend, 0)?;
        }
        Ok(())
    }

    /// Adds the figures of these backends to those of the next set.
    ///
    /// # Errors
    ///
    /// A map has fewer cells than it said.
    pub(super) fn hand_stats_to(&self, next: &Self) -> Result<()> {
        let count = self.backends.count().min(next.backends.count());
        for at in 0..count {
            let generation = |maps: &Self| Ok(maps.backends.read(at)?.membership.generation);
            let same: io::Result<bool> =
                generation(self).and_then(|was| Ok(was == generation(next)?));
            if same.context(names::BACKENDS)? {
                let handed = self.backend_stats.hand_over(at, &next.backend_stats);
                handed.context(names::BACKEND_STATS)?;
            }
        }
        Ok(())
    }

    /// Each reason's count, over all CPUs.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn counters(&self) -> Result<BTreeMap<&'static str, u64>> {
        counts(&self.counters)
    }

    /// The same of what is pinned and serves, or is about to; `None` if nothing is.
    ///
    /// # Errors
    ///
    /// It is not ours to open, or the kernel refused.
    pub fn pinned_counters(pins: &Pins) -> Result<Option<BTreeMap<&'static str, u64>>> {
        let Some(set) = pins.sets()?.pop() else {
            return Ok(None);
        };
        let map = aya::maps::Map::PerCpuArray(pinned(&set, names::COUNTERS)?);
        let counters = PerCpuArray::try_from(map).context(names::COUNTERS)?;
        counts(&counters).map(Some)
    }

    /// The statistics of what is pinned; `None` if nothing is.
    ///
    /// # Errors
    ///
    /// They are not ours to open, or the kernel refused.
    pub fn pinned_statistics(pins: &Pins) -> Result<Option<Vec<ServiceStats>>> {
        let Some(set) = pins.sets()?.pop() else {
            return Ok(None);
        };
        Self::open_set(&set)?.statistics().map(Some)
    }

    /// What clients on this node did, for each Service port and backend.
    ///
    /// # Errors
    ///
    /// A map has fewer cells than it said.
    pub fn statistics(&self) -> Result<Vec<ServiceStats>> {
        let backends = self.backends.read_all()?;
        let mut backend_stats = self.backend_stats.read_all()?;
        for (at, (cell, stats)) in (0..).zip(backends.iter().zip(&mut backend_stats)) {
            // The cell passed to another backend in between, whose figures have just begun.
            if self.backends.read(at)?.membership.generation != cell.membership.generation {
                *stats = Stats::default();
            }
            // Below zero for the moment in which maps grow: the begin was counted in the smaller map.
            stats.active = u64::try_from(stats.active.cast_signed()).unwrap_or(0);
        }
        let cells = StatsCells {
            names: self.names.read_all()?,
            zones: self.zones.read_all()?,
            backends,
            backend_stats,
            service_stats: self.service_stats.read_all()?,
        };
        Ok(cells.by_service())
    }

    /// What the agent last said of itself. Read until two readings agree, as it may be writing.
    ///
    /// # Errors
    ///
    /// The map has no cell.
    pub fn status(&self) -> Result<Status> {
        let mut last = self.status.read(0)?;
        for _ in 0..8 {
            let next = self.status.read(0)?;
            if next == last {
                break;
            }
            last = next;
        }
        Ok(last)
    }

    /// What is said of this node.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn local(&self) -> Result<LocalTables> {
        let pods = self.interfaces.keys().collect::<Result<_, _>>();
        Ok(LocalTables {
            node: self.node.read(0).context(names::NODE)?,
            pod_cidrs: self.pod_cidrs.read_all().context(names::POD_CIDRS)?,
            pods: pods.context(names::INTERFACES)?,
        })
    }

    /// Makes this all that is said of this node, and writes only what differs. Who is a pod comes before
    /// the word that it counts.
    ///
    /// # Errors
    ///
    /// The kernel refused: there are more pods' interfaces than the map has room for.
    pub fn write_local(&mut self, local: &LocalTables) -> Result<()> {
        let interfaces = self.interfaces.keys().collect::<Result<BTreeSet<_>, _>>();
        let have = interfaces.context(names::INTERFACES)?;
        for index in have.difference(&local.pods) {
            remove(&mut self.interfaces, names::INTERFACES, *index)?;
        }
        let guard = offset_of!(ServiceCidr, used);
        for (at, cidr) in (0..).zip(&local.pod_cidrs) {
            if self.pod_cidrs.read(at).context(names::POD_CIDRS)? != *cidr {
                let written = self.pod_cidrs.write_guarded(at, cidr, guard, 0);
                written.context(names::POD_CIDRS)?;
            }
        }
        let mut done = Ok(());
        for index in local.pods.difference(&have) {
            let put = self.interfaces.insert(index, interface::POD, 0);
            done = done.and(put.map_err(|error| refused(names::INTERFACES, error)));
        }
        if self.node.read(0).context(names::NODE)? != local.node {
            self.node.write(0, &local.node).context(names::NODE)?;
        }
        Ok(done?)
    }

    /// Says something of ourselves.
    ///
    /// # Errors
    ///
    /// The map has no cell.
    pub fn write_status(&self, status: &Status) -> Result<()> {
        self.status.write(0, status).context(names::STATUS)
    }

    /// Adds what the clients of a backend did that is gone to its Service port's figures. No program adds
    /// to the cell any more. An agent killed between the two lines loses these figures, and counts none
    /// twice.
    fn keep_stats(&self, backend: BackendIndex) -> io::Result<()> {
        let service = self.backends.read(backend.0)?.service;
        let gone = self.backend_stats.read(backend.0)?;
        let mut total = self.service_stats.read(service)?;
        total += Stats { active: 0, ..gone };
        self.backend_stats.write(backend.0, &Stats::default())?;
        self.service_stats.write(service, &total)
    }

    /// The name of another owner, or of none, and figures that begin anew.
    fn write_name(&self, service: ServiceIndex, name: &Name) -> io::Result<()> {
        self.service_stats.write(service.0, &Stats::default())?;
        self.names.write(service.0, name)
    }

    /// The figures first, as programs add to those of a live cell.
    fn write_backend(&self, index: BackendIndex, backend: &Backend) -> io::Result<()> {
        self.backend_stats.write(index.0, &Stats::default())?;
        let free = Membership {
            lists: 0,
            generation: backend.membership.generation,
        };
        let guard = offset_of!(Backend, membership);
        self.backends
            .write_guarded(index.0, backend, guard, free.word())
    }

    /// Removes the affinity of clients that have not come back, and of Services and backends that are
    /// gone. What expired lately stays: its client may be replacing it at this moment.
    ///
    /// Returns how many entries are left.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn sweep_affinity(&mut self) -> Result<usize> {
        let now_nanos = boot_nanos();
        let (mut left, mut gone) = (0, Vec::new());
        for entry in self.affinity.iter() {
            let (key, given) = entry.context(names::AFFINITY)?;
            if self.counts_no_more(key.0, given.0, now_nanos) {
                gone.push(key);
            } else {
                left += 1;
            }
        }
        for key in gone {
            remove(&mut self.affinity, names::AFFINITY, key)?;
        }
        Ok(left)
    }

    /// What clients of this node were given, by session affinity, whether it still counts or not.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn affinity(&self) -> Result<Vec<(AffinityKey, Affinity)>> {
        let entries = self.affinity.iter();
        let entries = entries.map(|entry| entry.map(|(key, given)| (key.0, given.0)));
        entries.collect::<Result<_, _>>().context(names::AFFINITY)
    }

    /// Looks at some of the flows, and removes those that are over. Returns whether that was the last part.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn sweep_flows(&mut self, walk: &mut Walk) -> Result<bool> {
        let now_nanos = boot_nanos();
        for _ in 0..PART {
            let next = next_key(&self.flow_keys, walk.at.as_ref()).context(names::FLOWS)?;
            let Some(key) = next.filter(|_| walk.looked_at < 2 * FLOWS_MAX as usize) else {
                *walk = Walk::default();
                return Ok(true);
            };
            walk.at = Some(key);
            walk.looked_at += 1;
            if let Some(half) = self.flow(&key)? {
                self.end_if_over(&key, &half, now_nanos)?;
            }
        }
        Ok(false)
    }

    fn end_if_over(&mut self, key: &FlowKey, half: &Half, now_nanos: u64) -> Result<()> {
        let (other_key, _) = half.other(key);
        let other = self.flow(&other_key)?;
        // A pair is looked at once, by its first half, and the pair around it goes with it.
        if !half.is_original() && other.is_some() {
            return Ok(());
        }
        let is_around = half.flags & Half::MASQUERADE != 0;
        let lost = match self.backends.read(half.backend) {
            Ok(backend) => !is_around && has_lost_its_endpoint(key, half, &backend),
            Err(_) => false,
        };
        if !lost && !has_timed_out(key, half, other.as_ref(), now_nanos) {
            return Ok(());
        }
        if !is_around && half.is_original() {
            let proto = Proto(key.proto);
            let middle = FlowKey::new(key.from(), half.by(), proto, Hook::Egress);
            if let Some(around) = self.flow(&middle)?
                && around.flags & Half::MASQUERADE != 0
            {
                self.remove_half(&around.other(&middle).0)?;
                self.remove_half(&middle)?;
            }
        }
        self.remove_half(&other_key)?;
        self.remove_half(key)
    }

    fn flow(&self, key: &FlowKey) -> Result<Option<Half>> {
        match self.flows.get(&Raw(*key), 0) {
            Ok(Raw(half)) => Ok(Some(half)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context(names::FLOWS),
        }
    }

    /// The counter goes down after the entry has gone, and only by who removed it.
    fn remove_half(&mut self, key: &FlowKey) -> Result<()> {
        match self.flows.remove(&Raw(*key)) {
            Ok(()) => {
                let counted = self.flow_hints.add(key.hint(), u64::MAX);
                counted.context(names::FLOW_HINTS)
            }
            Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(error) => Err(error).context(names::FLOWS),
        }
    }

    fn counts_no_more(&self, key: AffinityKey, given: Affinity, now_nanos: u64) -> bool {
        const SWEPT_AFTER_SECS: u32 = 60;

        let timeout = self
            .services
            .read(key.service)
            .map_or(0, |cell| cell.affinity_secs);
        let same = self.backends.read(given.backend).is_ok_and(|cell| {
            cell.membership.lists != 0 && cell.membership.generation == given.generation
        });
        let swept_after = timeout.saturating_add(SWEPT_AFTER_SECS);
        timeout == 0 || !same || given.has_expired(swept_after, now_nanos)
    }

    fn write_slots(&self, base: u32, slots: &[Slot]) -> io::Result<()> {
        (base..)
            .zip(slots)
            .try_for_each(|(at, slot)| self.slots.write(at, slot))
    }

    fn wait_for_readers(&mut self) -> io::Result<()> {
        match &mut self.grace {
            Some(grace) => grace.wait(),
            None => self.grace.insert(Grace::new()?).wait(),
        }
    }

    fn put_frontend(&mut self, key: FrontendKey, frontend: Frontend) -> Result<(), StoreError> {
        match self.frontends.insert(Raw(key), Raw(frontend), 0) {
            Ok(()) => Ok(()),
            Err(error) => Err(refused(names::FRONTENDS, error)),
        }
    }
}

fn pinned(set: &MapSet, name: &str) -> Result<MapData> {
    let path = set.map(name);
    MapData::from_pin(&path).with_context(|| {
        let path = path.display();
        format!("opening {path}; pins are root's, and need CAP_BPF")
    })
}

fn counts(counters: &PerCpuArray<MapData, u64>) -> Result<BTreeMap<&'static str, u64>> {
    let count = |reason: Reason| {
        let per_cpu = counters.get(&(reason as u32), 0)?;
        Ok((reason.name(), per_cpu.iter().sum()))
    };
    Reason::ALL.into_iter().map(count).collect()
}

impl MapStore for BpfMaps {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        match op {
            Op::WriteName { service, name } => {
                in_map(names::NAMES, self.write_name(*service, name))
            }
            Op::WriteZone { zone, name } => {
                in_map(names::ZONES, self.zones.write(u32::from(zone.0), name))
            }
            Op::WriteBackend { index, backend } => {
                in_map(names::BACKENDS, self.write_backend(*index, backend))
            }
            Op::KeepStats { backend } => in_map(names::BACKEND_STATS, self.keep_stats(*backend)),
            Op::WriteSlots { base, slots } => in_map(names::SLOTS, self.write_slots(*base, slots)),
            Op::WriteCidr { at, cidr } => {
                let guard = offset_of!(ServiceCidr, used);
                let written = self.service_cidrs.write_guarded(*at, cidr, guard, 0);
                in_map(names::SERVICE_CIDRS, written)
            }
            Op::PublishRing {
                service,
                list,
                ring,
            } => {
                let offset = match list {
                    List::Cluster => offset_of!(Service, cluster),
                    List::Local => offset_of!(Service, local),
                };
                let published = self.services.publish(service.0, offset, ring.word());
                in_map(names::SERVICES, published)
            }
            Op::PublishSettings {
                service,
                affinity_secs,
                flags,
            } => {
                let offset = offset_of!(Service, affinity_secs);
                let word = bytemuck::cast([*affinity_secs, *flags]);
                in_map(
                    names::SERVICES,
                    self.services.publish(service.0, offset, word),
                )
            }
            Op::PublishMembership { index, membership } => {
                let offset = offset_of!(Backend, membership);
                let published = self.backends.publish(index.0, offset, membership.word());
                in_map(names::BACKENDS, published)
            }
            Op::PutFrontend { key, frontend } => self.put_frontend(*key, *frontend),
            Op::DeleteFrontend { key } => remove(&mut self.frontends, names::FRONTENDS, Raw(*key)),
        }
    }

    fn grace(&mut self) -> Result<(), StoreError> {
        in_map("the grace period", self.wait_for_readers())
    }

    fn dump(&self) -> Result<TableSet, StoreError> {
        let mut frontends = BTreeMap::new();
        for entry in self.frontends.iter() {
            let (key, frontend) = entry.map_err(|error| refused(names::FRONTENDS, error))?;
            frontends.insert(key.0, frontend.0);
        }
        Ok(TableSet {
            frontends,
            frontends_max: self.frontends_max,
            services: in_map(names::SERVICES, self.services.read_all())?,
            slots: in_map(names::SLOTS, self.slots.read_all())?,
            backends: in_map(names::BACKENDS, self.backends.read_all())?,
            names: in_map(names::NAMES, self.names.read_all())?,
            zones: in_map(names::ZONES, self.zones.read_all())?,
            service_cidrs: in_map(names::SERVICE_CIDRS, self.service_cidrs.read_all())?,
        })
    }
}

/// An entry that is gone already is what was asked for.
fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    key: K,
) -> Result<(), StoreError> {
    match map.remove(&key) {
        Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        Err(error) => Err(refused(name, error)),
    }
}

/// The clock of `bpf_ktime_get_boot_ns`, to a second.
#[must_use]
pub fn boot_nanos() -> u64 {
    let secs = u64::try_from(sysinfo().uptime).unwrap_or(0);
    secs.saturating_mul(1_000_000_000)
}

fn in_map<T>(map: &'static str, done: io::Result<T>) -> Result<T, StoreError> {
    done.map_err(|source| StoreError::Kernel { map, source })
}

/// `E2BIG` is how a hash says that it holds `max_entries`.
fn refused(map: &'static str, error: MapError) -> StoreError {
    if let MapError::SyscallError(error) = &error
        && error.io_error.raw_os_error() == Some(libc::E2BIG)
    {
        return StoreError::Full { map };
    }
    StoreError::Kernel {
        map,
        source: io::Error::other(error),
    }
}
