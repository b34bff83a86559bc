//! The maps as a plain value behind the same seam, for tests that need no kernel; and the same with
//! faults, because what is programmed must converge whatever fails.

use std::io;

use crate::{
    datapath::store::{MapStore, StoreError},
    tables::{Op, TableSet, set::Capacities},
};

/// Maps that never fail.
#[derive(Clone, Debug)]
pub struct FakeMaps {
    pub tables: TableSet,
}

impl FakeMaps {
    #[must_use]
    pub fn new(capacities: Capacities) -> Self {
        Self {
            tables: TableSet::new(capacities),
        }
    }
}

impl MapStore for FakeMaps {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        self.tables.apply(op);
        Ok(())
    }

    fn grace(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn dump(&self) -> Result<TableSet, StoreError> {
        Ok(self.tables.clone())
    }
}

/// Maps of which one operation in ten fails, a grace period among them; the same ones for a seed.
#[derive(Clone, Debug)]
pub struct FaultyMaps {
    pub maps: FakeMaps,
    random: u64,
}

impl FaultyMaps {
    #[must_use]
    pub fn new(capacities: Capacities, seed: u64) -> Self {
        Self {
            maps: FakeMaps::new(capacities),
            random: seed,
        }
    }

    fn fail_sometimes(&mut self, map: &'static str) -> Result<(), StoreError> {
        // Knuth's MMIX generator; its low bits are poor.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        if (self.random >> 33).is_multiple_of(10) {
            let source = io::Error::other("a fault of FaultyMaps");
            return Err(StoreError::Kernel { map, source });
        }
        Ok(())
    }
}

impl MapStore for FaultyMaps {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        self.fail_sometimes("an operation")?;
        self.maps.apply(op)
    }

    fn grace(&mut self) -> Result<(), StoreError> {
        self.fail_sometimes("the grace period")?;
        self.maps.grace()
    }

    fn dump(&self) -> Result<TableSet, StoreError> {
        self.maps.dump()
    }
}
