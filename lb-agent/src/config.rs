//! What a run was told by its command line: plain values, passed in. The environment is read here alone.

use std::{env, path::PathBuf};

use crate::{source::kube::access::Access, tables::set::Capacities};

/// Where pins lie unless told otherwise.
pub const PIN_PATH: &str = "/sys/fs/bpf/nearhop";

/// How one agent runs.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: Source,
    pub node: String,
    /// Overrides the zone of the Node object.
    pub zone: Option<String>,
    /// `None`: the root of the hierarchy.
    pub cgroup: Option<PathBuf>,
    pub pin_path: PathBuf,
    pub capacities: GivenCapacities,
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    Folder(PathBuf),
    ApiServer(Access),
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

    /// Each by its flag.
    #[must_use]
    pub fn flags(self) -> [(&'static str, Option<u32>); 4] {
        [
            ("--capacity-frontends", self.frontends),
            ("--capacity-services", self.services),
            ("--capacity-slots", self.slots),
            ("--capacity-backends", self.backends),
        ]
    }
}

/// `info`, without what the watches log for each try: the agent says it once, as a problem.
const LOG: &str = "info,kube_runtime=off,kube_client=off";

/// What to log, in the syntax of `RUST_LOG`: the flag, else the variable, else `info` for our own words.
#[must_use]
pub fn log_filter(flag: Option<&str>) -> String {
    let variable = || env::var("RUST_LOG").ok();
    flag.map(str::to_owned)
        .or_else(variable)
        .unwrap_or_else(|| LOG.to_owned())
}
