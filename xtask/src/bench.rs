//! `cargo xtask bench`: builds what is measured, then becomes the benchmark. It becomes the program
//! rather than starting it, so that Ctrl-C reaches the one process that has namespaces to take down.

use std::{os::unix::process::CommandExt, process::ExitCode};

use anyhow::{Context, Result, ensure};

use crate::{
    build, cluster, run,
    toolchain::{self, Need},
    tree::Tree,
};

/// Measure nearhop beside what it replaces
///
/// Needs root. Everything happens in network namespaces and cgroups of its own.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Connect(Connect),
}

/// TCP connect: direct, by nearhop, and by the rules that the real kube-proxy writes
///
/// Writes target/bench/connect.json and target/bench/connect.svg beside what it prints. At ten thousand
/// Services kube-proxy's iptables mode alone takes some minutes.
#[derive(clap::Args)]
struct Connect {
    /// Two minutes at most: shows that the harness works, and nothing about times
    #[arg(long)]
    quick: bool,
    /// Numbers of Services, ascending [default: 1,1000,10000]
    #[arg(long, value_name = "N,N,…")]
    services: Option<String>,
    /// Rounds, in each of which every way has its turn [default: 200]
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Print the result as JSON on standard output
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask bench connect
  cargo xtask bench connect --services 1,1000 --rounds 400
  cargo xtask bench connect --json | jq '.sizes[].ways[] | {way, ratio_p50}'";

pub(crate) fn bench(args: &Args) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "a benchmark makes network namespaces and loads programs, which needs root"
    );
    let What::Connect(args) = &args.what;
    let tree = Tree::find()?;
    toolchain::ensure(&[
        Need::Iproute2,
        Need::Bpftool,
        Need::Nftables,
        Need::Iptables,
    ])?;
    let control_plane = cluster::program(&tree)?;
    build::objects(&tree)?;
    build::agent(&tree)?;
    let mut cargo = build::cargo(&tree, "build");
    // The benchmark starts its clients from the second one, which lies beside it.
    cargo.args(["--release", "--package", "lb-tests"]);
    cargo.args(["--bin", "bench_connect", "--bin", "lab_worker"]);
    run::live(cargo)?;

    let mut bench = run::command(tree.target.join("release/bench_connect"));
    bench
        .current_dir(&tree.root)
        .env("NEARHOP_AGENT", tree.agent())
        .env("NEARHOP_CLUSTER", control_plane)
        .arg("--out")
        .arg(tree.target.join("bench"));
    bench.args(args.flags());
    run::say_command(&bench);
    Err(bench.exec()).with_context(|| format!("starting {}", run::shown(&bench)))
}

impl Connect {
    fn flags(&self) -> Vec<String> {
        let services = self
            .services
            .iter()
            .map(|list| format!("--services={list}"));
        let rounds = self
            .rounds
            .iter()
            .map(|rounds| format!("--rounds={rounds}"));
        let quick = self.quick.then(|| "--quick".to_owned());
        let json = self.json.then(|| "--json".to_owned());
        services.chain(rounds).chain(quick).chain(json).collect()
    }
}
