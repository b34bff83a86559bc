//! `cargo xtask image`: the image of the agent, made without a container engine: a static program is
//! all that is in it, so there is nothing to run while it is built.

pub(crate) mod archive;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::json;

use self::archive::{Archive, Image, Program};
use crate::{build, processor::Processor, run, tree::Tree};

/// What pods name, less the version.
const NAME: &str = "docker.io/nearhop/lb-agent";

/// Make the image of the agent, for the DaemonSet in deploy/, without a container engine
///
/// FROM scratch: one static program. The archive is an OCI image and a `docker save` in one. The same
/// commit and toolchain give the same bytes; SOURCE_DATE_EPOCH overrides the commit's time.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Processor of the nodes [default: this machine's]
    #[arg(long, value_name = "PROCESSOR")]
    target: Option<Processor>,

    /// Where to write it [default: target/images/lb-agent-VERSION-PROCESSOR.tar]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask image
  cargo xtask image --target aarch64 -o lb-agent-arm64.tar

Loading it on a node, or into kind:
  ctr -n k8s.io images import target/images/lb-agent-0.1.0-x86_64.tar
  docker load -i target/images/lb-agent-0.1.0-x86_64.tar
  kind load image-archive target/images/lb-agent-0.1.0-x86_64.tar";

pub(crate) fn image(args: &Args) -> Result<ExitCode> {
    let tree = Tree::find()?;
    let processor = build::processor(args.target)?;
    let output = args.output.clone();
    let output = output.unwrap_or_else(|| path(&tree, processor));
    make(&tree, processor, &output)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the agent, packs it, and says what came of it.
pub(crate) fn make(tree: &Tree, processor: Processor, output: &Path) -> Result<()> {
    let image = agent(tree, processor)?;
    let archive = write(&image, output)?;
    say(tree, &image, &archive, output);
    Ok(())
}

/// Where the agent's image lies unless somebody says otherwise.
pub(crate) fn path(tree: &Tree, processor: Processor) -> PathBuf {
    let version = env!("CARGO_PKG_VERSION");
    let name = format!("images/lb-agent-{version}-{processor}.tar");
    tree.target.join(name)
}

/// The agent's image, with a program that is built for it.
pub(crate) fn agent(tree: &Tree, processor: Processor) -> Result<Image> {
    let program = build::static_agent(tree, processor)?;
    let content = fs::read(&program).with_context(|| program.display().to_string())?;
    Ok(Image {
        name: NAME.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        processor,
        created: created(tree)?,
        programs: vec![Program {
            name: "lb-agent".into(),
            content,
        }],
        labels: json!({
            "org.opencontainers.image.title": "nearhop",
            "org.opencontainers.image.description": env!("CARGO_PKG_DESCRIPTION"),
            "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
        }),
    })
}

/// The image of the pods of the tests, which are clients, servers, and what holds a pod's namespaces.
pub(crate) fn test_pod(tree: &Tree, processor: Processor) -> Result<Image> {
    let program = build::static_test_pod(tree, processor)?;
    let content = fs::read(&program).with_context(|| program.display().to_string())?;
    Ok(Image {
        name: "docker.io/nearhop/test-pod".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        processor,
        created: created(tree)?,
        programs: vec![Program {
            name: "kind-pod".into(),
            content,
        }],
        labels: json!({}),
    })
}

/// Packs an image into a file.
pub(crate) fn write(image: &Image, file: &Path) -> Result<Archive> {
    let archive = image.pack()?;
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(file, &archive.bytes).with_context(|| format!("writing {}", file.display()))?;
    Ok(archive)
}

/// A time that the source has, because the clock's would make every image another one.
fn created(tree: &Tree) -> Result<Timestamp> {
    let seconds = match env::var("SOURCE_DATE_EPOCH") {
        Ok(epoch) => epoch,
        // What is no clone of the repository has no time.
        Err(_) => committed(tree).unwrap_or_else(|_| "0".into()),
    };
    let wrong = || format!("SOURCE_DATE_EPOCH is no number of seconds: {seconds:?}");
    let seconds = seconds.trim().parse().with_context(wrong)?;
    Timestamp::from_second(seconds).with_context(wrong)
}

fn committed(tree: &Tree) -> Result<String> {
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=%ct"])
        .current_dir(&tree.root);
    run::text(git)
}

fn say(tree: &Tree, image: &Image, archive: &Archive, output: &Path) {
    let mib = |bytes: usize| format!("{}.{} MiB", bytes >> 20, ((bytes >> 10) % 1024) * 10 / 1024);
    let lines = [
        ("image", image.reference()),
        ("platform", format!("linux/{}", image.processor.oci())),
        ("digest", archive.digest.clone()),
        (
            "size",
            format!(
                "{} to download, {} unpacked",
                mib(archive.compressed),
                mib(archive.unpacked)
            ),
        ),
        ("archive", tree.short(output).to_string()),
    ];
    for (name, value) in lines {
        eprintln!("{name:9} {value}");
    }
}
