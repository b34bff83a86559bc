//! Simulated nodes as cgroup v2 folders below this process's own: socket hooks attach to a cgroup,
//! so two nodes on one kernel are two folders.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};

use crate::wait;

/// This process's own cgroup v2 folder, wherever the hierarchy is mounted.
pub fn own() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let (mount, root) = unified_mount(&mounts).ok_or_else(|| {
        anyhow!(
            "no cgroup v2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
        )
    })?;
    let membership = fs::read_to_string("/proc/self/cgroup").context("read /proc/self/cgroup")?;
    let path = own_path(&membership).ok_or_else(|| {
        anyhow!("/proc/self/cgroup has no `0::` line: is cgroup v2 in the kernel?")
    })?;
    let below_mount = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    Ok(Path::new(mount).join(below_mount))
}

/// Where cgroup2 is mounted, and which of its folders that mount shows.
fn unified_mount(mountinfo: &str) -> Option<(&str, &str)> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        filesystem.starts_with("cgroup2 ").then_some((point, root))
    })
}

fn own_path(membership: &str) -> Option<&str> {
    membership.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Makes the folder; its processes join by writing themselves into `cgroup.procs`.
pub fn create(path: &Path) -> anyhow::Result<()> {
    fs::create_dir(path).with_context(|| format!("make cgroup {}", path.display()))
}

/// Moves the calling process.
pub fn join(path: &Path) -> anyhow::Result<()> {
    fs::write(path.join("cgroup.procs"), "0")
        .with_context(|| format!("join cgroup {}", path.display()))
}

/// Kills what is still inside and removes the folder with all below it. Looks again until it is gone:
/// another thread may have been about to make a folder or to start a process in it.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    wait::until(
        &format!("cgroup {} to be empty", path.display()),
        wait::PATIENCE,
        || {
            for child in children(path)? {
                remove(&child)?;
            }
            kill_members(path)?;
            fs::remove_dir(path).context("remove it")
        },
    )
}

fn kill_members(path: &Path) -> anyhow::Result<()> {
    if members(path)?.is_empty() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1")
        .with_context(|| format!("kill the processes in cgroup {}", path.display()))
}

fn children(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(path).with_context(|| format!("list cgroup {}", path.display()))?;
    Ok(entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

fn members(path: &Path) -> anyhow::Result<String> {
    let procs = path.join("cgroup.procs");
    fs::read_to_string(&procs).with_context(|| format!("read {}", procs.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unified_hierarchy_is_found_on_a_hybrid_host() {
        let mounts = "\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
            41 31 0:38 /slice /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";

        assert_eq!(
            unified_mount(mounts),
            Some(("/sys/fs/cgroup/unified", "/slice"))
        );
    }

    #[test]
    fn the_own_cgroup_is_the_line_without_controllers() {
        assert_eq!(
            own_path("4:memory:/api\n0::/user.slice\n"),
            Some("/user.slice")
        );
        assert_eq!(own_path("4:memory:/api\n"), None);
    }
}
