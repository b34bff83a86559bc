//! Starting a cluster, step by step, with what a person wants to see of it.

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::{Kind, NODES, Node, background, cgroups::Folders, config::POD_IMAGE, network};
use crate::{
    Cluster,
    agent::text,
    cluster::control_plane::{self, ControlPlane, Nodes},
    wait,
};

/// The address of the Service of CoreDNS, as in most clusters the tenth.
pub const DNS: &str = "10.96.0.10";

const COREDNS: &str = include_str!("coredns.yaml");

/// Much longer than it takes: two processors may be everybody's.
const PATIENCE: Duration = Duration::from_secs(120);

impl Kind {
    /// Starts control plane and nodes, with these images on each node, then nearhop and CoreDNS, which
    /// becomes ready once Services are served.
    pub fn up(&self, images: &[PathBuf]) -> anyhow::Result<()> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "real nodes are made of namespaces, mounts and cgroups: run this as root"
        );
        ensure!(
            !self.is_up() && network::namespaces().is_empty(),
            "a cluster is up, or what is left of one: `cargo xtask kind down` removes it"
        );
        let cluster = step("control plane", || self.start_control_plane())?;
        step("nodes", || self.start_nodes(&cluster, images))?;
        step("nearhop", || {
            self.install(&cluster)
                .with_context(|| install_failed(&cluster))
        })?;
        step("CoreDNS", || self.apply_coredns(&cluster))
    }

    fn start_control_plane(&self) -> anyhow::Result<Cluster> {
        fs::create_dir_all(&self.dir).with_context(|| format!("make {}", self.dir.display()))?;
        let folders = Folders::planned()?;
        // Before there is anything: who is killed leaves a record of what is to be removed.
        folders.write(&self.cgroups_file())?;
        let names = NODES.map(|node| node.name);
        for name in names.into_iter().chain(["control"]) {
            folders.create(name)?;
        }
        network::create()?;
        let place = self.control_place()?;
        let nodes = Nodes::Kubelets(&names);
        ControlPlane::start(&self.control_dir(), network::api(), Some(place), nodes)?;
        self.cluster()
    }

    fn start_nodes(&self, cluster: &Cluster, images: &[PathBuf]) -> anyhow::Result<()> {
        for node in NODES {
            self.start_node(node, images)?;
        }
        wait::until("all nodes to be ready", PATIENCE, || {
            self.all_run()?;
            let nodes = cluster.get(&["nodes"]);
            let ready = nodes["items"].as_array().into_iter().flatten();
            let ready = ready.filter(|node| is_ready(node)).count();
            ensure!(ready == NODES.len(), "{ready} of {} are", NODES.len());
            Ok(())
        })
        .with_context(|| self.last_words())
    }

    fn start_node(&self, node: Node, images: &[PathBuf]) -> anyhow::Result<()> {
        let dir = self.node_dir(node);
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let own = std::env::current_exe().context("find the running program")?;
        let mut command = Command::new("setsid");
        command
            .arg(own)
            .arg("--dir")
            .arg(&self.dir)
            .args(["enter", node.name]);
        for image in images {
            command.arg("--image").arg(image);
        }
        let pid = background(command, &dir.join("node.log"))?;
        fs::write(dir.join("pid"), pid.to_string()).context("write down the node's process")
    }

    fn all_run(&self) -> anyhow::Result<()> {
        for node in NODES {
            let log = fs::read_to_string(self.node_dir(node).join("node.log")).unwrap_or_default();
            if log.contains("Error:") {
                bail!("node {} ended: {}", node.name, log.trim());
            }
        }
        Ok(())
    }

    fn apply_coredns(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let program = control_plane::program()?;
        let folder = program.parent().context("a program lies in a folder")?;
        let manifest = COREDNS
            .replace("$FOLDER", &folder.display().to_string())
            .replace("$IMAGE", POD_IMAGE)
            .replace("$DNS", DNS);
        let applied = cluster.try_kubectl(&["apply", "--filename=-"], &manifest);
        ensure!(applied.status.success(), "{}", text(&applied.stderr));
        let status = ["--namespace=kube-system", "rollout", "status"];
        let status = [&status[..], &["deployment/coredns", "--timeout=120s"]].concat();
        let ready = cluster.try_kubectl(&status, "");
        ensure!(ready.status.success(), "{}", text(&ready.stderr));
        Ok(())
    }

    /// The end of each node's logs, with their names.
    #[must_use]
    pub fn last_words(&self) -> String {
        let mut words = String::new();
        for node in NODES {
            for log in ["node.log", "containerd.log", "kubelet.log"] {
                let path = self.node_dir(node).join(log);
                let text = fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let last = lines[lines.len().saturating_sub(4)..].join("\n");
                let _ = writeln!(words, "---- {} ----\n{last}", path.display());
            }
        }
        words
    }
}

/// What the agents say, which is where it is written why they are not ready.
fn install_failed(cluster: &Cluster) -> String {
    let args = [
        "--namespace=kube-system",
        "logs",
        "--selector=app.kubernetes.io/name=nearhop",
        "--all-containers",
        "--prefix",
        "--tail=5",
    ];
    let logs = cluster.try_kubectl(&args, "");
    format!("{}{}", text(&logs.stdout), text(&logs.stderr))
}

/// Says what was done, and how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    let done = work();
    let mark = if done.is_ok() { '✓' } else { '✗' };
    eprintln!("{mark} {what} ({:.1} s)", start.elapsed().as_secs_f32());
    done.with_context(|| what.to_owned())
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
    ready.any(|condition| condition["status"] == "True")
}
