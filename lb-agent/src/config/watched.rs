//! The configuration file while the agent runs. As with kube-proxy, a change of it ends the agent, so that
//! whoever supervises it starts it anew: nothing is half old and half new, and the kernel serves on.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::time::{self, Interval, MissedTickBehavior};

/// A mounted `ConfigMap` takes up to a minute to change anyway.
const EVERY: Duration = Duration::from_secs(5);

/// The file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    pub path: PathBuf,
    pub text: String,
}

/// Looks at it now and then.
pub struct Watch {
    file: Watched,
    ticks: Interval,
}

impl Watched {
    /// # Errors
    ///
    /// It cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            let path = path.display();
            format!("{path} cannot be read; create it, or name another file in --config")
        })?;
        Ok(Self {
            path: path.to_owned(),
            text,
        })
    }
}

impl Watch {
    #[must_use]
    pub fn new(file: Watched) -> Self {
        let mut ticks = time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { file, ticks }
    }

    /// Returns once the file says something else; the path. May be dropped and called again.
    pub async fn changed(&mut self) -> &Path {
        loop {
            self.ticks.tick().await;
            // One that cannot be read may be about to be replaced.
            let now = fs::read_to_string(&self.file.path);
            if now.is_ok_and(|now| now != self.file.text) {
                return &self.file.path;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_another_text_is_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.conf");
        fs::write(&path, "mode: ''").unwrap();
        let mut watch = Watch::new(Watched::read(&path).unwrap());
        let mut unchanged = async |for_secs| {
            let waited = time::timeout(Duration::from_secs(for_secs), watch.changed()).await;
            waited.is_err()
        };

        assert!(unchanged(60).await);
        fs::write(&path, "mode: ''").unwrap();
        assert!(unchanged(60).await, "the same text");
        fs::remove_file(&path).unwrap();
        assert!(unchanged(60).await, "no file");
        fs::write(&path, "mode: ipvs").unwrap();
        assert!(!unchanged(60).await, "another text");
    }
}
