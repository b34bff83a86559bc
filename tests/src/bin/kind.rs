//! Real nodes without a container engine, for a person and for the tests. Started by `cargo xtask kind`.

use std::{os::unix::process::CommandExt, path::PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};
use lb_tests::kind::{Kind, Node, first, start};

/// Starts and stops a Kubernetes cluster of real kubelets and containerds on this machine
#[derive(Parser)]
struct Args {
    /// Folder for everything the cluster writes
    #[arg(long)]
    dir: PathBuf,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start it
    Up {
        /// Image that every node shall have, as an archive
        #[arg(long)]
        image: Vec<PathBuf>,
    },
    /// Install nearhop in one that kind has started
    Install,
    /// Stop it, and remove all it made
    Down,
    /// Run kubectl as the administrator
    Kubectl {
        /// What kubectl is given
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Become a node
    #[command(hide = true)]
    Enter(Start),
    /// Settle in a node's cgroup
    #[command(hide = true)]
    Settle(Start),
    /// Be the first process of a node
    #[command(hide = true)]
    First(Start),
}

#[derive(clap::Args)]
struct Start {
    node: String,
    #[arg(long)]
    image: Vec<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let dir = std::path::absolute(&args.dir).context("find the folder")?;
    let kind = Kind::new(&dir);
    match args.task {
        Task::Up { image } => kind.up(&image),
        Task::Install => start::step("nearhop", || kind.install(&kind.cluster()?)),
        Task::Down => down(&kind),
        Task::Kubectl { args } => {
            let mut kubectl = kind.kubectl()?;
            Err(kubectl.args(args).exec()).context("start kubectl")
        }
        Task::Enter(start) => first::enter(&kind, Node::named(&start.node)?, &start.image),
        Task::Settle(start) => first::settle(&kind, Node::named(&start.node)?, &start.image),
        Task::First(start) => first::be_first(&kind, Node::named(&start.node)?, &start.image),
    }
}

fn down(kind: &Kind) -> anyhow::Result<()> {
    kind.down()?;
    eprintln!("the cluster is gone");
    Ok(())
}
