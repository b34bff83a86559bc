//! Programs become links to a cgroup, and links are pinned: the kernel then runs the programs whether or
//! not an agent runs. A restarted agent replaces the program of a link in place, so that no call meets
//! none.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result};
use aya::programs::{CgroupAttachMode, Program, ProgramError, links::FdLink};

use crate::datapath::{
    cgroup::Cgroup,
    load::Object,
    packets,
    pins::{Pins, entries, remove_if_there},
    sys::{CgroupLinkInfo, link_info, open_pin, update_link},
};

/// The programs, by the names that `bpftool` and the pins show. What shows addresses and what ends counts
/// comes before what changes addresses and begins counts, so that no socket is translated whose
/// translation is not hidden, and none is counted for good.
pub const PROGRAMS: [&str; 10] = [
    "nh_getpeername4",
    "nh_getpeername6",
    "nh_recvmsg4",
    "nh_recvmsg6",
    "nh_sock_release",
    "nh_sock_ops",
    "nh_sendmsg4",
    "nh_sendmsg6",
    "nh_connect4",
    "nh_connect6",
];

/// Makes every link run the object's programs, in this cgroup, and removes the links that another version
/// had beside them.
///
/// # Errors
///
/// The kernel refuses a program or a link. Links made before that stay.
pub fn attach(object: &mut Object, cgroup: &Cgroup, pins: &Pins) -> Result<()> {
    let links = pins.links();
    fs::create_dir_all(&links).with_context(|| format!("making {}", links.display()))?;
    for name in PROGRAMS {
        attach_one(object, name, cgroup, pins).with_context(|| format!("attaching {name}"))?;
    }
    let ours = PROGRAMS.map(|name| pins.link(name));
    let others = entries(&links)?.into_iter();
    others
        .filter(|link| !ours.contains(link) && !is_interfaces(link))
        .try_for_each(|link| remove_if_there(&link))
}

/// Those are looked after by `packets`.
fn is_interfaces(link: &Path) -> bool {
    let name = link.file_name().and_then(|name| name.to_str());
    name.is_some_and(packets::is_link)
}

fn attach_one(object: &mut Object, name: &str, cgroup: &Cgroup, pins: &Pins) -> Result<()> {
    let program = object.program(name)?;
    let next = pins.next_link(name);
    // Left by an agent that was killed before it took the other's place.
    remove_if_there(&next)?;
    if let Some((link, info)) = open_link(&pins.link(name))?
        && info.cgroup_id == cgroup.id
    {
        return update_link(link.as_fd(), program.fd()?.as_fd()).context("updating the link");
    }
    // A link to another cgroup, or to a removed one, serves until the new one does.
    let link = make_link(program, cgroup)?;
    link.pin(&next)
        .with_context(|| format!("pinning {}", next.display()))?;
    let at = pins.link(name);
    fs::rename(&next, &at).with_context(|| format!("pinning {}", at.display()))
}

/// Attaches one program for as long as the result is kept.
pub(super) fn attach_until_dropped(
    object: &mut Object,
    name: &str,
    cgroup: &Cgroup,
) -> Result<FdLink> {
    let link = make_link(object.program(name)?, cgroup);
    link.with_context(|| format!("attaching {name} to {}", cgroup.path.display()))
}

/// Loads a program of a kind that the object has.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "one of the other kinds is a mistake"
)]
pub(super) fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// A link always lets others attach to the same cgroup, and takes no flag that says so.
#[expect(clippy::wildcard_enum_match_arm, reason = "as for loading")]
fn make_link(program: &mut Program, cgroup: &Cgroup) -> Result<FdLink> {
    let (to, mode) = (&cgroup.folder, CgroupAttachMode::Single);
    Ok(match program {
        Program::CgroupSockAddr(program) => {
            let link = program.attach(to, mode)?;
            program.take_link(link)?.try_into()?
        }
        Program::CgroupSock(program) => {
            let link = program.attach(to, mode)?;
            program.take_link(link)?.try_into()?
        }
        Program::SockOps(program) => {
            let link = program.attach(to, mode)?;
            program.take_link(link)?.try_into()?
        }
        _ => return Err(ProgramError::UnexpectedProgramType.into()),
    })
}

/// One attached program.
#[derive(Clone, Debug)]
pub struct Attached {
    pub program: &'static str,
    /// 0: the cgroup was removed.
    pub cgroup_id: u64,
}

/// What is attached.
///
/// # Errors
///
/// A link is there and cannot be opened.
pub fn attached(pins: &Pins) -> Result<Vec<Attached>> {
    let mut attached = Vec::new();
    for program in PROGRAMS {
        if let Some((_, info)) = open_link(&pins.link(program))? {
            attached.push(Attached {
                program,
                cgroup_id: info.cgroup_id,
            });
        }
    }
    Ok(attached)
}

/// A pinned link and what the kernel says of it; `None` if there is no pin.
fn open_link(path: &Path) -> Result<Option<(OwnedFd, CgroupLinkInfo)>> {
    let link = match open_pin(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let info = link_info(link.as_fd()).with_context(|| format!("asking for {}", path.display()))?;
    Ok(Some((link, info)))
}
