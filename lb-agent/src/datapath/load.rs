//! The kernel object becomes maps and programs: new maps, or those that an earlier agent has pinned.

use std::{io, os::fd::AsFd};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapType},
    programs::{CgroupSockAddr, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use lb_common::{
    reason::Reason,
    tables::{
        Backend, Frontend, FrontendKey, Name, SERVICE_CIDRS_MAX, Service, ServiceCidr, Slot,
        Socket, Status, ZONES_MAX, ZoneName, names,
    },
};

use crate::{
    datapath::{capability, maps::BpfMaps, pins::Pins},
    tables::set::Capacities,
};

/// `cargo xtask build` makes it, build.rs finds it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NEARHOP_BPF_OBJECT"));

/// The object in the kernel: its maps, and its programs once they are loaded.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
}

impl Object {
    /// Makes new maps, which nobody else can see yet.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn create(capacities: Capacities) -> Result<Self> {
        Self::load(capacities, None)
    }

    /// Takes the pinned maps.
    ///
    /// # Errors
    ///
    /// They are not as this agent would make them.
    pub fn adopt(pins: &Pins) -> Result<Self> {
        let capacities = check_layouts(pins)?;
        Self::load(capacities, Some(pins))
    }

    fn load(capacities: Capacities, pins: Option<&Pins>) -> Result<Self> {
        let memlock = capability::lift_memlock();
        let set_retval = u8::from(has_set_retval()?);
        let mut loader = EbpfLoader::new();
        loader
            .override_global("SET_RETVAL", &set_retval, true)
            .map_max_entries(names::FRONTENDS, capacities.frontends)
            .map_max_entries(names::SERVICES, capacities.services)
            .map_max_entries(names::NAMES, capacities.services)
            .map_max_entries(names::SLOTS, capacities.slots)
            .map_max_entries(names::BACKENDS, capacities.backends);
        if let Some(pins) = pins {
            for name in names::ALL {
                loader.map_pin_path(name, pins.map(name));
            }
        }
        let loaded = loader.load(OBJECT);
        let loaded = match memlock {
            Ok(()) => loaded.context("making the maps"),
            Err(_) => loaded.context(
                "making the maps; if memory could not be locked (kernels before 5.11), add \
                 SYS_RESOURCE to securityContext.capabilities.add",
            ),
        };
        Ok(Self { ebpf: loaded? })
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

    /// Pins the maps.
    pub(super) fn pin_maps(&self, pins: &Pins) -> Result<()> {
        for name in names::ALL {
            let path = pins.map(name);
            let pinned = self.map(name)?.pin(&path);
            pinned.with_context(|| format!("pinning {}", path.display()))?;
        }
        Ok(())
    }

    fn map(&self, name: &str) -> Result<&MapData> {
        let map = self.ebpf.map(name);
        let Some(
            Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data) | Map::SkStorage(data),
        ) = map
        else {
            bail!("the kernel object has no map {name} of a known kind; run `cargo xtask build`");
        };
        Ok(data)
    }

    /// Loads a program: from here on the kernel has verified it.
    pub(super) fn program(&mut self, name: &str) -> Result<&mut CgroupSockAddr> {
        let program = self.ebpf.program_mut(name);
        let program =
            program.with_context(|| format!("the kernel object has no program {name}"))?;
        let program: &mut CgroupSockAddr = program.try_into()?;
        program
            .load()
            .with_context(|| format!("loading the program {name}"))?;
        Ok(program)
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
    array::<Name>(names::NAMES, None),
    array::<ZoneName>(names::ZONES, Some(ZONES_MAX)),
    array::<ServiceCidr>(names::SERVICE_CIDRS, Some(SERVICE_CIDRS_MAX)),
    Layout {
        name: names::SOCKETS,
        kind: MapType::SkStorage,
        key: 4,
        value: size_of::<Socket>(),
        flags: NO_PREALLOC,
        cells: None,
    },
    Layout {
        name: names::COUNTERS,
        kind: MapType::PerCpuArray,
        key: 4,
        value: 8,
        flags: 0,
        cells: Some(Reason::COUNT),
    },
    array::<Status>(names::STATUS, Some(1)),
];

/// Compares the pinned maps with what this agent would make, and returns their capacities.
fn check_layouts(pins: &Pins) -> Result<Capacities> {
    for layout in &LAYOUTS {
        let path = pins.map(layout.name);
        let map =
            MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        ensure!(
            layout.is_that_of(&map)?,
            "{} has another layout than this agent's; run `lb-agent cleanup --pin-path {}` and start \
             again, which interrupts Service traffic in between",
            path.display(),
            pins.root().display()
        );
    }
    Ok(BpfMaps::open_pinned(pins)?.capacities())
}

impl Layout {
    fn is_that_of(&self, map: &MapData) -> io::Result<bool> {
        let info = map.info().map_err(io::Error::other)?;
        Ok(info.map_type().is_ok_and(|kind| kind == self.kind)
            && info.key_size() as usize == self.key
            && info.value_size() as usize == self.value
            && info.map_flags() == self.flags
            && self.cells.is_none_or(|cells| info.max_entries() == cells))
    }
}
