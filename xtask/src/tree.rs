//! Where things lie: the repository and cargo's target directory. Every command runs in the
//! repository's root, wherever it was called from.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::run;

pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
}

impl Tree {
    /// The tree this xtask was started for, with the caller's own target directory if one is set.
    pub(crate) fn find() -> Result<Self> {
        let manifest =
            env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).join("..").canonicalize()?;
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => env::current_dir()?.join(dir),
            None => target_by_cargo(&root)?,
        };
        Ok(Self { root, target })
    }

    /// The kernel object that the agent embeds.
    pub(crate) fn object(&self) -> PathBuf {
        self.target.join("lb-ebpf.o")
    }

    /// The kernel object of one of lb-ebpf's further programs.
    pub(crate) fn object_of(&self, bin: &str) -> PathBuf {
        self.target.join(format!("lb-ebpf-{bin}.o"))
    }

    pub(crate) fn agent(&self) -> PathBuf {
        self.target.join("release/lb-agent")
    }

    /// The agent whose maps have another layout, for the tests of an upgrade.
    pub(crate) fn next_agent(&self) -> PathBuf {
        self.target.join("next-layout/lb-agent")
    }

    /// The kernel object that it embeds.
    pub(crate) fn next_object(&self) -> PathBuf {
        self.target.join("next-layout/lb-ebpf.o")
    }

    /// A path as people write it: relative to the repository where it lies inside.
    pub(crate) fn short<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}

/// Cargo's answer also knows `build.target-dir` of the user's configuration.
fn target_by_cargo(root: &Path) -> Result<PathBuf> {
    let mut cargo = run::command("cargo");
    cargo
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root);
    let metadata: serde_json::Value = serde_json::from_str(&run::text(cargo)?)?;
    let target = metadata["target_directory"].as_str();
    Ok(target
        .context("cargo metadata names no target_directory")?
        .into())
}
