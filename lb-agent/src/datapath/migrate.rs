//! From one set of maps to the next: after a start beside another layout, in either direction, and when
//! maps grow. One way for all, because each needs the same things: everybody is served at each moment, and
//! whoever is killed at any point leaves something that any version can carry on.
//!
//! 1. *make*: new maps, which nobody sees, filled completely. Maps that need not change are shared with
//!    the old set: the same map in both. What sockets remember is shared whenever its layout allows;
//! 2. *publish*: the set gets its folder, all maps at once, with a number above every other. From here on,
//!    whoever starts goes on with this set, if it has that layout, or makes yet another above it;
//! 3. *move*: each link, at the cgroup and then at each interface, runs the new programs, one after the
//!    other, by an update in place: no call and no packet meets two programs or none. Those that show
//!    addresses come before those that change them;
//! 4. *drop*: links that this version does not have; what was counted in the old set is added to the new
//!    one, as a connection may have begun on the one and ended on the other; then the old set. Its maps live in the kernel until
//!    the last program that runs on them has ended.
//!
//! Between 2 and 4 some calls meet the old set and some the new one. Both serve, and nothing is written to
//! either before all links have moved. A set never takes over from one with a higher number, so of two
//! sets only one is ever written to again, and what a socket remembers has one meaning (see
//! `Membership::first_generation` for sets that do not share their indices).

use anyhow::Result;
use lb_common::tables::names;

use crate::{
    datapath::{
        attach,
        cgroup::Cgroup,
        grace::Grace,
        load::{self, Object},
        maps::BpfMaps,
        netlink::Change,
        packets::Packets,
        pins::{MapSet, Pins},
    },
    tables::set::Capacities,
};

/// A set of maps, and the programs that are to run on it until they do.
#[derive(Debug)]
pub struct Datapath {
    pins: Pins,
    set: MapSet,
    origin: Origin,
    /// Until it is attached, and from then on for the interfaces that are still to come.
    object: Option<Object>,
    attached: bool,
}

/// Where the maps come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was there.
    Nothing,
    /// They are those of an earlier agent.
    Adopted,
    /// They take the place of another layout's.
    OtherLayout(MapSet),
    /// They take the place of smaller ones.
    Smaller(MapSet),
}

impl Origin {
    /// Whether another version made what was there.
    #[must_use]
    pub fn is_other_layout(&self) -> bool {
        matches!(self, Self::OtherLayout(_))
    }
}

impl Datapath {
    /// Adopts the maps that are pinned, or makes new ones. Nothing of them is visible or attached before
    /// [`Datapath::attach`].
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn open(pins: &Pins, capacities: Capacities) -> Result<(Self, BpfMaps)> {
        pins.require_bpffs()?;
        pins.remove_unfinished()?;
        let mut sets = pins.sets()?;
        let (set, origin, object) = match sets.pop() {
            Some(newest) if load::is_readable(&newest)? => {
                let object = Object::adopt(&newest)?;
                (newest, Origin::Adopted, object)
            }
            Some(other) => {
                sets.push(other.clone());
                let object = Object::load(capacities, &load::heirlooms(&sets)?)?;
                (pins.next_set()?, Origin::OtherLayout(other), object)
            }
            None => (
                pins.next_set()?,
                Origin::Nothing,
                Object::create(capacities)?,
            ),
        };
        let maps = object.maps()?;
        if origin != Origin::Adopted {
            maps.begin_generations(&set)?;
        }
        let datapath = Self {
            pins: pins.clone(),
            set,
            origin,
            object: Some(object),
            attached: false,
        };
        Ok((datapath, maps))
    }

    /// Makes maps with more room, which hold what `maps`, those of this set, hold: every index and every
    /// generation means the same in both. Nothing of them is visible, and nothing may be written to
    /// either, before [`Datapath::attach`] of what is returned.
    ///
    /// # Errors
    ///
    /// The kernel refuses: there is no memory. All is as it was.
    pub fn grow(&self, maps: &BpfMaps, to: Capacities) -> Result<(Self, BpfMaps)> {
        let set = self.pins.next_set()?;
        let shared = load::unchanged(&self.set, maps.capacities(), to);
        let mut object = Object::load(to, &shared)?;
        object.load_programs()?;
        let mut larger = object.maps()?;
        if !shared.contains_key(names::BACKENDS) {
            larger.begin_generations(&set)?;
        }
        maps.fill(&mut larger)?;
        let next = Self {
            pins: self.pins.clone(),
            set,
            origin: Origin::Smaller(self.set.clone()),
            object: Some(object),
            attached: false,
        };
        Ok((next, larger))
    }

    /// Where the maps come from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The set of maps.
    #[must_use]
    pub fn set(&self) -> &MapSet {
        &self.set
    }

    /// Publishes the maps, which are complete by now, moves the links here and drops what was there
    /// before. Once is enough; then this does nothing.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn attach(&mut self, cgroup: &Cgroup, packets: &mut Packets) -> Result<()> {
        let Some(object) = self.object.as_mut().filter(|_| !self.attached) else {
            return Ok(());
        };
        object.load_programs()?;
        if packets.are_on() {
            object.load_packet_programs()?;
        }
        if self.origin != Origin::Adopted {
            self.pins
                .publish(&self.set, |folder| object.pin_maps(folder))?;
        }
        attach::attach(object, cgroup, &self.pins)?;
        packets.move_to(object);
        self.take_figures_over()?;
        self.pins.keep_only(&self.set)?;
        self.attached = true;
        if !packets.are_on() {
            self.object = None;
        }
        Ok(())
    }

    /// Interfaces came or went.
    pub fn follow(&mut self, packets: &mut Packets, change: &Change) {
        if let Some(object) = self.attached_object(packets) {
            packets.follow(object, change);
        }
    }

    /// Looks whether every interface still runs its programs, and tries again where one could not.
    pub fn verify(&mut self, packets: &mut Packets) {
        if let Some(object) = self.attached_object(packets) {
            packets.verify(object);
        }
    }

    fn attached_object(&mut self, packets: &Packets) -> Option<&mut Object> {
        let is_attached = self.attached && packets.are_on();
        self.object.as_mut().filter(|_| is_attached)
    }

    /// Adds what was counted in the sets before this one, for every cell that is the same use of the same
    /// cell in both. Nothing is added to those any more: no link leads to their programs, and a grace
    /// period ends the last run. Whoever is killed here leaves the rest to the next start.
    fn take_figures_over(&self) -> Result<()> {
        let mut older = self.pins.sets()?;
        older.retain(|set| *set != self.set);
        if older.is_empty() {
            return Ok(());
        }
        Grace::new()?.wait()?;
        let maps = BpfMaps::open_set(&self.set)?;
        for set in older {
            if load::is_readable(&set)? {
                BpfMaps::open_set(&set)?.hand_stats_to(&maps)?;
            }
        }
        Ok(())
    }
}
