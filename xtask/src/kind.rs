//! `cargo xtask kind`: a Kubernetes cluster of three zones without kube-proxy, and nearhop in its place,
//! installed as users install it. With kind where there is a container engine, and from real kubelets and
//! containerds in namespaces where there is none.

mod engine;

use std::{
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::{
    build, cluster, image, run,
    tally::Tally,
    test,
    toolchain::{self, Need},
    tree::Tree,
};

/// Start, test or stop a Kubernetes cluster of three zones, with nearhop in the place of kube-proxy
///
/// Needs root. The first start builds Kubernetes, which takes some minutes; later ones take seconds.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,

    /// What the nodes are made of [default: containers where an engine and kind are found]
    #[arg(long, global = true)]
    with: Option<Form>,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Start it, install nearhop from deploy/, and wait until every node is served
    Up,
    /// Run the users' walk-throughs in it; one that is not up is started, and stopped afterwards
    ///
    /// The last line is `N passed, N failed, N skipped`, on standard output.
    Test {
        /// Run only tests whose name contains this
        filter: Option<String>,
    },
    /// Stop it, and remove all it made, also what a start left that was killed
    Down,
    /// Run kubectl as its administrator
    Kubectl {
        /// What kubectl is given
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
}

/// What a node is.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// A container that kind makes, with docker
    Engine,
    /// A few namespaces with a kubelet and a containerd
    Namespaces,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask kind up
  cargo xtask kind kubectl get pods --all-namespaces -o wide
  cargo xtask kind test
  cargo xtask kind test rolling        the tests with `rolling` in their name
  cargo xtask kind --with namespaces up
  cargo xtask kind down";

/// The module of the tests that need this cluster.
pub(crate) const TESTS: &str = "on_real_nodes";

pub(crate) fn kind(args: &Args) -> Result<ExitCode> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "nodes are made of namespaces, mounts and cgroups, which needs root"
    );
    let tree = Tree::find()?;
    let form = args.with.unwrap_or_else(Form::found);
    match &args.task {
        Task::Up => up(&tree, form)?,
        Task::Down => down(&tree, form)?,
        Task::Kubectl { args } => return kubectl(&tree, form, args),
        Task::Test { filter } => {
            let filter = filter.as_deref();
            return Ok(test::sum_up(test_one(&tree, form, filter)?, filter));
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Form {
    fn found() -> Self {
        match engine::missing() {
            None => Self::Engine,
            Some(_) => Self::Namespaces,
        }
    }
}

/// The stage of `cargo xtask test`: from namespaces always, and with an engine where there is one.
pub(crate) fn stage(tree: &Tree, filter: Option<&str>) -> Result<Tally> {
    let mut tally = test_one(tree, Form::Namespaces, filter)?;
    match engine::missing() {
        None => tally.add(test_one(tree, Form::Engine, filter)?),
        Some(why) => tally.skip(&format!("kind with a container engine: {why}")),
    }
    Ok(tally)
}

/// Runs the tests in the cluster that is up, or in one of their own.
fn test_one(tree: &Tree, form: Form, filter: Option<&str>) -> Result<Tally> {
    let own = !is_up(tree, form);
    if own {
        up(tree, form)?;
    }
    let tally = tests(tree, form, filter);
    if own {
        down(tree, form)?;
    }
    tally
}

fn tests(tree: &Tree, form: Form, filter: Option<&str>) -> Result<Tally> {
    let mut cargo = build::cargo(tree, "test");
    cargo
        .args(["--package", "lb-tests", "--test", "kind", TESTS])
        .args(["--", "--show-output", "--test-threads=4"])
        .args(filter)
        .env("NEARHOP_CLUSTER", cluster::path(tree))
        .env("NEARHOP_KIND", dir(tree, form));
    test::libtest(cargo, "kind")
}

fn up(tree: &Tree, form: Form) -> Result<()> {
    // It is kubectl, too.
    cluster::program(tree)?;
    let images = images(tree)?;
    let mut kind = program(tree, form)?;
    match form {
        Form::Engine => engine::up(tree, &images, kind)?,
        Form::Namespaces => {
            toolchain::ensure(&[
                Need::Iproute2,
                Need::Bpftool,
                Need::Containerd,
                Need::Runc,
                Need::CniPlugins,
            ])?;
            kind.arg("up");
            for image in images {
                kind.arg("--image").arg(image);
            }
            run::live(kind)?;
        }
    }
    eprintln!("  cargo xtask kind kubectl get pods --all-namespaces -o wide");
    eprintln!("  cargo xtask kind test");
    eprintln!("  cargo xtask kind down");
    Ok(())
}

fn down(tree: &Tree, form: Form) -> Result<()> {
    match form {
        Form::Engine => engine::down(tree),
        Form::Namespaces => {
            let mut kind = program(tree, form)?;
            kind.arg("down");
            run::live(kind)
        }
    }
}

/// Becomes kubectl, which may want the terminal.
fn kubectl(tree: &Tree, form: Form, args: &[String]) -> Result<ExitCode> {
    let mut kubectl = program(tree, form)?;
    kubectl.arg("kubectl").args(args);
    Err(kubectl.exec()).with_context(|| format!("starting {}", run::shown(&kubectl)))
}

/// The program that makes the nodes, with what it starts beside it.
fn program(tree: &Tree, form: Form) -> Result<Command> {
    build::objects(tree)?;
    let mut cargo = build::cargo(tree, "build");
    cargo.args(["--package", "lb-tests"]);
    for bin in ["kind", "lab_worker", "oci_runtime", "kind_pod"] {
        cargo.args(["--bin", bin]);
    }
    run::live(cargo)?;
    let mut kind = run::command(tree.target.join("debug/kind"));
    kind.env("NEARHOP_CLUSTER", cluster::path(tree));
    kind.arg("--dir").arg(dir(tree, form));
    Ok(kind)
}

/// Where a cluster has all it writes.
fn dir(tree: &Tree, form: Form) -> PathBuf {
    tree.target.join(match form {
        Form::Engine => "kind/engine",
        Form::Namespaces => "kind/run",
    })
}

fn is_up(tree: &Tree, form: Form) -> bool {
    dir(tree, form).exists()
}

/// nearhop's own image, and the one of the pods that the tests start.
fn images(tree: &Tree) -> Result<Vec<PathBuf>> {
    let processor = build::processor(None)?;
    let agent = image::path(tree, processor);
    image::make(tree, processor, &agent)?;
    let pod = tree.target.join("images/test-pod.tar");
    image::write(&image::test_pod(tree, processor)?, &pod)?;
    Ok(vec![agent, pod])
}
