//! Where pins lie. Pins are what keeps the data path working while no agent runs.
//!
//! ```text
//! <pin-path>/links/<program>       one link for each program, whichever version's it runs
//! <pin-path>/links/<program>-<N>   the same for each interface, by its number
//! <pin-path>/filters/<program>-<N> before TCX: the program of our filter on that interface
//! <pin-path>/filters/clsact-<N>    its qdisc is ours too
//! <pin-path>/v1/<MAP>              the first set of maps, in layout 1
//! <pin-path>/v2-1/<MAP>            the next one, in layout 2: the highest number serves, or is about to
//! <pin-path>/building-v2-2/<MAP>   a set whose maker was killed; nobody looks at it
//! ```
//!
//! Every version keeps to this, as each may meet the pins of those before and after it. How one set takes
//! another's place is in `migrate.rs`.

use std::{
    fmt, fs,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use lb_common::tables::{Membership, SCHEMA};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::datapath::{bpffs, maps::BpfMaps, process};

const BUILDING: &str = "building-";

/// One agent's pins.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

/// The right to write these pins. The kernel takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "open for as long as the lock is held")] File);

/// One set of maps. Sets are numbered through all layouts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapSet {
    number: u32,
    schema: u32,
    root: PathBuf,
}

impl MapSet {
    /// As its folder's name says; `None` for another folder's.
    fn parse(root: &Path, name: &str) -> Option<Self> {
        let numbers = name.strip_prefix('v')?;
        let (schema, number) = numbers.split_once('-').unwrap_or((numbers, "0"));
        let set = Self {
            number: number.parse().ok()?,
            schema: schema.parse().ok()?,
            root: root.to_owned(),
        };
        (set.to_string() == name).then_some(set)
    }

    /// The layout of its maps.
    #[must_use]
    pub fn schema(&self) -> u32 {
        self.schema
    }

    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.root.join(self.to_string())
    }

    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// What the generations of its backend cells begin with.
    #[must_use]
    pub fn first_generation(&self) -> u32 {
        Membership::first_generation(self.number)
    }

    fn building(&self) -> PathBuf {
        self.root.join(format!("{BUILDING}{self}"))
    }
}

/// The name of its folder.
impl fmt::Display for MapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.schema)?;
        match self.number {
            0 => Ok(()),
            number => write!(f, "-{number}"),
        }
    }
}

impl Pins {
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    #[must_use]
    pub fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    /// Where a link waits to take another's place. (Names with a dot are the kernel's.)
    pub(super) fn next_link(&self, program: &str) -> PathBuf {
        self.links().join(format!("{program}-next"))
    }

    /// Where programs are pinned whose filters are ours: a filter cannot be pinned itself.
    #[must_use]
    pub fn filters(&self) -> PathBuf {
        self.root.join("filters")
    }

