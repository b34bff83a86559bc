//! Keeps the maps equal to what is wanted. No clock and no kernel but for the [`MapStore`], so that tests drive the very
//! loop body that a node runs, with a store that fails.
//!
//!     batch ─ fold ─▶ Wanted ─ diff ─▶ operations ─▶ MapStore
//!                      ▲                    │
//!                      └── touch all ◀── failed: read the maps back

use std::{collections::BTreeSet, mem};

use crate::{
    datapath::store::{MapStore, StoreError},
    model::{
        Model,
        name::ServiceName,
        state::{Changed, Settings},
    },
    source::{Batch, Problem},
    tables::{
        Op,
        build::Desired,
        diff::{Full, diff},
        programmed::Programmed,
        set::Capacities,
    },
};

/// What the cluster wants of this node, folded from batches.
#[derive(Clone, Debug)]
pub struct Wanted {
    model: Model,
    desired: Desired,
    problems: Vec<Problem>,
    /// Service ranges for which there is no cell.
    ranges_left_out: Vec<String>,
    complete: bool,
}

impl Wanted {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let mut desired = Desired::new();
        let no_room = desired.set_service_cidrs(&BTreeSet::new());
        debug_assert!(no_room.is_empty(), "none need no room");
        Self {
            model: Model::new(settings),
            desired,
            problems: Vec::new(),
            ranges_left_out: Vec::new(),
            complete: false,
        }
    }

    /// Takes in what changed, and rebuilds the Services that it concerns.
    pub fn fold(&mut self, batch: Batch) {
        let mut changed = Changed::default();
        for key in &batch.delete {
            changed.merge(self.model.delete(key));
        }
        for object in batch.apply {
            changed.merge(self.model.apply(object));
        }
        self.problems = batch.problems;
        self.complete = batch.complete;
        self.rebuild(&changed);
    }

    fn rebuild(&mut self, changed: &Changed) {
        let mut services = changed.services.clone();
        if changed.everything {
            services.extend(self.model.services().cloned());
        }
        for service in &services {
            self.rebuild_one(service);
        }
        if changed.cidrs {
            let left_out = self.desired.set_service_cidrs(&self.model.service_cidrs());
            self.ranges_left_out = left_out.iter().map(ToString::to_string).collect();
        }
    }

    fn rebuild_one(&mut self, service: &ServiceName) {
        let ports = self.model.service_ports(service);
        self.desired.replace(service, &ports, self.model.zone());
    }

    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Whether the source has told everything once. Nothing may be made or pruned before.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// How large maps for this should be.
    #[must_use]
    pub fn capacities(&self) -> Capacities {
        self.desired.capacities()
    }

    /// What could not be used or has no room, each with its remedy.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let ranges = self.ranges_left_out.iter().map(|range| {
            format!(
                "the Service range {range} is left out, as each family has room for four; an address in \
                 it that no Service has is passed on. Remove ServiceCIDRs that are not needed"
            )
        });
        self.problems
            .iter()
            .map(ToString::to_string)
            .chain(ranges)
            .collect()
    }
}

/// What one sync did.
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// Operations that were carried out.
    pub ops: u64,
    /// Service ports that found no room and are served as they were.
    pub full: Vec<Full>,
}

/// What is wanted, what is programmed, and where.
pub struct Engine<S> {
    wanted: Wanted,
    have: Programmed,
    store: S,
    full: Vec<Full>,
    /// An operation failed, so `have` may differ from the maps.
    in_doubt: bool,
}

impl<S: MapStore> Engine<S> {
    /// Starts from what the maps hold: nothing, or what an earlier agent has left.
    ///
    /// # Errors
    ///
    /// The maps cannot be read.
    pub fn start(wanted: Wanted, store: S) -> Result<Self, StoreError> {
        Ok(Self {
            have: Programmed::restore(&store.dump()?),
            wanted,
            store,
            full: Vec::new(),
            in_doubt: false,
        })
    }

    pub fn fold(&mut self, batch: Batch) {
        self.wanted.fold(batch);
    }

    #[must_use]
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    #[must_use]
    pub fn programmed(&self) -> &Programmed {
        &self.have
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Programs what is wanted. `report` counts also what was done before an error.
    ///
    /// # Errors
    ///
    /// An operation failed: what it belongs to is as it was, or as it should be. The next call reads the
    /// maps back and goes on from there.
    pub fn sync(&mut self, report: &mut SyncReport) -> Result<(), StoreError> {
        if mem::replace(&mut self.in_doubt, true) {
            self.have = Programmed::restore(&self.store.dump()?);
            self.wanted.desired.touch_all();
        }
        if self.pass(report)? && !self.full.is_empty() {
            // What this pass freed may be what the others lacked.
            self.pass(report)?;
        }
        self.in_doubt = false;
        report.full.clone_from(&self.full);
        Ok(())
    }

    /// One diff, carried out. Returns whether it gave cells back.
    fn pass(&mut self, report: &mut SyncReport) -> Result<bool, StoreError> {
        for full in mem::take(&mut self.full) {
            self.wanted.desired.touch(&full.id);
        }
        let diff = diff(&mut self.have, &mut self.wanted.desired);
        self.full = diff.full;
        self.apply(&diff.ops, report)?;
        if !self.have.needs_grace() {
            return Ok(false);
        }
        self.store.grace()?;
        let freed = self.have.retire();
        self.apply(&freed, report)?;
        Ok(true)
    }

    fn apply(&mut self, ops: &[Op], report: &mut SyncReport) -> Result<(), StoreError> {
        for op in ops {
            self.store.apply(op)?;
            report.ops += 1;
        }
        Ok(())
    }
}
