//! What a run was told by its command line: plain values, passed in. The environment is read here alone.

use std::{env, path::PathBuf};

use crate::tables::set::Capacities;

/// Where pins lie unless told otherwise.
pub const PIN_PATH: &str = "/sys/fs/bpf/nearhop";

/// How one agent runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of objects.
    pub objects: PathBuf,
    pub node: String,
    /// Overrides the zone of the Node object.
    pub zone: Option<String>,
    /// `None`: the root of the hierarchy.
    pub cgroup: Option<PathBuf>,
    pub pin_path: PathBuf,
    pub capacities: GivenCapacities,
}

/// Capacities by hand, where given.
#[derive(Clone, Copy, Debug, Default)]
pub struct GivenCapacities {
    pub frontends: Option<u32>,
    pub services: Option<u32>,
    pub slots: Option<u32>,
    pub backends: Option<u32>,
}

impl GivenCapacities {
    /// The given ones, and `by_need` for the others.
    #[must_use]
    pub fn over(self, by_need: Capacities) -> Capacities {
        Capacities {
            frontends: self.frontends.unwrap_or(by_need.frontends),
            services: self.services.unwrap_or(by_need.services),
            slots: self.slots.unwrap_or(by_need.slots),
            backends: self.backends.unwrap_or(by_need.backends),
        }
    }
}

/// What to log, in the syntax of `RUST_LOG`: the flag, else the variable, else `info`.
#[must_use]
pub fn log_filter(flag: Option<&str>) -> String {
    let variable = || env::var("RUST_LOG").ok();
    flag.map(str::to_owned)
        .or_else(variable)
        .unwrap_or_else(|| "info".to_owned())
}
