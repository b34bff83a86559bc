//! `cargo xtask test`: everything that can fail, in five stages, and one sum.

use std::{
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Result, ensure};
use clap::{ValueEnum, builder::PossibleValuesParser};

use crate::{
    build, cluster, foreign, image, kind,
    run::{self, Event},
    tally::{Libtest, Tally},
    toolchain::{self, Need},
    tree::Tree,
    vm,
};

/// Run the tests: unit tests, the lab in network namespaces, other kernels in a virtual machine, and
/// the other processor
///
/// The last line is `N passed, N failed, N skipped`, on standard output; all else is on standard
/// error.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Run only this stage
    #[arg(long)]
    only: Option<Stage>,

    /// Run only the virtual machine, with this kernel
    #[arg(long, conflicts_with = "only", value_parser = kernels())]
    kernel: Vec<String>,

    /// Run only tests whose name contains this
    filter: Option<String>,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask test                     all of it; needs root for the lab
  cargo xtask test --only unit         seconds, no root
  cargo xtask test --only lab refused  the lab's tests with `refused` in their name
  cargo xtask test --only kind         the walk-throughs, on real kubelets
  cargo xtask test --kernel 6.1        load and use everything on a 6.1 kernel";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// What needs neither root nor a kernel
    Unit,
    /// Real agents and sockets in network namespaces; needs root
    Lab,
    /// The users' walk-throughs on real kubelets, with nearhop as its DaemonSet; needs root
    Kind,
    /// Other kernels, emulated: the oldest that nearhop runs on, and one that is preemptible
    Vm,
    /// The agent for the other processor, run by an emulator
    Foreign,
}

/// A stage over this hangs.
const STAGE_LIMIT: Duration = Duration::from_secs(25 * 60);

fn kernels() -> PossibleValuesParser {
    PossibleValuesParser::new(vm::KERNELS.iter().map(|kernel| kernel.version))
}

pub(crate) fn test(args: &Args) -> Result<ExitCode> {
    let stages = stages(args);
    ensure!(
        !stages.iter().any(|stage| stage.needs_root()) || rustix::process::geteuid().is_root(),
        "the lab makes network namespaces and loads programs, which needs root: \
         run this as root, or `cargo xtask test --only unit`"
    );
    let tree = Tree::find()?;
    let mut tally = Tally::default();
    for stage in stages {
        // A stage that dies is counted, and the others still run.
        match perform(&tree, stage, args) {
            Ok(done) => tally.add(done),
            Err(error) => {
                run::say_error(&error);
                tally.fail(&format!("{}: {error:#}", stage.name()));
            }
        }
    }
    Ok(sum_up(tally, args.filter.as_deref()))
}

fn stages(args: &Args) -> Vec<Stage> {
    match args.only {
        Some(stage) => vec![stage],
        None if !args.kernel.is_empty() => vec![Stage::Vm],
        None => Stage::value_variants().to_vec(),
    }
}

fn perform(tree: &Tree, stage: Stage, args: &Args) -> Result<Tally> {
    run::say_title(stage.name());
    match stage {
        Stage::Unit => unit(tree, args),
        Stage::Lab => lab(tree, args),
        Stage::Kind => kind::stage(tree, args.filter.as_deref()),
        Stage::Vm => virtual_machines(tree, args),
        Stage::Foreign => foreign_processors(tree, args),
    }
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Lab => "lab",
            Self::Kind => "kind",
            Self::Vm => "vm",
            Self::Foreign => "foreign",
        }
    }

    fn needs_root(self) -> bool {
        matches!(self, Self::Lab | Self::Kind)
    }
}

fn unit(tree: &Tree, args: &Args) -> Result<Tally> {
    build::objects(tree)?;
    libtest(cargo_test(tree, &[], args)?, "unit")
}

fn lab(tree: &Tree, args: &Args) -> Result<Tally> {
    toolchain::ensure(&[
        Need::Iproute2,
        Need::Bpftool,
        Need::Nftables,
        Need::Iptables,
        Need::Runc,
    ])?;
    build::next::build(tree)?;
    build::objects(tree)?;
    build::agent(tree)?;
    let processor = build::processor(None)?;
    image::make(tree, processor, &image::path(tree, processor))?;
    cluster::program(tree)?;
    let mut cargo = cargo_test(tree, &["--package", "lb-tests"], args)?;
    // They have a stage of their own.
    cargo.args(["--skip", kind::TESTS]);
    libtest(cargo, "lab")
}

fn virtual_machines(tree: &Tree, args: &Args) -> Result<Tally> {
    build::objects(tree)?;
    build::agent(tree)?;
    vm::test(tree, &args.kernel, args.filter.as_deref())
}

/// It has one name, and no tests of its own.
fn foreign_processors(tree: &Tree, args: &Args) -> Result<Tally> {
    if args
        .filter
        .as_deref()
        .is_some_and(|filter| !"foreign".contains(filter))
    {
        return Ok(Tally::default());
    }
    build::objects(tree)?;
    build::agent(tree)?;
    foreign::test(tree)
}

/// Cargo goes on after a program with a failed test, and shows what tests say that did not run.
fn cargo_test(tree: &Tree, packages: &[&str], args: &Args) -> Result<Command> {
    let mut cargo = build::cargo(tree, "test");
    cargo
        .args(packages)
        .arg("--no-fail-fast")
        .args(&args.filter);
    cargo
        .args(["--", "--show-output"])
        .env("NEARHOP_AGENT", tree.agent())
        .env("NEARHOP_NEXT_AGENT", tree.next_agent())
        .env("NEARHOP_IMAGE", image::path(tree, build::processor(None)?))
        .env("NEARHOP_CLUSTER", cluster::path(tree));
    for bin in build::further_programs(tree)? {
        let name = format!("NEARHOP_{}_OBJECT", bin.to_uppercase());
        cargo.env(name, tree.object_of(&bin));
    }
    Ok(cargo)
}

/// Runs `cargo test -- --show-output`, and counts what it says.
pub(crate) fn libtest(cargo: Command, stage: &str) -> Result<Tally> {
    run::say_command(&cargo);
    let mut libtest = Libtest::default();
    let status = run::stream(cargo, STAGE_LIMIT, |event| {
        if let Event::Line(line) = event
            && libtest.line(line)
        {
            eprintln!("{line}");
        }
    })?;
    Ok(libtest.finish(stage, status.success()))
}

#[expect(
    clippy::print_stdout,
    reason = "the sum is what this command is asked for"
)]
pub(crate) fn sum_up(mut tally: Tally, filter: Option<&str>) -> ExitCode {
    if tally.is_empty() {
        let filter = filter.unwrap_or_default();
        tally.fail(&format!("no test has `{filter}` in its name"));
    }
    run::say_title("sum");
    tally.notes().iter().for_each(|note| eprintln!("{note}"));
    println!("{tally}");
    match tally.has_failed() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}
