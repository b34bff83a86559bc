//! Finds and removes what labs left behind whose process was killed before it could undo them. Only
//! on request (`lab_clean`): a sweep at every start would hide that something leaks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::{cgroup, lab};

/// A lab that exists on this machine, with its namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub lab: String,
    pub pid: u32,
    pub namespaces: Vec<String>,
}

impl Found {
    /// Whether the process that made the lab still runs.
    #[must_use]
    pub fn alive(&self) -> bool {
        Path::new("/proc").join(self.pid.to_string()).exists()
    }

    /// Removes the lab and what still runs in it; what could not be removed is returned.
    #[must_use]
    pub fn remove(&self) -> Vec<anyhow::Error> {
        lab::undo_named(&self.lab, &self.namespaces)
    }
}

/// Every lab that has a namespace, a cgroup or a folder.
pub fn labs() -> anyhow::Result<Vec<Found>> {
    let namespaces = names(Path::new("/run/netns"));
    let others = names(Path::new(lab::LABS))
        .into_iter()
        .chain(names(&cgroup::own()?));
    Ok(group(namespaces, others))
}

/// A folder that does not exist holds nothing of ours.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn group(namespaces: BTreeSet<String>, others: impl Iterator<Item = String>) -> Vec<Found> {
    let mut labs: BTreeMap<(u32, &str), Vec<String>> = BTreeMap::new();
    for name in &namespaces {
        if let Some(lab) = lab_of(name) {
            labs.entry(lab).or_default().push(name.clone());
        }
    }
    let others: Vec<_> = others.collect();
    for lab in others.iter().filter_map(|name| lab_of(name)) {
        labs.entry(lab).or_default();
    }
    labs.into_iter()
        .map(|((pid, lab), namespaces)| Found {
            lab: lab.to_owned(),
            pid,
            namespaces,
        })
        .collect()
}

/// `nh-<pid>-<n>` of any name that a lab gives.
fn lab_of(name: &str) -> Option<(u32, &str)> {
    let rest = name.strip_prefix(lab::PREFIX)?;
    let (pid, rest) = rest.split_once('-')?;
    let number = rest.split('-').next()?;
    number.parse::<u32>().ok()?;
    let length = lab::PREFIX.len() + pid.len() + 1 + number.len();
    Some((pid.parse().ok()?, &name[..length]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_grouped_by_the_lab_that_gave_them() {
        let namespaces = ["cni-1", "nh-7-0-a", "nh-7-0-net", "nh-x-0-net"].map(String::from);
        let others = ["nh-7-0", "nh-9-12", "nh-mount"].map(String::from);

        let found = group(namespaces.into(), others.into_iter());

        let labs: Vec<_> = found
            .iter()
            .map(|found| (found.pid, found.lab.as_str(), found.namespaces.len()))
            .collect();
        assert_eq!(labs, [(7, "nh-7-0", 2), (9, "nh-9-12", 0)]);
    }
}
