//! `cargo xtask build`: the kernel object by the workspace's own compiler, then the agent that
//! embeds it. Not a build script, because the object is for another target, and because a build
//! script must not install a linker.

pub(crate) mod next;
mod shipped;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use self::shipped::Shipped;
use crate::{
    btf, digest,
    processor::Processor,
    run,
    toolchain::{self, Need},
    tree::Tree,
};

pub(crate) const BPF_TARGET: &str = "bpfel-unknown-none";

/// Build the kernel object and the agent that embeds it
///
/// Writes target/lb-ebpf.o, target/lb-ebpf-NAME.o for each further program of lb-ebpf, and
/// target/release/lb-agent. For a target: target/TARGET-unknown-linux-musl/image/lb-agent, a static
/// program that runs on any Linux with that processor.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Build the kernel objects only
    #[arg(long)]
    object_only: bool,

    /// Build the agent as the image has it, for this processor
    #[arg(long, value_name = "PROCESSOR", conflicts_with = "object_only")]
    target: Option<Processor>,

    /// Build only the agent whose maps have another layout, for the tests of an upgrade
    #[arg(long, conflicts_with_all = ["object_only", "target"])]
    next_layout: bool,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask build                     what the tests run, for this machine
  cargo xtask build --target x86_64     what is shipped
  cargo xtask build --target aarch64    the same for arm64, by a cross compiler if need be";

