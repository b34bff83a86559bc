//! Who answered a client in a pod, as it prints it and a test reads it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Connections by the name of the pod that answered, and failures by what the socket call said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    pub by: BTreeMap<String, u32>,
    pub failures: BTreeMap<String, u32>,
}

impl Answers {
    pub fn count(&mut self, outcome: anyhow::Result<String>) {
        let entry = match outcome {
            Ok(name) => self.by.entry(name),
            Err(error) => self.failures.entry(format!("{error:#}")),
        };
        *entry.or_default() += 1;
    }

    pub fn merge(&mut self, other: Self) {
        for (name, count) in other.by {
            *self.by.entry(name).or_default() += count;
        }
        for (why, count) in other.failures {
            *self.failures.entry(why).or_default() += count;
        }
    }

    /// All that were answered.
    #[must_use]
    pub fn answered(&self) -> u32 {
        self.by.values().sum()
    }

    #[must_use]
    pub fn failed(&self) -> u32 {
        self.failures.values().sum()
    }

    /// How many of them the pods with this beginning of their names answered.
    #[must_use]
    pub fn of(&self, prefix: &str) -> u32 {
        let by = self.by.iter().filter(|(name, _)| name.starts_with(prefix));
        by.map(|(_, count)| count).sum()
    }
}