    /// Whether there is anything of ours.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.links().exists()
            || self.filters().exists()
            || self.sets().map_or(true, |sets| !sets.is_empty())
    }

    /// Whether programs of an earlier start serve from here.
    #[must_use]
    pub fn serve(&self) -> bool {
        entries(&self.links()).map_or(true, |links| !links.is_empty())
    }

    /// The sets of maps, of this and other layouts, by their number.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn sets(&self) -> Result<Vec<MapSet>> {
        let parse = |path: &PathBuf| MapSet::parse(&self.root, path.file_name()?.to_str()?);
        let mut sets: Vec<_> = entries(&self.root)?.iter().filter_map(parse).collect();
        sets.sort();
        Ok(sets)
    }

    /// The set of this layout that a new one would be. Its number is above all that there are.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub(super) fn next_set(&self) -> Result<MapSet> {
        let last = self.sets()?.pop();
        Ok(MapSet {
            number: last.map_or(0, |set| set.number + 1),
            schema: SCHEMA,
            root: self.root.clone(),
        })
    }

    /// Makes a set visible at once, with all the maps that `pin` pins in the folder it is given.
    ///
    /// # Errors
    ///
    /// `pin` failed, or the place is not ours to write. Then there is no such set.
    pub(super) fn publish(
        &self,
        set: &MapSet,
        pin: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let building = set.building();
        fs::create_dir_all(&building).with_context(|| format!("making {}", building.display()))?;
        pin(&building)?;
        let folder = set.folder();
        fs::rename(&building, &folder).with_context(|| format!("making {}", folder.display()))
    }

    /// The names of what makers of sets are at, or have left when they were killed.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn unfinished(&self) -> Result<Vec<String>> {
        let folders = entries(&self.root)?
            .into_iter()
            .filter(|path| is_building(path));
        let names = folders.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        Ok(names.collect())
    }

    /// Removes what a maker of a set has left that was killed. (Whoever has the lock is the only maker.)
    ///
    /// # Errors
    ///
    /// A file is not ours to remove.
    pub(super) fn remove_unfinished(&self) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for folder in entries(&self.root)?.iter().filter(|path| is_building(path)) {
            removed.extend(remove_with_content(folder)?);
        }
        Ok(removed)
    }

    /// Removes every set but this one.
    ///
    /// # Errors
    ///
    /// A file is not ours to remove.
    pub(super) fn keep_only(&self, set: &MapSet) -> Result<()> {
        self.remove_unfinished()?;
        for other in self.sets()?.iter().filter(|other| *other != set) {
            remove_with_content(&other.folder())?;
        }
        Ok(())
    }

    /// Removes every pin of every version, and the folder above them unless somebody else put something
    /// there. Links go first, so that no program meets a map that is gone. Returns what was removed.
    /// (Filters are no pins; whoever removes them does so before.)
    ///
    /// # Errors
    ///
    /// A file is not ours to remove.
    pub fn remove_all(&self) -> Result<Vec<PathBuf>> {
        let mut removed = remove_with_content(&self.links())?;
        removed.extend(remove_with_content(&self.filters())?);
        for set in self.sets()? {
            removed.extend(remove_with_content(&set.folder())?);
        }
        removed.extend(self.remove_unfinished()?);
        removed.extend(remove_folder(&self.root)?);
        Ok(removed)
    }

    /// Makes the folder above all layouts, and keeps every other agent from writing there: two that
    /// adopt the same maps would give out the same cells.
    ///
    /// # Errors
    ///
    /// Another agent has the lock, or the folder is not ours to make.
    pub fn lock(&self) -> Result<Lock> {
        let root = self.root.display();
        fs::create_dir_all(&self.root).with_context(|| format!("making {root}"))?;
        let folder = File::open(&self.root).with_context(|| format!("opening {root}"))?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock(folder)),
            Err(Errno::WOULDBLOCK) => bail!(
                "another agent ({}) serves from {root}; stop it, or give another --pin-path",
                self.holder(&folder)
            ),
            Err(error) => Err(error).with_context(|| format!("locking {root}")),
        }
    }

    /// The process of the agent, of whatever version, that has the lock; `None` if there is none that can be
    /// seen from this pid namespace.
    #[must_use]
    pub fn running_agent(&self) -> Option<u32> {
        let folder = File::open(&self.root).ok()?;
        process::lock_holder(&folder).ok().flatten()
    }

    /// Who has the lock, in words. One in another pid namespace is known by its own word alone, and one
    /// that has not programmed anything yet by the lock alone.
    fn holder(&self, folder: &File) -> String {
        let locked = process::lock_holder(folder).ok().flatten();
        let status = BpfMaps::open_pinned(self).and_then(|maps| maps.status());
        match (locked, status.ok()) {
            (Some(pid), Some(status)) if status.pid == pid => {
                format!("pid {pid}, node {}", status.node.as_str())
            }
            (Some(pid), _) => format!("pid {pid}"),
            (None, Some(status)) => format!(
                "node {}, pid {} in a pid namespace of its own",
                status.node.as_str(),
                status.pid
            ),
            (None, None) => "in another pid namespace".to_owned(),
        }
    }

    /// # Errors
    ///
    /// The place is not on a BPF file system, which alone can hold pins.
    pub fn require_bpffs(&self) -> Result<()> {
        let Some(there) = self.root.ancestors().find(|path| path.exists()) else {
            bail!("the pin path {} is not absolute", self.root.display());
        };
        ensure!(
            bpffs::is_at(there)?,
            "{} is not on a BPF file system, where maps and links are pinned; run \
             `mount -t bpf bpf /sys/fs/bpf`, or give a --pin-path on one",
            self.root.display()
        );
        Ok(())
    }
}

/// A set in the making, of any version.
fn is_building(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    let set = name.and_then(|name| name.strip_prefix(BUILDING));
    set.is_some_and(|set| MapSet::parse(Path::new(""), set).is_some())
}

/// Removes the files in a folder, and the folder if nothing else is in it.
fn remove_with_content(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for path in entries(folder)?.into_iter().filter(|path| !path.is_dir()) {
        remove_if_there(&path)?;
        removed.push(path);
    }
    removed.extend(remove_folder(folder)?);
    Ok(removed)
}

