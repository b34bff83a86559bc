//! The only part of the agent that talks to the kernel: loads and attaches programs, pins, and carries
//! out map operations.

pub mod store;
