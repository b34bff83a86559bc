//! The only part of the agent that talks to the kernel: loads and attaches programs, pins, and carries
//! out map operations.
//!
//! The order of a first start keeps everybody whole: make the maps, fill them completely, pin them,
//! attach. Whoever finds a link finds maps that answer.

pub mod attach;
pub mod bpffs;
pub mod capability;
mod cells;
pub mod cgroup;
pub mod fake;
pub mod grace;
pub mod load;
pub mod maps;
pub mod pins;
pub mod process;
pub mod proof;
pub mod store;
mod sys;

pub use maps::BpfMaps;
pub use pins::Pins;

use anyhow::{Result, bail};

use crate::{
    datapath::{cgroup::Cgroup, load::Object, pins::State},
    tables::set::Capacities,
};

/// The programs and where they are to serve. The maps are apart, as they have another owner.
#[derive(Debug)]
pub struct Datapath {
    object: Object,
    pins: Pins,
    adopted: bool,
}

impl Datapath {
    /// Adopts what is pinned, or makes it. Nothing of it is visible or attached before
    /// [`Datapath::attach`].
    ///
    /// # Errors
    ///
    /// The kernel refuses, or the pins cannot be carried on.
    pub fn open(pins: &Pins, capacities: Capacities) -> Result<(Self, BpfMaps)> {
        pins.require_bpffs()?;
        let (object, adopted) = match pins.state() {
            State::Installed => (Object::adopt(pins)?, true),
            State::Empty | State::Unfinished => (Object::create(capacities)?, false),
            State::Broken { missing } => bail!(
                "{} has links but not the maps {}; run `lb-agent cleanup --pin-path {}` and start again",
                pins.folder().display(),
                missing.join(", "),
                pins.root().display()
            ),
        };
        let maps = object.maps()?;
        let pins = pins.clone();
        Ok((
            Self {
                object,
                pins,
                adopted,
            },
            maps,
        ))
    }

    /// Whether the maps are those of an earlier agent.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Pins the maps, unless they are, and attaches the programs.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn attach(mut self, cgroup: &Cgroup) -> Result<()> {
        if !self.adopted {
            // What a start that never attached has left.
            self.pins.remove()?;
            self.pins.create_folders()?;
            self.object.pin_maps(&self.pins)?;
        }
        attach::attach(&mut self.object, cgroup, &self.pins)
    }
}
