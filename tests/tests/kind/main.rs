//! The users' walk-throughs on real nodes, with nearhop installed from deploy/ as its DaemonSet: real
//! pods by the real scheduler, names by CoreDNS. `cargo xtask kind test` starts the cluster and runs them;
//! `cargo xtask test` runs them in a stage of their own, which it knows by the name of the module.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod on_real_nodes;
mod world;
