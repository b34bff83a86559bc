//! TCX links (6.6): a program at an interface as a pinned link, which serves while no agent runs and is
//! updated in place.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, links::FdLink, tc::TcAttachOptions};

use crate::datapath::{
    interface::Interface,
    packets::{Side, Spot},
    pins::{Pins, remove_if_there},
    sys::{TcxLinkInfo, open_pin, tcx_link_info, tcx_links, update_link},
};

/// Every network namespace has it from its beginning.
const LOOPBACK: u32 = 1;

/// Whether this kernel has them. By asking: distributions port features back.
pub(super) fn is_there() -> Result<bool> {
    match tcx_links(LOOPBACK, number(Side::Ingress)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(false),
        Err(error) => Err(error).context("asking the kernel for TCX"),
    }
}

/// Makes the interface run the program.
pub(super) fn attach(
    program: &mut SchedClassifier,
    side: Side,
    interface: &Interface,
    pins: &Pins,
) -> Result<()> {
    let name = Spot::new(side, interface.index).to_string();
    let (at, next) = (pins.link(&name), pins.next_link(&name));
    // Left by an agent that was killed before it took the other's place.
    remove_if_there(&next)?;
    if let Some((link, info)) = open_link(&at)?
        && is_at(&info, side, interface.index)?
    {
        return update_link(link.as_fd(), program.fd()?.as_fd()).context("updating the link");
    }
    let options = TcAttachOptions::TcxOrder(order(side));
    let link = program.attach_with_options(&interface.name, attach_type(side), options)?;
    let link: FdLink = program.take_link(link)?.try_into()?;
    link.pin(&next)
        .with_context(|| format!("pinning {}", next.display()))?;
    if let Err(error) = require_at(&next, interface) {
        remove_if_there(&next)?;
        return Err(error);
    }
    fs::rename(&next, &at).with_context(|| format!("pinning {}", at.display()))
}

/// An interface is attached to by its name, and another may have the name by now.
fn require_at(pin: &Path, interface: &Interface) -> Result<()> {
    let link = open_link(pin)?.context("the link was removed just now")?;
    ensure!(
        link.1.index == interface.index,
        "another interface has taken the name; trying again"
    );
    Ok(())
}

/// Whether the program is at this interface of this network namespace. The number alone does not say so:
/// an interface keeps its links, and mostly its number, when it moves to another one.
pub(super) fn is_attached(side: Side, index: u32, pins: &Pins) -> Result<bool> {
    match open_link(&pins.link(&Spot::new(side, index).to_string()))? {
        Some((_, info)) => is_at(&info, side, index),
        None => Ok(false),
    }
}

fn is_at(info: &TcxLinkInfo, side: Side, index: u32) -> Result<bool> {
    if info.index != index {
        return Ok(false);
    }
    match tcx_links(index, number(side)) {
        Ok(links) => Ok(links.contains(&info.id)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error).context("asking for the links of the interface"),
    }
}

/// A pinned link and what the kernel says of it; `None` if there is no pin.
fn open_link(path: &Path) -> Result<Option<(OwnedFd, TcxLinkInfo)>> {
    let link = match open_pin(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let info = tcx_link_info(link.as_fd());
    let info = info.with_context(|| format!("asking for {}", path.display()))?;
    Ok(Some((link, info)))
}

/// Nearest to the wire on both ways, so that whoever else looks at packets sees pods' own addresses.
const fn order(side: Side) -> LinkOrder {
    match side {
        Side::Ingress => LinkOrder::first(),
        Side::Egress => LinkOrder::last(),
    }
}

const fn attach_type(side: Side) -> TcAttachType {
    match side {
        Side::Ingress => TcAttachType::Ingress,
        Side::Egress => TcAttachType::Egress,
    }
}

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
const fn number(side: Side) -> u32 {
    match side {
        Side::Ingress => 46,
        Side::Egress => 47,
    }
}