pub(crate) fn build(args: &Args) -> Result<ExitCode> {
    let tree = Tree::find()?;
    if args.next_layout {
        next::build(&tree)?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.target {
        Some(processor) => {
            static_agent(&tree, processor)?;
        }
        None => {
            objects(&tree)?;
            if !args.object_only {
                agent(&tree)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds every program of lb-ebpf and puts the objects where the agent and the tests look for them.
pub(crate) fn objects(tree: &Tree) -> Result<()> {
    toolchain::ensure(&[Need::RustSrc, Need::BpfLinker])?;
    let mut cargo = bpf_cargo(tree, "build")?;
    cargo.args(["--profile", "bpf", "--bins"]);
    run::live(cargo).context("building the kernel object")?;

    let built = bpf_folder(tree, env::consts::ARCH);
    let built = built.join(BPF_TARGET).join("bpf");
    publish(tree, &built.join("lb-ebpf"), &tree.object())?;
    for bin in further_programs(tree)? {
        publish(tree, &built.join(&bin), &tree.object_of(&bin))?;
    }
    Ok(())
}

/// Builds the agent that is shipped for this machine: what tests run is what users get.
pub(crate) fn agent(tree: &Tree) -> Result<()> {
    let built = static_agent(tree, processor(None)?)?;
    let to = tree.agent();
    let copied = to.parent().map_or(Ok(()), fs::create_dir_all);
    let copied = copied.and_then(|()| fs::copy(&built, &to));
    copied.with_context(|| format!("copying {} to {}", tree.short(&built), tree.short(&to)))?;
    Ok(())
}

/// The processor that is asked for, or this machine's.
pub(crate) fn processor(asked: Option<Processor>) -> Result<Processor> {
    asked.or_else(Processor::own).with_context(|| {
        let own = env::consts::ARCH;
        format!("nearhop is not shipped for this machine's {own}: give a --target")
    })
}

/// Builds the agent that is shipped, and sees that it can be.
pub(crate) fn static_agent(tree: &Tree, processor: Processor) -> Result<PathBuf> {
    toolchain::ensure(&[
        Need::RustSrc,
        Need::BpfLinker,
        Need::Musl(processor),
        Need::Gcc(processor),
        Need::Emulator(processor),
    ])?;
    let object = object_for(tree, processor)?;
    let agent = static_program(tree, processor, &object, ["lb-agent", "lb-agent"])?;
    let shipped = Shipped {
        program: &agent,
        processor,
        object: &object,
        places: &[&tree.root, &tree.target, &toolchain::cargo_home()?],
    };
    shipped
        .prove()
        .context("what was built cannot be shipped")?;
    say_artifact(tree, &agent)?;
    Ok(agent)
}

/// Builds what runs in the pods of the tests, which shares the agent's libraries.
pub(crate) fn static_test_pod(tree: &Tree, processor: Processor) -> Result<PathBuf> {
    let object = object_for(tree, processor)?;
    static_program(tree, processor, &object, ["lb-tests", "kind_pod"])
}

fn static_program(
    tree: &Tree,
    processor: Processor,
    object: &Path,
    [package, name]: [&str; 2],
) -> Result<PathBuf> {
    let triple = processor.triple();
    let mut cargo = cargo(tree, "build");
    cargo
        .args(["--package", package, "--bin", name, "--profile", "image"])
        .args(["--target", &triple])
        .args(rust_flags(&triple, &remaps(tree)?))
        .env_remove("RUSTFLAGS")
        .env("NEARHOP_BPF_OBJECT", object);
    let by_cargo = triple.replace('-', "_");
    // For the assembly and C of the cryptography.
    cargo.env(format!("CC_{by_cargo}"), processor.gcc());
    let linker = format!("CARGO_TARGET_{}_LINKER", by_cargo.to_uppercase());
    cargo.env(linker, processor.gcc());
    run::live(cargo).with_context(|| format!("building {name} for {processor}"))?;
    Ok(tree.target.join(&triple).join("image").join(name))
}

/// The kernel object that is embedded for this processor.
fn object_for(tree: &Tree, processor: Processor) -> Result<PathBuf> {
    let arch = processor.name();
    let mut cargo = bpf_cargo_for(tree, "build", arch)?;
    cargo.args(["--profile", "bpf", "--bin", "lb-ebpf"]);
    run::live(cargo).with_context(|| format!("building the kernel object for {processor}"))?;

    let built = bpf_folder(tree, arch).join(BPF_TARGET).join("bpf/lb-ebpf");
    let object = match processor.is_own() {
        true => tree.object(),
        false => bpf_folder(tree, arch).join("lb-ebpf.o"),
    };
    publish(tree, &built, &object)?;
    Ok(object)
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

/// Cargo for lb-ebpf on the BPF target, for this machine's kernel.
pub(crate) fn bpf_cargo(tree: &Tree, subcommand: &str) -> Result<Command> {
    bpf_cargo_for(tree, subcommand, env::consts::ARCH)
}

/// `core` has no ready build for the BPF target, and building it is unstable, which RUSTC_BOOTSTRAP
/// permits on stable. Its own target directory keeps these flags from invalidating what is built for
/// the host, or for another processor.
fn bpf_cargo_for(tree: &Tree, subcommand: &str, arch: &str) -> Result<Command> {
    let mut flags = [
        "-Clinker=bpf-linker",
        "-Clink-arg=--btf",
        "-Cdebuginfo=2",
        "-Cpanic=abort",
    ]
    .map(String::from)
    .to_vec();
    flags.push(format!("--cfg=bpf_target_arch=\"{arch}\""));
    flags.extend(remaps(tree)?);
    let mut cargo = cargo(tree, subcommand);
    cargo
        .args(["--package", "lb-ebpf", "-Zbuild-std=core"])
        .args(["--target", BPF_TARGET])
        .args(rust_flags(BPF_TARGET, &flags))
        // It would win over the setting.
        .env_remove("RUSTFLAGS")
        .env("CARGO_TARGET_DIR", bpf_folder(tree, arch))
        .env("RUSTC_BOOTSTRAP", "1");
    Ok(cargo)
}

fn bpf_folder(tree: &Tree, arch: &str) -> PathBuf {
    tree.target.join(match arch {
        env::consts::ARCH => "bpf".into(),
        other => format!("bpf-{other}"),
    })
}

/// Flags for what is built for one target. A setting, because a variable would split a path with a
/// space in it.
fn rust_flags(triple: &str, flags: &[String]) -> [String; 2] {
    let flags = serde_json::json!(flags);
    [
        "--config".into(),
        format!("target.{triple}.rustflags={flags}"),
    ]
}

/// Where the source, the crates and rustc's library lie is nobody's business, and would make another
/// machine's build another program.
fn remaps(tree: &Tree) -> Result<Vec<String>> {
    let places = [
        (toolchain::library()?, "/rust"),
        (toolchain::cargo_home()?, "/cargo"),
        (tree.root.clone(), "/nearhop"),
        (tree.target.clone(), "/target"),
    ];
    Ok(places
        .iter()
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
        .collect())
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
    eprintln!(
        "{}: {} KiB, {}",
        tree.short(path),
        bytes.len().div_ceil(1024),
        digest::sha256(&bytes)
    );
    Ok(())
}
