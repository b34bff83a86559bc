//! The contract between nearhop's agent and its kernel programs: what lies in each map, and the one
//! function that chooses a backend. Both sides compile this crate, so neither can read what the other
//! did not write.
//!
//! * **Addresses** are 16 bytes in network order, IPv4 mapped ([`addr::Addr`]). **Ports, counts and
//!   indices** are in host order. A port is converted from network order in two files only: `sock.rs`
//!   of lb-ebpf (sockets) and `wire.rs` here (packets).
//! * **Cells** are `repr(C)` without implicit padding: bytemuck refuses it, and each size is asserted.
//!   They hold plain integers under plain names, because `bpftool map dump` prints what the cell
//!   holds; the newtypes are at the edge of each cell, in its constructor and accessors.
//! * **Writers**: the agent writes every map except `SOCKETS`, `COUNTERS` and those of flows, which only
//!   the kernel programs write, and `BACKEND_STATS`, to which they add. Array cells that a reader may be using are
//!   never rewritten; what changes is one aligned 64-bit word ([`tables::Ring`], [`tables::Membership`]).
//! * **Reuse**: a freed service index, backend cell or slot range waits for an RCU grace period. Every
//!   slot and backend names the service that owns it.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod crc32c;
pub mod flow;
pub mod planned;
pub mod reason;
pub mod select;
pub mod tables;
pub mod text;
pub mod wire;
