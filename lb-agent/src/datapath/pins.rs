//! Where pins lie: `<pin-path>/v1/<MAP>` and `<pin-path>/v1/links/<program>`. Pins are what keeps the
//! data path working while no agent runs.

use std::{
    fs,
    fs::File,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use lb_common::tables::{SCHEMA, names};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::datapath::{attach::PROGRAMS, bpffs};

/// One agent's pins.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

/// The right to write these pins. The kernel takes it back when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "open for as long as the lock is held")] File);

/// What lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing of ours.
    Empty,
    /// Maps, and no link: a start that ended before anything was attached. Nobody uses them.
    Unfinished,
    /// Everything is there, and serving.
    Installed,
    /// Links serve, and these maps cannot be found: nothing that could be carried on.
    Broken { missing: Vec<&'static str> },
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

    /// The folder of this layout.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.root.join(format!("v{SCHEMA}"))
    }

    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.folder().join("links")
    }

    #[must_use]
    pub fn link(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    /// Where a link waits to take another's place. (Names with a dot are the kernel's.)
    pub(super) fn next_link(&self, program: &str) -> PathBuf {
        self.links().join(format!("{program}-next"))
    }

    /// Whether programs of an earlier start serve from here.
    #[must_use]
    pub fn serve(&self) -> bool {
        match self.state() {
            State::Empty | State::Unfinished => false,
            State::Installed | State::Broken { .. } => true,
        }
    }

    /// What lies there.
    #[must_use]
    pub fn state(&self) -> State {
        let there = |path: PathBuf| path.exists();
        let any_link = PROGRAMS.iter().any(|program| there(self.link(program)));
        let (found, missing): (Vec<_>, Vec<_>) = names::ALL
            .into_iter()
            .partition(|name| there(self.map(name)));
        match (any_link, missing.is_empty()) {
            (true, true) => State::Installed,
            (true, false) => State::Broken { missing },
            (false, _) if found.is_empty() => State::Empty,
            (false, _) => State::Unfinished,
        }
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
                "another agent serves from {root} (`lb-agent status --pin-path {root}` tells which); \
                 stop it, or give another --pin-path"
            ),
            Err(error) => Err(error).with_context(|| format!("locking {root}")),
        }
    }

    /// Makes the folders.
    ///
    /// # Errors
    ///
    /// The place is not on a BPF file system, or not ours to write.
    pub fn create_folders(&self) -> Result<()> {
        self.require_bpffs()?;
        let links = self.links();
        fs::create_dir_all(&links).with_context(|| format!("making {}", links.display()))
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

    /// Removes the pins of this layout and their folders.
    ///
    /// # Errors
    ///
    /// A file is not ours to remove.
    pub fn remove(&self) -> Result<Vec<PathBuf>> {
        remove_layout(&self.folder())
    }

    /// Removes the pins of every layout there was, and the folder above them unless somebody else put
    /// something there. Returns what was removed.
    ///
    /// # Errors
    ///
    /// A file is not ours to remove.
    pub fn remove_all(&self) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for folder in entries(&self.root)?
            .into_iter()
            .filter(|path| is_layout(path))
        {
            removed.extend(remove_layout(&folder)?);
        }
        removed.extend(remove_folder(&self.root)?);
        Ok(removed)
    }
}

/// `v` and a number.
fn is_layout(folder: &Path) -> bool {
    let name = folder.file_name().and_then(|name| name.to_str());
    let number = name.and_then(|name| name.strip_prefix('v'));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Links first, so that no program meets a map that is gone.
fn remove_layout(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for folder in [&folder.join("links"), folder] {
        for path in entries(folder)?.into_iter().filter(|path| !path.is_dir()) {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            removed.push(path);
        }
        removed.extend(remove_folder(folder)?);
    }
    Ok(removed)
}

/// What is in a folder, in order; nothing if there is no such folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
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
    fn what_lies_there_is_told_apart() {
        let (_folder, pins) = pins();
        assert_eq!(pins.state(), State::Empty);

        fs::create_dir_all(pins.links()).unwrap();
        names::ALL.iter().for_each(|name| touch(&pins.map(name)));
        assert_eq!(pins.state(), State::Unfinished);

        touch(&pins.link("nh_connect4"));
        assert_eq!(pins.state(), State::Installed);

        fs::remove_file(pins.map(names::SLOTS)).unwrap();
        let missing = vec![names::SLOTS];
        assert_eq!(pins.state(), State::Broken { missing });
    }

    #[test]
    fn a_second_agent_is_refused_until_the_first_has_ended() {
        let (_folder, pins) = pins();
        let first = pins.lock().unwrap();
        let error = pins.lock().unwrap_err().to_string();
        assert!(error.contains("another agent"), "{error}");

        drop(first);
        pins.lock().unwrap();
    }

    #[test]
    fn every_layout_is_removed_links_first_and_nothing_else() {
        let (_folder, pins) = pins();
        fs::create_dir_all(pins.links()).unwrap();
        fs::create_dir_all(pins.root().join("v0")).unwrap();
        touch(&pins.link("nh_connect4"));
        touch(&pins.map(names::SLOTS));
        touch(&pins.root().join("theirs"));

        let removed = pins.remove_all().unwrap();
        let old = pins.root().join("v0");
        let links = [pins.link("nh_connect4"), pins.links()];
        let rest = [pins.map(names::SLOTS), pins.folder()];
        assert_eq!(removed, [&[old][..], &links, &rest].concat());
        assert!(pins.root().join("theirs").exists());
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
