//! The capabilities the agent needs, asked for by name before the kernel refuses something less clearly.

use std::io;

use anyhow::{Context, Result, bail};
use rustix::{
    process::{Resource, Rlimit, setrlimit},
    thread::{CapabilitySet, capabilities},
};

/// What is needed, and what for.
pub const NEEDED: [(CapabilitySet, &str, &str); 3] = [
    (
        CapabilitySet::BPF,
        "CAP_BPF",
        "makes maps and loads programs",
    ),
    (
        CapabilitySet::NET_ADMIN,
        "CAP_NET_ADMIN",
        "attaches programs to a cgroup and to interfaces",
    ),
    (
        CapabilitySet::PERFMON,
        "CAP_PERFMON",
        "lets programs read map cells by pointer",
    ),
];

/// The names of those that this process lacks.
///
/// # Errors
///
/// The kernel does not tell.
pub fn missing() -> io::Result<Vec<&'static str>> {
    let effective = capabilities(None)?.effective;
    let lacks = |(set, ..): &(CapabilitySet, _, _)| !effective.contains(*set);
    Ok(NEEDED
        .iter()
        .copied()
        .filter(lacks)
        .map(|(_, name, _)| name)
        .collect())
}

/// # Errors
///
/// A capability is missing; the error names it.
pub fn require() -> Result<()> {
    let missing = missing().context("asking for this process's capabilities")?;
    if missing.is_empty() {
        return Ok(());
    }
    let short: Vec<_> = missing
        .iter()
        .map(|name| name.trim_start_matches("CAP_"))
        .collect();
    bail!(
        "missing capability: {}; run as root, or in a pod add {} to securityContext.capabilities.add. \
         What an earlier run has pinned keeps serving",
        missing.join(", "),
        short.join(", ")
    )
}

/// Lifts the limit on locked memory, by which kernels before 5.11 account maps. Later ones need no
/// CAP_SYS_RESOURCE for it, so a refusal matters only if a map then cannot be made.
pub(super) fn lift_memlock() -> io::Result<()> {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    Ok(setrlimit(Resource::Memlock, unlimited)?)
}
