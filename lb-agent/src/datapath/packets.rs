//! The packet programs at this machine's interfaces: attached as interfaces come, detached as they go or
//! are left out, and moved to other maps with everything else.
//!
//! What should be there is found by asking the kernel, each time anew, so that no change can be missed for
//! good. An interface that the programs cannot be attached to is a problem to be told, and tried again;
//! the others are served.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Context, Result};
use aya::programs::SchedClassifier;

use crate::datapath::{
    clsact,
    interface::{Interface, Rule},
    load::Object,
    netlink::{self, Change},
    pins::{Pins, entries, remove_if_there},
    tcx,
};

/// Where a program looks at packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Egress,
    Ingress,
}

impl Side {
    /// What shows Services' addresses comes before what replaces them: an answer may leave by another
    /// interface than the question came in by.
    pub const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];

    /// Its program, by the name that `bpftool` and the pins show.
    #[must_use]
    pub const fn program(self) -> &'static str {
        match self {
            Self::Egress => "nh_egress",
            Self::Ingress => "nh_ingress",
        }
    }
}

/// One side of an interface. Written as the name of its pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    pub side: Side,
    /// Names change, may hold dots, which a BPF file system refuses, and pass to other interfaces.
    pub index: u32,
}

impl Spot {
    pub(super) const fn new(side: Side, index: u32) -> Self {
        Self { side, index }
    }

    /// Also of what waits to take its place.
    fn parse(name: &str) -> Option<Self> {
        let name = name.strip_suffix("-next").unwrap_or(name);
        let of = |side: Side| Some((side, name.strip_prefix(side.program())?));
        let (side, rest) = Side::BOTH.into_iter().find_map(of)?;
        let index = rest.strip_prefix('-')?.parse().ok()?;
        Some(Self { side, index })
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.side.program(), self.index)
    }
}

/// Whether a pin among the links is that of an interface.
pub(super) fn is_link(name: &str) -> bool {
    Spot::parse(name).is_some()
}

/// How programs get to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Links, from 6.6 on.
    Tcx,
    /// Filters below a qdisc.
    Clsact,
}

impl Way {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// What the operator wants of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `None`: no packet is looked at.
    pub rule: Option<Rule>,
    /// `None`: links where the kernel has them.
    pub way: Option<Way>,
}

/// The programs at the interfaces.
#[derive(Debug)]
pub struct Packets {
    pins: Pins,
    settings: Settings,
    /// Once it is known.
    way: Option<Way>,
    /// Interfaces that run the programs that are loaded now, by their numbers.
    attached: BTreeMap<u32, String>,
    /// What went wrong at an interface, or with all of them.
    failed: BTreeMap<String, String>,
    failures: u64,
}

impl Packets {
    #[must_use]
    pub fn new(pins: &Pins, settings: Settings) -> Self {
        Self {
            pins: pins.clone(),
            settings,
            way: None,
            attached: BTreeMap::new(),
            failed: BTreeMap::new(),
            failures: 0,
        }
    }

    /// Whether packets are looked at at all.
    #[must_use]
    pub fn are_on(&self) -> bool {
        self.settings.rule.is_some()
    }

    /// How many interfaces run the programs.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.attached.len()
    }

    /// How often an interface could not be attached to.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// What is wrong, for the operator.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let problem = |(what, why): (&String, &String)| {
            format!("{what}: {why}; packets there go by untranslated; trying again")
        };
        self.failed.iter().map(problem).collect()
    }

    /// Moves every interface to the programs of this object, which no interface runs yet.
    pub(super) fn move_to(&mut self, object: &mut Object) {
        self.attached.clear();
        self.refresh(object);
    }

    /// After a change of interfaces: attaches to those that came, and forgets those that went.
    pub(super) fn follow(&mut self, object: &mut Object, change: &Change) {
        if change.lost {
            self.attached.clear();
        }
        for index in &change.gone {
            self.attached.remove(index);
        }
        self.refresh(object);
    }

    /// Looks at every interface, whether it still runs the programs.
    pub(super) fn verify(&mut self, object: &mut Object) {
        let (way, pins) = (self.way, self.pins.clone());
        self.attached.retain(|index, _| {
            way.is_some_and(|way| {
                Side::BOTH
                    .into_iter()
                    .all(|side| is_attached(way, Spot::new(side, *index), &pins).unwrap_or(false))
            })
        });
        self.refresh(object);
    }

    /// What fails is told and tried again.
    fn refresh(&mut self, object: &mut Object) {
        self.failed.clear();
        if let Err(error) = self.try_refresh(object) {
            self.fail("interfaces".to_owned(), &error);
        }
    }

    fn try_refresh(&mut self, object: &mut Object) -> Result<()> {
        let wanted = match &self.settings.rule {
            Some(rule) => rule.choose(&netlink::interfaces()?),
            None => Vec::new(),
        };
        let way = self.find_way()?;
        let new: Vec<_> = wanted
            .iter()
            .filter(|interface| !self.attached.contains_key(&interface.index))
            .collect();
        for side in Side::BOTH.into_iter().filter(|_| !new.is_empty()) {
            let program = classifier(object, side)?;
            for interface in &new {
                if let Err(error) = attach(way, program, side, interface, &self.pins) {
                    self.fail(format!("interface {}", interface.name), &error);
                }
            }
        }
        self.attached = wanted
            .iter()
            .filter(|interface| {
                !self
                    .failed
                    .contains_key(&format!("interface {}", interface.name))
            })
            .map(|interface| (interface.index, interface.name.clone()))
            .collect();
        let keep = wanted.iter().map(|interface| interface.index).collect();
        prune(&self.pins, way, &keep)
    }

    fn find_way(&mut self) -> Result<Way> {
        let way = match self.way.or(self.settings.way) {
            Some(way) => way,
            None if tcx::is_there()? => Way::Tcx,
            None => Way::Clsact,
        };
        self.way = Some(way);
        Ok(way)
    }

    fn fail(&mut self, what: String, error: &anyhow::Error) {
        self.failures += 1;
        self.failed.insert(what, format!("{error:#}"));
    }
}

