//! Filters below the qdisc clsact, for kernels without TCX. A filter stays while no agent runs, and is
//! replaced in place. It cannot be pinned, so its program is: a filter whose program is pinned here is
//! ours, and no other is touched, whatever its name.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::programs::{ProgramInfo, SchedClassifier};

use crate::datapath::{
    interface::Interface,
    netlink::{self, BpfFilter, Filter, Parent},
    packets::{Side, Spot},
    pins::{Pins, entries, remove_if_there},
};

/// "nh", so that a person with `tc` sees whose it is.
const HANDLE: u32 = 0x6e68;

/// Nearest to the wire on both ways, as the order of TCX links: the kernel gives out priorities from
/// 49152 downwards where nobody asks for one.
const fn priority(side: Side) -> u16 {
    match side {
        Side::Ingress => 7,
        Side::Egress => 0xfff7,
    }
}

const fn parent(side: Side) -> Parent {
    match side {
        Side::Ingress => Parent::Ingress,
        Side::Egress => Parent::Egress,
    }
}

/// Makes the interface run the program.
pub(super) fn attach(
    program: &mut SchedClassifier,
    side: Side,
    interface: &Interface,
    pins: &Pins,
) -> Result<()> {
    let spot = Spot::new(side, interface.index);
    let folder = pins.filters();
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let (at, next) = places(spot, pins);
    let fd = program.fd()?.as_fd().as_raw_fd();
    let filter = BpfFilter {
        index: interface.index,
        parent: parent(side),
        priority: priority(side),
        handle: HANDLE,
        name: side.program(),
        program: fd.cast_unsigned(),
    };
    add_qdisc(program, interface.index, pins)?;
    match found(spot)? {
        Some(there) if is_ours(&there, spot, pins)? => {
            // Both programs are pinned for the moment in which the filter may run either.
            remove_if_there(&next)?;
            pin(program, &next)?;
            filter.replace().context("replacing the filter")?;
            fs::rename(&next, &at).with_context(|| format!("pinning {}", at.display()))
        }
        Some(_) => bail!(
            "another program's filter has our place (priority {}, handle {HANDLE:#x}); remove it, or leave \
             the interface out by --exclude-devices",
            priority(side)
        ),
        None => {
            remove_if_there(&at)?;
            pin(program, &at)?;
            filter.make().context("making the filter")
        }
    }
}

/// A pin says that it is ours. Whoever is killed before it is made leaves an empty qdisc, which does no
/// harm; the other way round, somebody else's would be removed.
fn add_qdisc(program: &mut SchedClassifier, index: u32, pins: &Pins) -> Result<()> {
    match netlink::add_clsact(index) {
        Ok(()) => {
            let record = pins.filters().join(qdisc(index));
            remove_if_there(&record)?;
            pin(program, &record)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error).context("adding the qdisc clsact"),
    }
}

pub(super) fn is_attached(spot: Spot, pins: &Pins) -> Result<bool> {
    match found(spot)? {
        Some(filter) => is_ours(&filter, spot, pins),
        None => Ok(false),
    }
}

/// Removes the filter, if it is ours and the interface is still there, and then what is pinned for it.
pub(super) fn detach(spot: Spot, pins: &Pins) -> Result<()> {
    if is_attached(spot, pins)? {
        let place = (priority(spot.side), HANDLE);
        let removed = netlink::remove_filter(spot.index, parent(spot.side), place.0, place.1);
        removed.with_context(|| format!("removing the filter {spot}"))?;
    }
    let (at, next) = places(spot, pins);
    remove_if_there(&at)?;
    remove_if_there(&next)
}

/// Removes the qdisc, if it is ours and nobody else hangs a filter below it.
pub(super) fn remove_qdisc(index: u32, pins: &Pins) -> Result<()> {
    let record = pins.filters().join(qdisc(index));
    if !record.exists() {
        return Ok(());
    }
    let mut is_empty = true;
    for parent in [Parent::Ingress, Parent::Egress] {
        is_empty &= netlink::filters(index, parent).is_ok_and(|filters| filters.is_empty());
    }
    if is_empty {
        match netlink::remove_clsact(index) {
            // The interface has gone, or the qdisc has.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENODEV | libc::EINVAL | libc::ENOENT)
                ) => {}
            removed => removed.context("removing the qdisc clsact")?,
        }
    }
    remove_if_there(&record)
}

/// The interfaces whose qdisc was made here.
pub(super) fn qdiscs(pins: &Pins) -> Result<Vec<u32>> {
    let records = entries(&pins.filters())?;
    let index = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix("clsact-")?.parse().ok()
    };
    Ok(records.iter().filter_map(|path| index(path)).collect())
}

fn qdisc(index: u32) -> String {
    format!("clsact-{index}")
}

/// Where the program of the filter is pinned, and the one that is about to take its place.
fn places(spot: Spot, pins: &Pins) -> (PathBuf, PathBuf) {
    let folder = pins.filters();
    (
        folder.join(spot.to_string()),
        folder.join(format!("{spot}-next")),
    )
}

/// The filter in our place, whoever's.
fn found(spot: Spot) -> Result<Option<Filter>> {
    let filters = match netlink::filters(spot.index, parent(spot.side)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        filters => filters.context("asking for the filters of the interface")?,
    };
    let in_place =
        |filter: &Filter| filter.priority == priority(spot.side) && filter.handle == HANDLE;
    Ok(filters.into_iter().find(in_place))
}

fn is_ours(filter: &Filter, spot: Spot, pins: &Pins) -> Result<bool> {
    let (at, next) = places(spot, pins);
    for pin in [at, next].iter().filter(|pin| pin.exists()) {
        let info =
            ProgramInfo::from_pin(pin).with_context(|| format!("opening {}", pin.display()))?;
        if filter.program_id == Some(info.id()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn pin(program: &mut SchedClassifier, at: &Path) -> Result<()> {
    let pinned = program.pin(at);
    pinned.with_context(|| format!("pinning {}", at.display()))
}
