//! `cargo xtask check`: what can be said of the code without running it. All steps run; each that
//! fails shows its output and the one command that repeats it.

use std::{
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Result;

use crate::{
    build, run,
    tally::Tally,
    tidy,
    toolchain::{self, Need},
    tree::Tree,
};

/// Check format, lints (host and BPF target), documentation, dependencies and the tree's own rules
///
/// The last line is `N passed, N failed, N skipped`, on standard output.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Repair what can be repaired by itself first
    #[arg(long)]
    fix: bool,
}

#[expect(
    clippy::print_stdout,
    reason = "the sum is what this command is asked for"
)]
pub(crate) fn check(args: &Args) -> Result<ExitCode> {
    toolchain::ensure(&[Need::Rustfmt, Need::Clippy, Need::CargoDeny])?;
    let tree = Tree::find()?;
    if args.fix {
        fix(&tree)?;
    }

    let mut tally = Tally::default();
    // First, because the agent embeds it.
    count(
        &mut tally,
        "object",
        timed("object", || build::objects(&tree)),
    );
    for (name, command) in steps(&tree)? {
        count(&mut tally, name, run::quietly(name, command));
    }
    count(&mut tally, "tidy", timed("tidy", || tidy::check(&tree)));
    tally.skip("advisories: their database is fetched from a git host; run `cargo deny check`");

    run::say_title("sum");
    tally.notes().iter().for_each(|note| eprintln!("{note}"));
    println!("{tally}");
    Ok(match tally.has_failed() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn steps(tree: &Tree) -> Result<Vec<(&'static str, Command)>> {
    let mut fmt = build::cargo(tree, "fmt");
    fmt.args(["--all", "--check"]);

    let mut clippy = build::cargo(tree, "clippy");
    clippy.args(["--workspace", "--all-targets", "--", "-Dwarnings"]);

    let mut clippy_bpf = build::bpf_cargo(tree, "clippy")?;
    clippy_bpf.args(["--profile", "bpf", "--bins", "--", "-Dwarnings"]);

    let mut doc = build::cargo(tree, "doc");
    doc.args(["--workspace", "--no-deps", "--document-private-items"]);
    doc.env("RUSTDOCFLAGS", "-Dwarnings");

    let mut deny = build::cargo(tree, "deny");
    deny.args([
        "check",
        "--hide-inclusion-graph",
        "licenses",
        "bans",
        "sources",
    ]);

    Ok(vec![
        ("fmt", fmt),
        ("clippy", clippy),
        ("clippy for BPF", clippy_bpf),
        ("doc", doc),
        ("deny", deny),
    ])
}

fn timed(step: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let result = work();
    run::say_done(step, result.is_ok(), start.elapsed());
    result
}

fn count(tally: &mut Tally, step: &str, result: Result<()>) {
    match result {
        Ok(()) => tally.pass(),
        Err(error) => {
            run::say_error(&error);
            // What it found is above; this is its line in the sum.
            let text = format!("{error:#}");
            tally.fail(&format!(
                "{step}: {}",
                text.lines().next().unwrap_or_default()
            ));
        }
    }
}

fn fix(tree: &Tree) -> Result<()> {
    let mut clippy = build::cargo(tree, "clippy");
    clippy.args([
        "--workspace",
        "--all-targets",
        "--fix",
        "--allow-dirty",
        "--allow-staged",
    ]);
    run::live(clippy)?;
    let mut fmt = build::cargo(tree, "fmt");
    fmt.arg("--all");
    run::live(fmt)
}
