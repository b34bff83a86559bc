//! Waiting until every kernel reader of what was replaced has ended: an RCU grace period, off the hot
//! path. Two mechanisms, because the cheap one is none on some machines.

use std::{fmt, fs, io, os::fd::AsFd};

use aya::{
    maps::{ArrayOfMaps, Map, MapData},
    util::online_cpus,
};
use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};

use crate::datapath::sys;

/// How this machine waits.
#[derive(Debug)]
pub enum Grace {
    /// `membarrier(MEMBARRIER_CMD_GLOBAL)`.
    Membarrier,
    /// An update of an outer map, which ends after all programs that may use the old inner map have.
    OuterMap(Box<OuterMap>),
}

impl Grace {
    /// Membarrier is an RCU grace period only with two CPUs or more, and refused with `nohz_full`.
    ///
    /// # Errors
    ///
    /// The kernel makes no outer map.
    pub fn choose() -> io::Result<Self> {
        if Self::membarrier_waits() {
            Ok(Self::Membarrier)
        } else {
            Ok(Self::OuterMap(Box::new(OuterMap::create()?)))
        }
    }

    /// Whether a membarrier waits for kernel readers on this machine.
    #[must_use]
    pub fn membarrier_waits() -> bool {
        let supported = membarrier_query().contains(MembarrierQuery::GLOBAL);
        let several = online_cpus().is_ok_and(|cpus| cpus.len() > 1);
        supported && several && !has_nohz_full()
    }

    /// Waits.
    ///
    /// # Errors
    ///
    /// The kernel refused, which it has no reason to.
    pub fn wait(&mut self) -> io::Result<()> {
        match self {
            Self::Membarrier => Ok(membarrier(MembarrierCommand::Global)?),
            Self::OuterMap(outer) => outer.update(),
        }
    }
}

impl fmt::Display for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Membarrier => "membarrier",
            Self::OuterMap(_) => "outer map update",
        })
    }
}

/// CPUs without a timer tick; the file is missing or holds no number where there are none.
fn has_nohz_full() -> bool {
    let listed = fs::read_to_string("/sys/devices/system/cpu/nohz_full").unwrap_or_default();
    listed.contains(|c: char| c.is_ascii_digit())
}

/// An array of one map, which no program reads.
#[derive(Debug)]
pub struct OuterMap {
    outer: ArrayOfMaps<MapData, MapData>,
    inner: MapData,
}

impl OuterMap {
    /// # Errors
    ///
    /// The kernel makes no such map.
    pub fn create() -> io::Result<Self> {
        let inner = MapData::from_fd(sys::create_array()?).map_err(io::Error::other)?;
        let outer = MapData::from_fd(sys::create_outer_array(inner.fd().as_fd())?);
        let outer = outer
            .and_then(Map::from_map_data)
            .and_then(ArrayOfMaps::try_from)
            .map_err(io::Error::other)?;
        Ok(Self { outer, inner })
    }

    fn update(&mut self) -> io::Result<()> {
        self.outer.set(0, &self.inner, 0).map_err(io::Error::other)
    }
}
