//! A folder of Kubernetes YAML or JSON as the source of objects: no API server needed.
//!
//! Files are read when they are whole: after their writer closed them, or when they were moved into
//! place. Changes that come together are one batch, so that an object on its way from one file to
//! another is never gone in between. A mounted `ConfigMap`, whose files are links that change all at
//! once, is a folder like any other.

mod watcher;

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;
pub use watcher::{Watcher, follow};

use crate::{
    model::Object,
    source::{
        Problem,
        document::{self, Contents, has_extension},
        folder::Folder,
    },
};

/// The folder itself cannot be read or watched.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    #[error("cannot read the folder {}: {error}; create it, or name another one", .path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("cannot watch the folder {}: {errno}; {}", .path.display(), watch_remedy(*.errno))]
    Watch { path: PathBuf, errno: Errno },
    #[error("the folder {} was removed or moved away; put it back", .0.display())]
    Gone(PathBuf),
    #[error("cannot start the thread that follows the folder: {0}; raise the limit of processes")]
    Thread(io::Error),
}

impl DirError {
    fn watch(path: &Path, errno: Errno) -> Self {
        Self::Watch {
            path: path.to_owned(),
            errno,
        }
    }
}

/// The kernel says "too many open files" and "no space left" where it means its own limits.
fn watch_remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::MFILE => "raise the sysctl fs.inotify.max_user_instances",
        Errno::NOSPC => "raise the sysctl fs.inotify.max_user_watches",
        _ => "it must be a folder that can be read",
    }
}

/// A folder as it was at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub objects: Vec<Object>,
    pub problems: Vec<Problem>,
    /// How many documents were of kinds that nobody here reads.
    pub ignored: usize,
}

/// Read the folder once.
///
/// # Errors
///
/// The folder cannot be read. Files that cannot are problems in the result.
pub fn read_dir_once(path: &Path) -> Result<Snapshot, DirError> {
    let mut folder = Folder::default();
    for name in list(path)? {
        read_into(&mut folder, path, &name);
    }
    Ok(Snapshot {
        objects: folder.take_changes().0,
        problems: folder.problems(),
        ignored: folder.ignored(),
    })
}

/// The names of the files that may hold objects.
fn list(path: &Path) -> Result<BTreeSet<String>, DirError> {
    let failed = |error| DirError::Read {
        path: path.to_owned(),
        error,
    };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.extend(object_file(&name).map(str::to_owned));
    }
    Ok(names)
}

/// The name of a file that may hold objects. Hidden ones are editors' and the kubelet's.
fn object_file(name: &OsStr) -> Option<&str> {
    let name = name.to_str().filter(|name| !name.starts_with('.'))?;
    let ours = ["yaml", "yml", "json"]
        .iter()
        .any(|extension| has_extension(name, extension));
    ours.then_some(name)
}

fn read_into(folder: &mut Folder, path: &Path, name: &str) {
    match read(path, name) {
        Some(read) => folder.put(name, read),
        None => folder.remove(name),
    }
}

/// The file's contents; `None` if there is no such file.
fn read(path: &Path, name: &str) -> Option<Result<Contents, Problem>> {
    let problem = |what| Problem {
        place: name.to_owned(),
        line: None,
        what,
    };
    match read_file(&path.join(name)) {
        Ok(text) => Some(document::parse(name, &text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => None,
        Err(error) => Some(Err(problem(format!(
            "cannot be read: {error}; correct that, or remove it"
        )))),
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    let kind = fs::metadata(path)?.file_type();
    if kind.is_file() || kind.is_dir() {
        return fs::read_to_string(path);
    }
    // A pipe lets its reader wait for a writer, and a device may never end.
    Err(io::Error::other("it is neither a file nor a link to one"))
}
