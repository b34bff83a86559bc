//! The seam between deciding and doing: who carries out operations. `BpfMaps` does it in the kernel;
//! `FakeMaps` in a plain value; `FaultyMaps` fails one in ten, so that tests prove convergence.

use thiserror::Error;

use crate::tables::{Op, TableSet};

/// Why an operation was not carried out.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The map holds as many entries as it can.
    #[error("{map} is full")]
    Full { map: &'static str },
    /// The kernel refused.
    #[error("{map}: {source}")]
    Kernel {
        map: &'static str,
        source: std::io::Error,
    },
}

/// Carries out map operations, one by one.
pub trait MapStore {
    /// Carries out one operation, wholly or not at all.
    fn apply(&mut self, op: &Op) -> Result<(), StoreError>;
    /// Returns once every kernel reader that began before the call has ended.
    fn grace(&mut self) -> Result<(), StoreError>;
    /// Reads everything back.
    fn dump(&self) -> Result<TableSet, StoreError>;
}
