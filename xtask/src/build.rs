//! `cargo xtask build`: the kernel object by the workspace's own compiler, then the agent that
//! embeds it. Not a build script, because the object is for another target, and because a build
//! script must not install a linker.

use std::{
    env, fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::{
    btf, run,
    toolchain::{self, Need},
    tree::Tree,
};

pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// Build the kernel object and the agent that embeds it
///
/// Writes target/lb-ebpf.o, target/lb-ebpf-NAME.o for each further program of lb-ebpf, and
/// target/release/lb-agent.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build the kernel objects only
    #[arg(long)]
    object_only: bool,
}

pub(crate) fn build(args: &Args) -> Result<ExitCode> {
    let tree = Tree::find()?;
    objects(&tree)?;
    if !args.object_only {
        agent(&tree)?;
        say_artifact(&tree, &tree.agent())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds every program of lb-ebpf and puts the objects where the agent and the tests look for them.
pub(crate) fn objects(tree: &Tree) -> Result<()> {
    toolchain::ensure(&[Need::RustSrc, Need::BpfLinker])?;
    let mut cargo = bpf_cargo(tree, "build");
    cargo.args(["--profile", "bpf", "--bins"]);
    run::live(cargo).context("building the kernel object")?;

    let built = tree.target.join("bpf").join(BPF_TARGET).join("bpf");
    publish(tree, &built.join("lb-ebpf"), &tree.object())?;
    for bin in further_programs(tree)? {
        publish(tree, &built.join(&bin), &tree.object_of(&bin))?;
    }
    Ok(())
}

/// Builds the agent; it finds the object at target/lb-ebpf.o.
pub(crate) fn agent(tree: &Tree) -> Result<()> {
    let mut cargo = cargo(tree, "build");
    cargo.args(["--release", "--package", "lb-agent"]);
    run::live(cargo).context("building the agent")
}

/// Cargo for the host, in the repository's root.
pub(crate) fn cargo(tree: &Tree, subcommand: &str) -> Command {
    let mut cargo = run::command("cargo");
    cargo.arg(subcommand).current_dir(&tree.root);
    // Cargo rebuilds the agent whenever this changes, so it is the same for every command.
    cargo.env("NEARHOP_BPF_OBJECT", tree.object());
    if env::var_os("CARGO_TARGET_DIR").is_some() {
        cargo.env("CARGO_TARGET_DIR", &tree.target);
    }
    if console::colors_enabled_stderr() {
        cargo.env("CARGO_TERM_COLOR", "always");
    }
    cargo
}

/// Cargo for lb-ebpf on the BPF target. `core` has no ready build for that target, and building it
/// is unstable, which RUSTC_BOOTSTRAP permits on stable. Its own target directory keeps these flags
/// from invalidating what is built for the host.
pub(crate) fn bpf_cargo(tree: &Tree, subcommand: &str) -> Command {
    let arch = env::consts::ARCH;
    let flags = format!(
        "-Clinker=bpf-linker -Clink-arg=--btf -Cdebuginfo=2 -Cpanic=abort \
         --cfg=bpf_target_arch=\"{arch}\""
    );
    let mut cargo = cargo(tree, subcommand);
    cargo
        .args([
            "--package",
            "lb-ebpf",
            "-Zbuild-std=core",
            "--target",
            BPF_TARGET,
        ])
        .env("CARGO_TARGET_DIR", tree.target.join("bpf"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", flags);
    cargo
}

/// The programs beside the product, such as the walker of the stress test: lb-ebpf/src/bin/*.rs.
pub(crate) fn further_programs(tree: &Tree) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(tree.root.join("lb-ebpf/src/bin")) else {
        return Ok(Vec::new());
    };
    let files = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    let mut bins: Vec<String> = files
        .iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned()))
        .collect();
    bins.sort();
    Ok(bins)
}

/// Writes an object to its published place, unless it is there already: a new time stamp would make
/// cargo rebuild the agent.
fn publish(tree: &Tree, from: &Path, to: &Path) -> Result<()> {
    let mut object = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    btf::declare_text(&mut object).with_context(|| format!("BTF of {}", from.display()))?;
    if fs::read(to).ok().as_ref() != Some(&object) {
        fs::write(to, &object).with_context(|| format!("writing {}", to.display()))?;
    }
    say_artifact(tree, to)
}

fn say_artifact(tree: &Tree, path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let digest = Sha256::digest(&bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    eprintln!(
        "{}: {} KiB, sha256 {hex}",
        tree.short(path),
        bytes.len().div_ceil(1024)
    );
    Ok(())
}
