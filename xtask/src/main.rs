//! Developer commands: `cargo xtask …` is the only thing between a fresh clone and a built, checked
//! and tested nearhop. One file per command; what they share is below.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod btf;
mod build;
mod check;
mod clean_lab;
mod cluster;
mod demo;
mod digest;
mod foreign;
mod image;
mod kind;
mod processor;
mod run;
mod tally;
mod test;
mod tidy;
mod toolchain;
mod tree;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
/// Build, check, test and show nearhop
///
/// Each command installs what it needs and prints every external command it runs.
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Build(build::Args),
    Image(image::Args),
    Demo(demo::Args),
    Bench(bench::Args),
    Test(test::Args),
    Check(check::Args),
    Tidy(tidy::Args),
    Cluster(cluster::Args),
    Kind(kind::Args),
    CleanLab(clean_lab::Args),
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask build                    target/lb-ebpf.o and target/release/lb-agent
  cargo xtask image                    the image for deploy/, without a container engine
  cargo xtask demo                     traffic between zones, before and after topology hints
  cargo xtask bench connect            what a connect costs, beside kube-proxy's rules
  cargo xtask cluster up               a real Kubernetes control plane on loopback
  cargo xtask kind up                  real nodes in three zones, with nearhop in place of kube-proxy
  cargo xtask test --only unit         what needs no root
  cargo xtask test --kernel 5.10       everything on the oldest kernel
  cargo xtask check --fix              what CI checks, repaired where that is possible";

fn main() -> ExitCode {
    match perform(Cli::parse().task) {
        Ok(code) => code,
        Err(error) => {
            run::say_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Build(args) => build::build(&args),
        Task::Image(args) => image::image(&args),
        Task::Demo(args) => demo::demo(&args),
        Task::Bench(args) => bench::bench(&args),
        Task::Test(args) => test::test(&args),
        Task::Check(args) => check::check(&args),
        Task::Tidy(args) => tidy::tidy(&args),
        Task::Cluster(args) => cluster::cluster(&args),
        Task::Kind(args) => kind::kind(&args),
        Task::CleanLab(args) => clean_lab::clean_lab(&args),
    }
}
