//! Waiting until every kernel reader of what was replaced has ended: an RCU grace period, off the hot
//! path.
//!
//! The kernel promises one to whoever replaces a map inside a map, so that a program cannot be using the
//! old one any more. (A membarrier is one as well, but not with one CPU online, or with `nohz_full`.)

use std::{io, os::fd::AsFd};

use aya::maps::{ArrayOfMaps, Map, MapData};

use crate::datapath::sys;

/// An array of one map, which no program reads.
#[derive(Debug)]
pub struct Grace {
    outer: ArrayOfMaps<MapData, MapData>,
    inner: MapData,
}

impl Grace {
    /// # Errors
    ///
    /// The kernel makes no such map.
    pub fn new() -> io::Result<Self> {
        let inner = MapData::from_fd(sys::create_array()?).map_err(io::Error::other)?;
        let outer = MapData::from_fd(sys::create_outer_array(inner.fd().as_fd())?);
        let outer = outer
            .and_then(Map::from_map_data)
            .and_then(ArrayOfMaps::try_from)
            .map_err(io::Error::other)?;
        Ok(Self { outer, inner })
    }

    /// Waits.
    ///
    /// # Errors
    ///
    /// The kernel refused, which it has no reason to.
    pub fn wait(&mut self) -> io::Result<()> {
        self.outer.set(0, &self.inner, 0).map_err(io::Error::other)
    }
}
