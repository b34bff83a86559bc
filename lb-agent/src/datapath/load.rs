//! The kernel object becomes maps and programs: new maps, those that are pinned, or some of each.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapType, ProgramArray},
    programs::{Program, ProgramError, ProgramType, SchedClassifier},
    sys::{BpfHelper, is_helper_supported},
};
use lb_common::{
    flow::{
        Call, FLOW_HINTS_MAX, FLOWS_MAX, FRAGMENTS_MAX, FlowKey, FragmentKey, FragmentPorts, Half,
        INTERFACES_MAX, Node, YOUNG_MAX,
    },
    reason::Reason,
    tables::{
        AFFINITY_MAX, Affinity, AffinityKey, Backend, Frontend, FrontendKey, Name, SCHEMA,
        SERVICE_CIDRS_MAX, Service, ServiceCidr, Slot, Socket, Stats, Status, ZONES_MAX, ZoneName,
        names,
    },
};

use crate::{
    datapath::{
        attach::{self, PROGRAMS},
        capability,
        maps::BpfMaps,
        packets::Side,
        pins::MapSet,
    },
    tables::set::Capacities,
};

/// `cargo xtask build` makes it, build.rs finds it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NEARHOP_BPF_OBJECT"));

/// Maps that are taken instead of made, and where they are pinned.
pub(super) type Shared = BTreeMap<&'static str, PathBuf>;

/// The object in the kernel: its maps, and its programs once they are loaded.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
    /// `CALLS` is filled.
    can_call: bool,
}

impl Object {
    /// Makes new maps, which nobody else can see yet.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn create(capacities: Capacities) -> Result<Self> {
        Self::load(capacities, &Shared::new())
    }

    /// Takes the maps of a set that [`is_readable`].
    ///
    /// # Errors
    ///
    /// They cannot be opened.
    pub fn adopt(set: &MapSet) -> Result<Self> {
        let capacities = BpfMaps::open_set(set)?.capacities();
        let all = names::ALL.map(|name| (name, set.map(name)));
        Self::load(capacities, &Shared::from(all))
    }

    /// Takes the pinned maps that are named, and makes the others.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub(super) fn load(capacities: Capacities, shared: &Shared) -> Result<Self> {
        let memlock = capability::lift_memlock();
        let set_retval = u8::from(has_set_retval()?);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("SET_RETVAL", &set_retval, true)
            .map_max_entries(names::FRONTENDS, capacities.frontends)
            .map_max_entries(names::SERVICES, capacities.services)
            .map_max_entries(names::SERVICE_STATS, capacities.services)
            .map_max_entries(names::NAMES, capacities.services)
            .map_max_entries(names::SLOTS, capacities.slots)
            .map_max_entries(names::BACKENDS, capacities.backends)
            .map_max_entries(names::BACKEND_STATS, capacities.backends);
        for (name, pin) in shared {
            loader.map_pin_path(name, pin);
        }
        let loaded = loader.load(OBJECT);
        let loaded = match memlock {
            Ok(()) => loaded.context("making the maps"),
            Err(_) => loaded.context(
                "making the maps; if memory could not be locked (kernels before 5.11), add \
                 SYS_RESOURCE to securityContext.capabilities.add",
            ),
        };
        Ok(Self {
            ebpf: loaded?,
            can_call: false,
        })
    }

    /// The maps, to read and write.
    ///
    /// # Errors
    ///
    /// A map cannot be opened or mapped into memory.
    pub fn maps(&self) -> Result<BpfMaps> {
        BpfMaps::open(|name| {
            let fd = self.map(name)?.fd().as_fd().try_clone_to_owned()?;
            Ok(MapData::from_fd(fd)?)
        })
    }

    /// Pins the maps in a folder.
    pub(super) fn pin_maps(&self, folder: &Path) -> Result<()> {
        for name in names::ALL {
            let path = folder.join(name);
            let pinned = self.map(name)?.pin(&path);
            pinned.with_context(|| format!("pinning {}", path.display()))?;
        }
        Ok(())
    }

    fn map(&self, name: &str) -> Result<&MapData> {
        let map = self.ebpf.map(name);
        let Some(
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::ProgramArray(data)
            | Map::SkStorage(data),
        ) = map
        else {
            bail!("the kernel object has no map {name} of a known kind; run `cargo xtask build`");
        };
        Ok(data)
    }

    /// Loads every program of sockets. What the kernel refuses is refused before anything is attached.
    ///
    /// # Errors
    ///
    /// The kernel refuses one.
    pub fn load_programs(&mut self) -> Result<()> {
        PROGRAMS
            .iter()
            .try_for_each(|name| self.program(name).map(drop))
    }

    /// Loads every program of packets.
    ///
    /// # Errors
    ///
    /// The kernel refuses one.
    pub fn load_packet_programs(&mut self) -> Result<()> {
        let load = |side: Side| self.packet_program(side.program()).map(drop);
        Side::BOTH
            .into_iter()
            .try_for_each(load)
            .context("--packet-path cannot be had here")
    }

    /// A program that runs on packets, loaded, with those that it calls.
    ///
    /// # Errors
    ///
    /// The kernel refuses one.
    pub fn packet_program(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        if !self.can_call {
            self.fill_calls()?;
            self.can_call = true;
        }
        Ok(self.program(name)?.try_into()?)
    }

    fn fill_calls(&mut self) -> Result<()> {
        for call in Call::ALL {
            let program = self.program(call.program())?.fd()?.try_clone()?;
            let map = self.ebpf.map_mut(names::CALLS);
            let map =
                map.with_context(|| format!("the kernel object has no map {}", names::CALLS))?;
            let mut calls = ProgramArray::try_from(map)?;
            let set = calls.set(call as u32, &program, 0);
            set.with_context(|| format!("writing {} to {}", call.program(), names::CALLS))?;
        }
        Ok(())
    }

    /// A program, loaded: the kernel has verified it.
    pub(super) fn program(&mut self, name: &str) -> Result<&mut Program> {
        let program = self.ebpf.program_mut(name);
        let program =
            program.with_context(|| format!("the kernel object has no program {name}"))?;
        match attach::load(program) {
            Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
            Err(error) => Err(error).with_context(|| format!("loading the program {name}")),
        }
    }
}

