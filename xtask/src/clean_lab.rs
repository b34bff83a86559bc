//! `cargo xtask clean-lab`: removes what labs left behind whose process was killed. Explicit, because
//! a sweep at every start would hide that something leaks.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::{build, run, tree::Tree};

/// Remove namespaces, cgroups and pins of labs whose process is gone
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn clean_lab(_: &Args) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "removing namespaces and cgroups needs root"
    );
    let mut cargo = build::cargo(&Tree::find()?, "run");
    cargo.args(["--quiet", "--package", "lb-tests", "--bin", "lab_clean"]);
    run::live(cargo)?;
    Ok(ExitCode::SUCCESS)
}
