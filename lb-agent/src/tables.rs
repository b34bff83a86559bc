//! From what the cluster wants to what the maps hold. Pure: no clock, no file, no kernel.
//!
//! [`build`] says what one Service port wants, [`diff`] orders the operations that get there from what
//! is [`programmed`], and [`set`] is the maps as a plain value, for tests and for reading them back.
//! [`stats`] puts names on what the kernel has counted, and [`why`] on what becomes of one flow.

pub mod build;
pub mod diff;
pub mod dump;
pub mod ids;
pub mod op;
pub mod programmed;
pub mod set;
pub mod stats;
pub mod why;

#[cfg(test)]
mod laws;

pub use op::Op;
pub use set::TableSet;
