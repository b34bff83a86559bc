//! Which agent runs: the one that wrote the status, and the one that holds the pins. And who this
//! process is to the programs.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::net::UnixDatagram},
};

use lb_common::tables::Client;
use rustix::fs::{fstat, major, minor};

use crate::datapath::sys;

/// Whether a process of this number is an agent. Numbers are reused, hence the name; one in another
/// pid namespace cannot be told from here and counts as not running.
#[must_use]
pub fn is_agent(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end() == "lb-agent"
}

/// The client that this process is, by its network namespace.
///
/// # Errors
///
/// The kernel is older than 5.14, and does not tell.
pub fn own_client() -> io::Result<Client> {
    let socket = UnixDatagram::unbound()?;
    sys::netns_cookie(socket.as_fd()).map(Client)
}

/// The process that holds the lock on a file, as far as it can be seen from this pid namespace.
///
/// # Errors
///
/// The file's number cannot be found.
pub(super) fn lock_holder(file: &File) -> io::Result<Option<u32>> {
    let stat = fstat(file)?;
    let (major, minor) = (major(stat.st_dev), minor(stat.st_dev));
    let inode = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
    Ok(holder_in(
        &fs::read_to_string("/proc/locks").unwrap_or_default(),
        &inode,
    ))
}

/// Lines are `1: FLOCK  ADVISORY  WRITE 4242 00:2f:77 0 EOF`; one that waits has an arrow after the number.
fn holder_in(locks: &str, inode: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        (words.next()? == "FLOCK").then_some(())?;
        let pid = words.nth(2)?;
        (words.next()? == inode).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found_by_the_files_number() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:2f:77 0 EOF
2: FLOCK  ADVISORY  WRITE 22 00:2f:78 0 EOF
3: FLOCK  ADVISORY  WRITE 33 00:2f:77 0 EOF
3: -> FLOCK  ADVISORY  WRITE 44 00:2f:77 0 EOF
";

        assert_eq!(holder_in(locks, "00:2f:77"), Some(33));
        assert_eq!(holder_in(locks, "00:2f:7"), None);
    }

    #[test]
    fn this_process_is_found_to_hold_what_it_locked() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::open(folder.path()).unwrap();
        assert_eq!(lock_holder(&file).unwrap(), None);
        flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();

        assert_eq!(lock_holder(&file).unwrap(), Some(std::process::id()));
    }
}
