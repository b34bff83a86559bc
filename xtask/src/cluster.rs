//! `cargo xtask cluster`: a real Kubernetes control plane, built from source as one program and
//! started on loopback. The tests start the same program in the lab.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::{
    build, run,
    toolchain::{self, Need, go},
    tree::Tree,
};

/// Start or stop a real control plane: etcd, kube-apiserver and kube-controller-manager, with RBAC
///
/// It listens on 127.0.0.1 and needs no root. The first start builds it, which takes some minutes.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Start it, and say where its kubeconfig is
    Up {
        /// Port of the API server on 127.0.0.1
        #[arg(long, default_value_t = 6443)]
        port: u16,
        /// Print only {"kubeconfig":…,"server":…,"kubectl":…}, as JSON, on standard output
        #[arg(long)]
        json: bool,
    },
    /// Stop it, and remove all it wrote
    Down,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask cluster up
  target/cluster/nearhop-cluster kubectl --kubeconfig target/cluster/run/admin.kubeconfig get all
  cargo xtask cluster down";

/// What the program is made of.
const SOURCES: [&str; 3] = ["go.mod", "go.sum", "main.go"];

pub(crate) fn cluster(args: &Args) -> Result<ExitCode> {
    let tree = Tree::find()?;
    if matches!(args.task, Task::Up { .. }) {
        program(&tree)?;
    }
    build::objects(&tree)?;
    let mut cargo = build::cargo(&tree, "build");
    cargo.args(["--package", "lb-tests", "--bin", "cluster"]);
    run::live(cargo)?;

    let mut cluster = run::command(tree.target.join("debug/cluster"));
    cluster.env("NEARHOP_CLUSTER", path(&tree));
    cluster.arg("--dir").arg(tree.target.join("cluster/run"));
    match args.task {
        Task::Up { port, json } => cluster
            .args(["up", "--port", &port.to_string()])
            .args(json.then_some("--json")),
        Task::Down => cluster.arg("down"),
    };
    run::say_command(&cluster);
    Err(cluster.exec()).with_context(|| format!("starting {}", run::shown(&cluster)))
}

/// The control plane as one program, built unless it is there and its sources are as they were.
pub(crate) fn program(tree: &Tree) -> Result<PathBuf> {
    let folder = tree.target.join("cluster");
    let (program, stamp) = (path(tree), folder.join("sources.sha256"));
    let module = tree.root.join("tests/cluster");
    let sources = digest(&module)?;
    if program.is_file() && fs::read_to_string(&stamp).is_ok_and(|built| built == sources) {
        return Ok(program);
    }
    toolchain::ensure(&[Need::Go])?;
    fs::create_dir_all(&folder)?;
    compile(&module, &program)?;
    fs::write(&stamp, sources).with_context(|| stamp.display().to_string())?;
    Ok(program)
}

/// Where it lies once it is built.
pub(crate) fn path(tree: &Tree) -> PathBuf {
    tree.target.join("cluster/nearhop-cluster")
}

fn compile(module: &Path, program: &Path) -> Result<()> {
    let version = kubernetes_version(&fs::read_to_string(module.join("go.mod"))?)?;
    let flags = format!("-s -w -X k8s.io/component-base/version.gitVersion={version}");
    let mut go = go::command()?;
    // Static, so that it runs in an image of its own and needs no C compiler.
    go.env("CGO_ENABLED", "0").current_dir(module);
    // -v names each package, which is the progress.
    go.args(["build", "-v", "-buildvcs=false", "-ldflags", &flags, "-o"]);
    go.arg(program).arg(".");
    let what = format!("go builds Kubernetes {version}, some minutes the first time");
    run::quietly(&what, go).context("building the control plane of the tests")
}

/// What `kubectl version` shall say: the version that go.mod requires.
fn kubernetes_version(go_mod: &str) -> Result<String> {
    let mut words = go_mod.split_whitespace();
    words
        .find(|word| *word == "k8s.io/kubernetes")
        .and_then(|_| words.next())
        .map(str::to_owned)
        .context("tests/cluster/go.mod requires no k8s.io/kubernetes")
}

fn digest(module: &Path) -> Result<String> {
    let mut digest = Sha256::new();
    for name in SOURCES {
        let path = module.join(name);
        digest.update(fs::read(&path).with_context(|| path.display().to_string())?);
    }
    Ok(digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_is_required() {
        let go_mod = "require (\n\tk8s.io/kubectl v0.0.0\n\tk8s.io/kubernetes v1.36.3\n)\n";
        assert_eq!(kubernetes_version(go_mod).unwrap(), "v1.36.3");
        assert!(kubernetes_version("require k8s.io/kubectl v0.0.0").is_err());
    }
}
