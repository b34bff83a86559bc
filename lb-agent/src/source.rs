//! Where objects come from. A source hands over what changed, in batches; it never decides anything.

pub mod dir;
pub mod document;
pub mod folder;
pub mod kube;

use std::fmt;

use crate::model::{Object, ObjectKey};

/// What changed since the batch before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub apply: Vec<Object>,
    pub delete: Vec<ObjectKey>,
    /// All problems that the source has by then, not only the new ones.
    pub problems: Vec<Problem>,
    /// Whether everything there is has been read. Until then an object that was not heard of may be
    /// one that could not be read, so nothing may be pruned for its absence. Once true, it stays so.
    pub complete: bool,
}

/// What a source could not use, for the operator. The text names the remedy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// A file's name, the folder, or the API server.
    pub place: String,
    pub line: Option<u64>,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.place, self.what),
            None => write!(f, "{}: {}", self.place, self.what),
        }
    }
}
