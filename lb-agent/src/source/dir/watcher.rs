//! Follows a folder with inotify. Which events mean that a file is whole is the matter of
//! [`Pending`]; the rest is waiting for a quiet moment and reading what is pending.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, mem,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{
        Timespec,
        inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    },
    io::{Errno, retry_on_intr},
};
use tokio::sync::mpsc;

use crate::source::{
    Batch, Problem,
    dir::{DirError, list, object_file, read},
    folder::Folder,
};

/// How long the folder must be quiet before its changes are read.
const QUIET: Duration = Duration::from_millis(50);
/// How long a folder that is never quiet may put that off.
const BURST_MAX: Duration = Duration::from_millis(500);
/// How often a folder that went away is looked for.
const RETRY: Duration = Duration::from_secs(1);
/// Room for some hundred events in one read.
const EVENT_BYTES: usize = 16 * 1024;
/// How many batches may wait for a busy agent. The folder's next changes then wait in the kernel.
const BATCHES: usize = 4;

/// Follow a folder in a thread of its own, since files have no asynchronous reads. The first batch is
/// all that is in the folder. The thread ends with the first change after the receiver was dropped.
///
/// # Errors
///
/// The folder cannot be read or watched.
pub fn follow(path: &Path) -> Result<mpsc::Receiver<Batch>, DirError> {
    let (mut watcher, first) = Watcher::new(path)?;
    let (sender, receiver) = mpsc::channel(BATCHES);
    let send = move || {
        let mut batch = first;
        while sender.blocking_send(batch).is_ok() {
            batch = watcher.next_batch();
        }
    };
    let thread = thread::Builder::new().name("dir".to_owned());
    thread.spawn(send).map_err(DirError::Thread)?;
    Ok(receiver)
}

/// Follows a folder.
#[derive(Debug)]
pub struct Watcher {
    path: PathBuf,
    events: Events,
    folder: Folder,
    pending: Pending,
    /// What is wrong with the folder itself.
    lost: Option<Problem>,
    reported: Vec<Problem>,
    complete: bool,
}

impl Watcher {
    /// Watch the folder; the first batch is all that is in it.
    ///
    /// # Errors
    ///
    /// The folder cannot be read or watched.
    pub fn new(path: &Path) -> Result<(Self, Batch), DirError> {
        let mut watcher = Self {
            path: path.to_owned(),
            // Before the first look, so that no change falls between the two.
            events: Events::new(path)?,
            folder: Folder::default(),
            pending: Pending::everything(),
            lost: None,
            reported: Vec::new(),
            complete: false,
        };
        watcher.read_pending()?;
        let batch = watcher.batch();
        Ok((watcher, batch))
    }

    /// Wait for the next change.
    pub fn next_batch(&mut self) -> Batch {
        loop {
            let waited = match self.lost {
                None => self.settle(),
                Some(_) => self.await_return(),
            };
            let done = waited.and_then(|()| self.read_pending());
            self.lost = done.err().map(|error| self.lost_problem(&error));

            let problems_changed = self.problems() != self.reported;
            let batch = self.batch();
            if problems_changed || !batch.apply.is_empty() || !batch.delete.is_empty() {
                return batch;
            }
        }
    }

    /// Wait until changes are pending and the folder is quiet, or has been busy for too long.
    fn settle(&mut self) -> Result<(), DirError> {
        let mut latest = None;
        loop {
            if !self.pending.is_empty() {
                latest = latest.or_else(|| Some(Instant::now() + BURST_MAX));
            }
            let left = latest.map(|latest: Instant| latest - Instant::now());
            let is_over = self.pending.is_lost || left == Some(Duration::ZERO);
            if is_over || !self.events.wait(left.map(|left| left.min(QUIET)))? {
                return Ok(());
            }
            self.events.note_into(&mut self.pending)?;
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a folder that is gone has no event to wait for"
    )]
    fn await_return(&mut self) -> Result<(), DirError> {
        thread::sleep(RETRY);
        self.events = Events::new(&self.path)?;
        self.pending = Pending::everything();
        Ok(())
    }

    fn read_pending(&mut self) -> Result<(), DirError> {
        let names = self.names_to_read()?;
        let read: Vec<_> = names
            .into_iter()
            .filter(|name| !self.pending.writing.contains(name))
            .map(|name| (read(&self.path, &name), name))
            .collect();
        // What a writer touched while we read may be torn. It will be closed, and read then.
        let torn = self.events.note_into(&mut self.pending)?;
        for (read, name) in read {
            match read {
                _ if torn.contains(&name) => {}
                Some(read) => self.folder.put(&name, read),
                None => self.folder.remove(&name),
            }
        }
        Ok(())
    }

    fn names_to_read(&mut self) -> Result<BTreeSet<String>, DirError> {
        let pending = self.pending.take();
        if pending.is_lost {
            return Err(DirError::Gone(self.path.clone()));
        }
        if !pending.everything {
            return Ok(pending.names);
        }
        // With those that were there before: they may be gone.
        let mut names = list(&self.path)?;
        names.extend(self.folder.names().cloned());
        Ok(names)
    }

