//! A control plane on loopback, for a person to try things on. Started by `cargo xtask cluster`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use lb_tests::cluster::control_plane::{self, ControlPlane, Nodes};
use serde_json::json;

/// Starts and stops a real control plane: etcd, kube-apiserver and kube-controller-manager
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
    /// Start it, and wait until it is ready
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

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.task {
        Task::Up { port, json } => up(&args.dir, port, json),
        Task::Down => down(&args.dir),
    }
}

fn up(dir: &Path, port: u16, json: bool) -> anyhow::Result<()> {
    ensure!(
        !control_plane::is_up(dir),
        "a cluster is up already, with the kubeconfig {}: use it, or end it with \
         `cargo xtask cluster down`",
        control_plane::kubeconfig_of(dir, "admin").display()
    );
    clear(dir)?;
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    eprintln!("starting etcd, kube-apiserver and kube-controller-manager");
    match ControlPlane::start(dir, at, None, Nodes::Written) {
        Ok(plane) => print(&plane, at, json),
        Err(error) => {
            clear(dir)?;
            Err(error).with_context(|| {
                format!("the cluster did not start at {at}; --port names another port")
            })
        }
    }
}

fn down(dir: &Path) -> anyhow::Result<()> {
    if !dir.exists() {
        eprintln!("no cluster is up");
        return Ok(());
    }
    control_plane::stop(dir)?;
    eprintln!("the cluster is gone");
    Ok(())
}

/// Removes what a start that failed, or a machine that was switched off, left behind.
fn clear(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        control_plane::stop(dir)?;
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what this command is asked for")]
fn print(plane: &ControlPlane, at: SocketAddr, json: bool) -> anyhow::Result<()> {
    let (kubeconfig, program) = (plane.kubeconfig(), control_plane::program()?);
    if json {
        println!(
            "{}",
            json!({
                "kubeconfig": kubeconfig,
                "server": format!("https://{at}"),
                "kubectl": [program, PathBuf::from("kubectl")],
            })
        );
        return Ok(());
    }
    let program = program.display();
    println!("the cluster is up at https://{at}, with RBAC");
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!("  {program} kubectl get services --all-namespaces");
    println!("  {program} kubectl auth can-i --list");
    println!("  cargo xtask cluster down");
    Ok(())
}
