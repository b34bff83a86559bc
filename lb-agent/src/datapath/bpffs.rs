//! The BPF file system, on which pins lie. Apart from the pins, because a node that has none is given
//! one before any agent starts, by somebody with more rights than an agent has.

use std::{fs::File, os::fd::AsFd, path::Path};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::statfs,
    mount::{MountFlags, mount},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// `BPF_FS_MAGIC`.
const BPFFS: u64 = 0xcafe_4a11;

/// Where it belongs, as systemd has it.
pub const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Whether this place is on one.
///
/// # Errors
///
/// There is no such place.
pub fn is_at(place: &Path) -> Result<bool> {
    let found = statfs(place).with_context(|| format!("looking at {}", place.display()))?;
    Ok(u64::try_from(found.f_type) == Ok(BPFFS))
}

/// Mounts one unless there is one. Returns whether it did.
///
/// # Errors
///
/// There is no such folder, or no right to mount.
pub fn provide(at: &Path) -> Result<bool> {
    ensure!(
        at.is_dir(),
        "{} is no folder: it comes with sysfs in a kernel that has BPF (CONFIG_BPF_SYSCALL)",
        at.display()
    );
    if is_at(at)? {
        return Ok(false);
    }
    // Root's alone, as systemd mounts it: who can open a pin can change what is served.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", at, "bpf", flags, c"mode=0700").with_context(|| {
        format!(
            "mounting a BPF file system on {}; it needs CAP_SYS_ADMIN",
            at.display()
        )
    })?;
    Ok(true)
}

/// Moves this process into the mount namespace that a file such as /proc/1/ns/mnt names. Only a
/// process with a single thread can.
///
/// # Errors
///
/// There is no such file, or no right to it.
pub fn enter(namespace: &Path) -> Result<()> {
    let name = namespace.display();
    let file = File::open(namespace).with_context(|| {
        format!("opening the mount namespace {name}; another process's needs CAP_SYS_PTRACE")
    })?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Mount)).with_context(|| {
        format!("entering the mount namespace {name}; it needs CAP_SYS_ADMIN and CAP_SYS_CHROOT")
    })
}
