//! Whether the agent that wrote the status still runs.

use std::fs;

/// Whether a process of this number is an agent. Numbers are reused, hence the name; one in another
/// pid namespace cannot be told from here and counts as not running.
#[must_use]
pub fn is_agent(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end() == "lb-agent"
}