fn classifier(object: &mut Object, side: Side) -> Result<&mut SchedClassifier> {
    let program = object.program(side.program())?;
    program
        .try_into()
        .with_context(|| format!("{} is no program for packets", side.program()))
}

fn attach(
    way: Way,
    program: &mut SchedClassifier,
    side: Side,
    interface: &Interface,
    pins: &Pins,
) -> Result<()> {
    match way {
        Way::Tcx => tcx::attach(program, side, interface, pins),
        Way::Clsact => clsact::attach(program, side, interface, pins),
    }
}

fn is_attached(way: Way, spot: Spot, pins: &Pins) -> Result<bool> {
    match way {
        Way::Tcx => tcx::is_attached(spot.side, spot.index, pins),
        Way::Clsact => clsact::is_attached(spot, pins),
    }
}

/// Detaches from all interfaces but these, and from these what got there by another way.
fn prune(pins: &Pins, way: Way, keep: &BTreeSet<u32>) -> Result<()> {
    for (name, spot) in spots(&pins.links())? {
        let is_kept = way == Way::Tcx && keep.contains(&spot.index);
        if !is_kept || name.ends_with("-next") {
            remove_if_there(&pins.links().join(name))?;
        }
    }
    let is_kept = |index: u32| way == Way::Clsact && keep.contains(&index);
    for (_, spot) in spots(&pins.filters())? {
        if !is_kept(spot.index) {
            clsact::detach(spot, pins)?;
        }
    }
    for index in clsact::qdiscs(pins)? {
        if !is_kept(index) {
            clsact::remove_qdisc(index, pins)?;
        }
    }
    Ok(())
}

/// Removes every filter of ours, and the qdiscs that were made for them. (Links go with their pins.)
///
/// # Errors
///
/// The kernel refused, or this is another network namespace than the agent's.
pub fn remove_filters(pins: &Pins) -> Result<Vec<String>> {
    let names = entries(&pins.filters())?;
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut removed = Vec::new();
    for (name, spot) in spots(&pins.filters())? {
        clsact::detach(spot, pins).with_context(|| {
            format!("{name}; it takes CAP_BPF and CAP_NET_ADMIN, in the host's network namespace")
        })?;
        removed.push(format!("filter {name}"));
    }
    for index in clsact::qdiscs(pins)? {
        clsact::remove_qdisc(index, pins)?;
        removed.push(format!("clsact-{index}"));
    }
    Ok(removed)
}

/// The interfaces that have pins in a folder.
fn spots(folder: &std::path::Path) -> Result<Vec<(String, Spot)>> {
    let paths = entries(folder)?;
    let spot = |path: &std::path::PathBuf| {
        let name = path.file_name()?.to_str()?;
        Some((name.to_owned(), Spot::parse(name)?))
    };
    Ok(paths.iter().filter_map(spot).collect())
}

/// What is attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedInterface {
    pub index: u32,
    /// `None`: there is no such interface in this network namespace.
    pub name: Option<String>,
    pub way: Way,
    /// Those that are really there.
    pub sides: Vec<Side>,
}

/// What is attached, from the pins alone.
///
/// # Errors
///
/// A pin cannot be opened, or the kernel did not answer.
pub fn attached_interfaces(pins: &Pins) -> Result<Vec<AttachedInterface>> {
    let mut found = Vec::new();
    for (way, folder) in [(Way::Tcx, pins.links()), (Way::Clsact, pins.filters())] {
        let indices: BTreeSet<u32> = spots(&folder)?.iter().map(|(_, spot)| spot.index).collect();
        for index in indices {
            let is_there = |side: &Side| is_attached(way, Spot::new(*side, index), pins);
            let mut sides = Vec::new();
            for side in Side::BOTH {
                if is_there(&side)? {
                    sides.push(side);
                }
            }
            found.push((index, way, sides));
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let names: BTreeMap<u32, String> = netlink::interfaces()?
        .into_iter()
        .map(|interface| (interface.index, interface.name))
        .collect();
    let named = |(index, way, sides)| AttachedInterface {
        index,
        name: names.get(&index).cloned(),
        way,
        sides,
    };
    Ok(found.into_iter().map(named).collect())
}

/// How this kernel lets programs get to interfaces.
///
/// # Errors
///
/// It did not answer.
pub fn best_way() -> Result<Way> {
    Ok(if tcx::is_there()? {
        Way::Tcx
    } else {
        Way::Clsact
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_says_its_program_and_interface() {
        let spot = Spot::new(Side::Ingress, 12);
        assert_eq!(spot.to_string(), "nh_ingress-12");
        for name in ["nh_ingress-12", "nh_ingress-12-next"] {
            assert_eq!(Spot::parse(name), Some(spot), "{name}");
        }

        for name in [
            "nh_connect4",
            "nh_ingress",
            "nh_ingress-",
            "nh_ingress-eth0",
            "clsact-12",
        ] {
            assert_eq!(Spot::parse(name), None, "{name}");
        }
    }
}
