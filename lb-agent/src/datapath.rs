//! The only part of the agent that talks to the kernel: loads and attaches programs, pins, and carries
//! out map operations.
//!
//! The order of a first start keeps everybody whole: make the maps, fill them completely, pin them,
//! attach. Whoever finds a link finds maps that answer.

pub mod attach;
pub mod bpffs;
pub mod capability;
mod cells;
pub mod cgroup;
mod clsact;
pub mod fake;
pub mod flows;
pub mod grace;
pub mod interface;
pub mod load;
pub mod maps;
pub mod migrate;
pub mod netlink;
pub mod packets;
pub mod pins;
pub mod process;
pub mod proof;
pub mod store;
mod sys;
mod tcx;

pub use maps::BpfMaps;
pub use migrate::Datapath;
pub use pins::Pins;
