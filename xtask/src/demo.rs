//! `cargo xtask demo`: builds, then becomes the lab's demo. It becomes the program rather than
//! starting it, so that Ctrl-C reaches the one process that has namespaces to take down.

use std::{os::unix::process::CommandExt, process::ExitCode};

use anyhow::{Context, Result, ensure};

use crate::{
    build, cluster, run,
    toolchain::{self, Need},
    tree::Tree,
};

/// Show what nearhop is for: cross-zone traffic before and after topology hints, on this kernel
///
/// Needs root. Makes network namespaces for a small cluster, runs a real agent per node, sends real
/// requests, and takes everything down again.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print only the counts, as JSON, on standard output
    #[arg(long)]
    json: bool,
    /// On a real control plane, whose own controller writes the EndpointSlices and the hints
    ///
    /// The first time this builds Kubernetes, which takes some minutes.
    #[arg(long)]
    cluster: bool,
}

pub(crate) fn demo(args: &Args) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the demo makes network namespaces and loads programs, which needs root"
    );
    let tree = Tree::find()?;
    toolchain::ensure(&[Need::Iproute2, Need::Bpftool])?;
    build::objects(&tree)?;
    build::agent(&tree)?;
    if args.cluster {
        cluster::program(&tree)?;
    }
    let mut cargo = build::cargo(&tree, "build");
    // The demo starts its servers and clients from the second one, which lies beside it.
    cargo.args([
        "--release",
        "--package",
        "lb-tests",
        "--bin",
        "demo",
        "--bin",
        "lab_worker",
    ]);
    run::live(cargo)?;

    let mut demo = run::command(tree.target.join("release/demo"));
    demo.current_dir(&tree.root)
        .env("NEARHOP_AGENT", tree.agent())
        .env("NEARHOP_CLUSTER", cluster::path(&tree));
    demo.args(args.json.then_some("--json"));
    demo.args(args.cluster.then_some("--cluster"));
    run::say_command(&demo);
    Err(demo.exec()).with_context(|| format!("starting {}", run::shown(&demo)))
}