    fn batch(&mut self) -> Batch {
        self.complete |= self.folder.is_complete();
        self.reported = self.problems();
        let (apply, delete) = self.folder.take_changes();
        Batch {
            apply,
            delete,
            problems: self.reported.clone(),
            complete: self.complete,
        }
    }

    fn problems(&self) -> Vec<Problem> {
        self.lost
            .iter()
            .cloned()
            .chain(self.folder.problems())
            .collect()
    }

    fn lost_problem(&self, error: &DirError) -> Problem {
        Problem {
            place: self.path.display().to_string(),
            line: None,
            what: format!("{error}; until then the last objects stay"),
        }
    }
}

/// The kernel's queue of events for one folder.
#[derive(Debug)]
struct Events {
    path: PathBuf,
    inotify: OwnedFd,
    buffer: Vec<u8>,
}

impl Events {
    fn new(path: &Path) -> Result<Self, DirError> {
        let watched = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let open = || {
            let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            inotify::add_watch(&inotify, path, watched).map(|_| inotify)
        };
        Ok(Self {
            path: path.to_owned(),
            inotify: open().map_err(|errno| DirError::watch(path, errno))?,
            buffer: Vec::with_capacity(EVENT_BYTES),
        })
    }

    /// Wait for events; false if there were none in that time.
    fn wait(&self, patience: Option<Duration>) -> Result<bool, DirError> {
        let failed = |errno| DirError::watch(&self.path, errno);
        let patience = patience.map(Timespec::try_from).transpose();
        let patience = patience.map_err(|_| failed(Errno::OVERFLOW))?;
        let mut fds = [PollFd::new(&self.inotify, PollFlags::IN)];
        let ready = retry_on_intr(|| poll(&mut fds, patience.as_ref()));
        Ok(ready.map_err(failed)? > 0)
    }

    /// Note all events that are there. Returns the files that somebody wrote to.
    fn note_into(&mut self, pending: &mut Pending) -> Result<BTreeSet<String>, DirError> {
        let mut written = BTreeSet::new();
        let mut reader = Reader::new(&self.inotify, self.buffer.spare_capacity_mut());
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event
                        .file_name()
                        .map(|name| OsStr::from_bytes(name.to_bytes()));
                    written.extend(pending.note(event.events(), name, &self.path));
                }
                Err(Errno::WOULDBLOCK) => return Ok(written),
                Err(errno) => return Err(DirError::watch(&self.path, errno)),
            }
        }
    }
}

/// What is to be read, as the events tell it.
#[derive(Debug, Default)]
struct Pending {
    names: BTreeSet<String>,
    everything: bool,
    /// The folder itself was removed or moved away.
    is_lost: bool,
    /// Files that somebody began to write and has not closed.
    writing: BTreeSet<String>,
}

impl Pending {
    fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    fn is_empty(&self) -> bool {
        !self.everything && self.names.is_empty()
    }

    /// What is to be read, leaving only who is writing.
    fn take(&mut self) -> Self {
        let rest = Self {
            writing: mem::take(&mut self.writing),
            ..Self::default()
        };
        mem::replace(self, rest)
    }

    /// Note an event; returns the file if it says that its contents are changing.
    fn note(&mut self, event: ReadFlags, name: Option<&OsStr>, path: &Path) -> Option<String> {
        if event.contains(ReadFlags::QUEUE_OVERFLOW) {
            // The lost events may have closed any file.
            *self = Self::everything();
            return None;
        }
        self.is_lost |= event.intersects(
            ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT | ReadFlags::IGNORED,
        );
        let name = name?;
        // A link that is no object file may be what other links lead through, such as the ..data of
        // a mounted ConfigMap: with it, all of them change.
        let Some(file) = object_file(name) else {
            self.everything |= event.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO)
                && path.join(name).is_symlink();
            return None;
        };
        self.note_file(event, file, &path.join(file))
    }

    fn note_file(&mut self, event: ReadFlags, file: &str, path: &Path) -> Option<String> {
        if event.contains(ReadFlags::MODIFY) {
            self.writing.insert(file.to_owned());
            return Some(file.to_owned());
        }
        let is_whole = ReadFlags::CLOSE_WRITE
            | ReadFlags::MOVED_TO
            | ReadFlags::MOVED_FROM
            | ReadFlags::DELETE;
        if event.intersects(is_whole) {
            self.writing.remove(file);
            self.names.insert(file.to_owned());
        } else if event.contains(ReadFlags::ATTRIB) || is_a_link(path) {
            self.names.insert(file.to_owned());
        }
        None
    }
}

/// Whether a name that was created is complete at once: nobody will close a link.
fn is_a_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink() || file.nlink() > 1)
}