/// Whether the connect and sendmsg hooks may set the caller's error. By asking the kernel: distributions
/// port features back.
///
/// # Errors
///
/// The kernel did not answer, as without the capabilities.
pub fn has_set_retval() -> Result<bool> {
    is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval)
        .context("asking the kernel for bpf_set_retval")
}

/// Whether programs are told how TCP connections fare and when sockets are released, and find there what
/// a socket asked for. By asking the kernel, as above.
///
/// # Errors
///
/// The kernel did not answer, as without the capabilities.
pub fn has_socket_events() -> Result<bool> {
    for program in [ProgramType::SockOps, ProgramType::CgroupSock] {
        let has = is_helper_supported(program, BpfHelper::BPF_FUNC_sk_storage_get);
        if !has.context("asking the kernel for bpf_sk_storage_get")? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a map must look like. Capacities that follow the cluster are `None`.
struct Layout {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
    flags: u32,
    cells: Option<u32>,
}

const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;

const fn array<T>(name: &'static str, cells: Option<u32>) -> Layout {
    Layout {
        name,
        kind: MapType::Array,
        key: 4,
        value: size_of::<T>(),
        flags: MMAPABLE,
        cells,
    }
}

const fn hash<K, V>(name: &'static str, cells: u32) -> Layout {
    Layout {
        name,
        kind: MapType::Hash,
        key: size_of::<K>(),
        value: size_of::<V>(),
        flags: NO_PREALLOC,
        cells: Some(cells),
    }
}

const fn per_cpu<T>(name: &'static str, cells: u32) -> Layout {
    Layout {
        name,
        kind: MapType::PerCpuArray,
        key: 4,
        value: size_of::<T>(),
        flags: 0,
        cells: Some(cells),
    }
}

const LAYOUTS: [Layout; names::ALL.len()] = [
    Layout {
        name: names::FRONTENDS,
        kind: MapType::Hash,
        key: size_of::<FrontendKey>(),
        value: size_of::<Frontend>(),
        flags: NO_PREALLOC,
        cells: None,
    },
    array::<Service>(names::SERVICES, None),
    array::<Slot>(names::SLOTS, None),
    array::<Backend>(names::BACKENDS, None),
    array::<Stats>(names::BACKEND_STATS, None),
    array::<Stats>(names::SERVICE_STATS, None),
    array::<Name>(names::NAMES, None),
    array::<ZoneName>(names::ZONES, Some(ZONES_MAX)),
    array::<ServiceCidr>(names::SERVICE_CIDRS, Some(SERVICE_CIDRS_MAX)),
    hash::<AffinityKey, Affinity>(names::AFFINITY, AFFINITY_MAX),
    hash::<FlowKey, Half>(names::FLOWS, FLOWS_MAX),
    array::<u64>(names::FLOW_HINTS, Some(FLOW_HINTS_MAX)),
    per_cpu::<FlowKey>(names::YOUNG, YOUNG_MAX),
    per_cpu::<u32>(names::YOUNG_NEXT, 1),
    Layout {
        name: names::FRAGMENTS,
        kind: MapType::LruHash,
        key: size_of::<FragmentKey>(),
        value: size_of::<FragmentPorts>(),
        flags: 0,
        cells: Some(FRAGMENTS_MAX),
    },
    array::<Node>(names::NODE, Some(1)),
    array::<ServiceCidr>(names::POD_CIDRS, Some(SERVICE_CIDRS_MAX)),
    hash::<u32, u32>(names::INTERFACES, INTERFACES_MAX),
    Layout {
        name: names::CALLS,
        kind: MapType::ProgramArray,
        key: 4,
        value: 4,
        flags: 0,
        cells: Some(Call::COUNT),
    },
    Layout {
        name: names::SOCKETS,
        kind: MapType::SkStorage,
        key: 4,
        value: size_of::<Socket>(),
        flags: NO_PREALLOC,
        cells: None,
    },
    per_cpu::<u64>(names::COUNTERS, Reason::COUNT),
    array::<Status>(names::STATUS, Some(1)),
];

/// The maps that a set with these capacities shares with `set`: those that need not grow.
pub(super) fn unchanged(set: &MapSet, have: Capacities, want: Capacities) -> Shared {
    let same = |name: &&str| match *name {
        names::FRONTENDS => have.frontends == want.frontends,
        names::SERVICES | names::SERVICE_STATS | names::NAMES => have.services == want.services,
        names::SLOTS => have.slots == want.slots,
        names::BACKENDS | names::BACKEND_STATS => have.backends == want.backends,
        // Holds the programs, which hold the other maps.
        names::CALLS => false,
        _ => true,
    };
    let shared = names::ALL.into_iter().filter(same);
    shared.map(|name| (name, set.map(name))).collect()
}

/// Whether this agent reads and writes such maps: the set has the layout's number, and every map looks as
/// this agent would make it. Without the second, a version whose maker forgot to raise the number would
/// take cells for what they are not.
///
/// # Errors
///
/// A map cannot be opened.
pub fn is_readable(set: &MapSet) -> Result<bool> {
    if set.schema() != SCHEMA {
        return Ok(false);
    }
    for layout in &LAYOUTS {
        if !layout.is_at(&set.map(layout.name))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The maps that a set of another layout can hand on, each from the latest of `sets` that has it as this
/// agent would make it: what sockets remember, the flows of packets, and the counters. None holds an
/// index whose use a program does not check.
pub(super) fn heirlooms(sets: &[MapSet]) -> Result<Shared> {
    let kept = |layout: &&Layout| {
        let kept = [
            names::FLOWS,
            names::FLOW_HINTS,
            names::YOUNG,
            names::YOUNG_NEXT,
            names::FRAGMENTS,
            names::SOCKETS,
            names::COUNTERS,
        ];
        kept.contains(&layout.name)
    };
    let mut shared = Shared::new();
    for layout in LAYOUTS.iter().filter(kept) {
        for set in sets.iter() {
            let pin = set.map(layout.name);
            if layout.is_at(&pin)? {
                shared.insert(layout.name, pin);
            }
        }
    }
    Ok(shared)
}

impl Layout {
    fn is_at(&self, pin: &Path) -> Result<bool> {
        if !pin.exists() {
            return Ok(false);
        }
        let map = MapData::from_pin(pin).with_context(|| {
            let pin = pin.display();
            format!("opening {pin}; pins are root's, and need CAP_BPF")
        })?;
        Ok(self.is_that_of(&map)?)
    }

    fn is_that_of(&self, map: &MapData) -> io::Result<bool> {
        let info = map.info().map_err(io::Error::other)?;
        Ok(info.map_type().is_ok_and(|kind| kind == self.kind)
            && info.key_size() as usize == self.key
            && info.value_size() as usize == self.value
            && info.map_flags() == self.flags
            && self.cells.is_none_or(|cells| info.max_entries() == cells))
    }
}