/// Removes a file, which may be gone already.
pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What is in a folder, in order; nothing if there is no such folder.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", folder.display())),
    };
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>()
        .with_context(|| format!("reading {}", folder.display()))?;
    paths.sort();
    Ok(paths)
}

/// Removes a folder if it is there and empty.
fn remove_folder(folder: &Path) -> Result<Option<PathBuf>> {
    use io::ErrorKind::{DirectoryNotEmpty, NotFound};

    match fs::remove_dir(folder) {
        Ok(()) => Ok(Some(folder.to_owned())),
        Err(error) if matches!(error.kind(), NotFound | DirectoryNotEmpty) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("removing {}", folder.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_in_the_order_of_their_numbers_whatever_their_layout() {
        let (_folder, pins) = pins();
        for name in [
            "v2-10",
            "v1",
            "v2-9",
            "v01",
            "v1-0",
            "v",
            "w3",
            "building-v1-11",
        ] {
            fs::create_dir_all(pins.root().join(name)).unwrap();
        }
        let sets = pins.sets().unwrap();

        let names: Vec<_> = sets.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["v1", "v2-9", "v2-10"]);
        assert_eq!(
            pins.next_set().unwrap().to_string(),
            format!("v{SCHEMA}-11")
        );
    }

    #[test]
    fn a_set_is_there_with_all_its_maps_or_not_at_all() {
        let (_folder, pins) = pins();
        let set = pins.next_set().unwrap();
        let killed = |_: &Path| bail!("killed");
        pins.publish(&set, killed).unwrap_err();
        assert_eq!(pins.sets().unwrap(), []);

        pins.remove_unfinished().unwrap();
        let pin = |at: &Path| {
            touch(&at.join("SLOTS"));
            assert_eq!(pins.sets()?, [], "nobody sees it before it is whole");
            Ok(())
        };
        pins.publish(&set, pin).unwrap();
        assert!(set.map("SLOTS").exists());
        assert_eq!(pins.sets().unwrap(), [set]);
    }

    #[test]
    fn a_set_that_serves_alone_is_kept_alone() {
        let (_folder, pins) = pins();
        for name in ["v1", "v2-1", "building-v9-7"] {
            fs::create_dir_all(pins.root().join(name)).unwrap();
            touch(&pins.root().join(name).join("SLOTS"));
        }
        let set = pins.next_set().unwrap();
        pins.publish(&set, |_| Ok(())).unwrap();
        pins.keep_only(&set).unwrap();

        assert_eq!(entries(pins.root()).unwrap(), [set.folder()]);
    }

    #[test]
    fn a_second_agent_is_refused_until_the_first_has_ended() {
        let (_folder, pins) = pins();
        let first = pins.lock().unwrap();
        let error = pins.lock().unwrap_err().to_string();
        let own = format!("another agent (pid {})", std::process::id());
        assert!(error.contains(&own), "{error}");
        assert_eq!(pins.running_agent(), Some(std::process::id()));

        drop(first);
        assert_eq!(pins.running_agent(), None);
        pins.lock().unwrap();
    }

    #[test]
    fn every_version_is_removed_links_first_and_nothing_else() {
        let (_folder, pins) = pins();
        for file in [
            "links/nh_connect4",
            "v1/SLOTS",
            "v7-3/OTHER",
            "building-v7-4/OTHER",
            "theirs",
        ] {
            let path = pins.root().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            touch(&path);
        }

        let removed = pins.remove_all().unwrap();
        let at = |name: &str| pins.root().join(name);
        assert_eq!(
            removed,
            [
                at("links/nh_connect4"),
                at("links"),
                at("v1/SLOTS"),
                at("v1"),
                at("v7-3/OTHER"),
                at("v7-3"),
                at("building-v7-4/OTHER"),
                at("building-v7-4"),
            ]
        );
        assert_eq!(entries(pins.root()).unwrap(), [at("theirs")]);
    }

    #[test]
    fn a_place_on_another_file_system_is_refused_with_the_mount_command() {
        let (_folder, pins) = pins();
        let error = pins.require_bpffs().unwrap_err().to_string();

        assert!(error.contains("mount -t bpf"), "{error}");
    }

    /// The names are the matter here, so any folder does.
    fn pins() -> (tempfile::TempDir, Pins) {
        let folder = tempfile::tempdir().unwrap();
        let pins = Pins::new(folder.path().join("nearhop"));
        fs::create_dir_all(pins.root()).unwrap();
        (folder, pins)
    }

    fn touch(path: &Path) {
        fs::write(path, "").unwrap();
    }
}
