//! How a scenario's agent goes on after failures, and how it dies.

use std::io;

use lb_agent::{
    datapath::store::{MapStore, StoreError},
    sync::{Engine, SyncReport},
    tables::{Op, TableSet},
};

/// Where a loop must have ended.
pub(crate) const MANY: usize = 1000;

/// Syncs as the agent does: again after a failure.
pub(crate) fn sync<S: MapStore>(engine: &mut Engine<S>) -> Result<SyncReport, String> {
    let mut report = SyncReport::default();
    let mut last = None;
    for _ in 0..MANY {
        match engine.sync(&mut report) {
            Ok(()) => return Ok(report),
            Err(error) => last = Some(error),
        }
    }
    Err(format!(
        "no sync of 200 succeeded, the last: {}",
        last.map(as_text).unwrap_or_default()
    ))
}

/// Syncs until done, or dead. Whether it was done.
pub(crate) fn live<S: MapStore>(engine: &mut Engine<Mortal<S>>) -> Result<bool, String> {
    for _ in 0..MANY {
        match engine.sync(&mut SyncReport::default()) {
            Ok(()) => return Ok(true),
            Err(_) if engine.store().left == 0 => return Ok(false),
            Err(_) => {}
        }
    }
    Err(format!("no sync of {MANY} succeeded"))
}

/// Maps on which nothing is done any more after so many operations.
#[derive(Clone)]
pub(crate) struct Mortal<S> {
    pub(crate) store: S,
    left: usize,
}

impl<S: Clone> Mortal<S> {
    pub(crate) fn new(store: &S, left: usize) -> Self {
        Self {
            store: store.clone(),
            left,
        }
    }
}

impl<S: MapStore> MapStore for Mortal<S> {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        let Some(left) = self.left.checked_sub(1) else {
            let source = io::Error::other("the agent is dead");
            return Err(StoreError::Kernel { map: "all", source });
        };
        self.left = left;
        self.store.apply(op)
    }

    fn grace(&mut self) -> Result<(), StoreError> {
        self.store.grace()
    }

    fn dump(&self) -> Result<TableSet, StoreError> {
        self.store.dump()
    }
}

pub(crate) fn as_text(error: StoreError) -> String {
    error.to_string()
}
