//! An object and an agent whose maps have another layout, for the tests of an upgrade. Nothing of it is
//! shipped.

use std::{env, fs};

use anyhow::{Context, Result};

use super::{BPF_TARGET, bpf_cargo, bpf_folder, cargo, publish};
use crate::{
    run,
    toolchain::{self, Need},
    tree::Tree,
};

const FEATURE: &str = "next-layout";

/// To be called before the others are built: cargo puts both under one name, and leaves there what was
/// built last. The agent is unoptimised, so its dependencies are those that the tests are built with.
pub(crate) fn build(tree: &Tree) -> Result<()> {
    toolchain::ensure(&[Need::RustSrc, Need::BpfLinker])?;
    let folder = tree.target.join(FEATURE);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    object(tree)?;
    agent(tree)
}

fn object(tree: &Tree) -> Result<()> {
    let mut cargo = bpf_cargo(tree, "build")?;
    cargo.args(["--profile", "bpf", "--bin", "lb-ebpf"]);
    cargo.args(["--features", FEATURE]);
    run::live(cargo).context("building the kernel object of another layout")?;
    let built = bpf_folder(tree, env::consts::ARCH).join(BPF_TARGET);
    publish(tree, &built.join("bpf/lb-ebpf"), &tree.next_object())
}

fn agent(tree: &Tree) -> Result<()> {
    let mut cargo = cargo(tree, "build");
    cargo.args(["--package", "lb-agent", "--features", FEATURE]);
    cargo.env("NEARHOP_BPF_OBJECT", tree.next_object());
    run::live(cargo).context("building the agent of another layout")?;
    let (from, to) = (tree.target.join("debug/lb-agent"), tree.next_agent());
    fs::copy(&from, &to)
        .with_context(|| format!("copying {} to {}", tree.short(&from), tree.short(&to)))?;
    Ok(())
}
