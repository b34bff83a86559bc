//! Real nodes without a container engine: a kubelet and a containerd of its own in each of three zones,
//! on one kernel. A node is a network namespace, a cgroup that a cgroup namespace shows as the root, and
//! namespaces for mounts, processes and the host's name. Nothing of it outlives its first process but
//! what [`Kind::down`] removes by name.

pub mod answers;
pub mod cgroups;
pub mod config;
pub mod first;
pub mod install;
pub mod network;
pub mod start;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};

use crate::{
    Cluster,
    cluster::control_plane::{ControlPlane, kubeconfig_of, kubelet_user},
    kind::cgroups::Folders,
    netns::Netns,
    wait,
    worker::Place,
};

/// Everything is named after this: namespaces, cgroups, and nothing else on the machine is.
pub const NAME: &str = "nh-kind";

/// A node of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: &'static str,
    pub zone: &'static str,
    /// The last part of its addresses, and what tells its pods' addresses from others'.
    pub number: u8,
    /// What its kubelet keeps of the machine's processors for itself, in percent. With unequal nodes the
    /// controller finds cases where hints would be unfair.
    pub reserved: usize,
    /// Whether a BPF file system is mounted, as on most hosts. Where none is, nearhop mounts one.
    pub bpffs: bool,
}

pub const NODES: [Node; 3] = [
    Node {
        name: "node-a",
        zone: "zone-a",
        number: 1,
        reserved: 0,
        bpffs: false,
    },
    Node {
        name: "node-b",
        zone: "zone-b",
        number: 2,
        reserved: 50,
        bpffs: true,
    },
    Node {
        name: "node-c",
        zone: "zone-c",
        number: 3,
        reserved: 50,
        bpffs: true,
    },
];

impl Node {
    /// The node of this name.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let node = NODES.into_iter().find(|node| node.name == name);
        node.with_context(|| format!("there is no node {name}"))
    }

    const fn as_container(self, name: &'static str) -> Self {
        Self {
            name,
            reserved: 0,
            ..self
        }
    }

    /// Its network namespace.
    #[must_use]
    pub fn netns(&self) -> Netns {
        Netns {
            name: format!("{NAME}-{}", self.name),
        }
    }
}

/// The nodes that kind makes of deploy/kind.yaml, where there is a container engine.
const CONTAINERS: [Node; 3] = [
    NODES[0].as_container("nearhop-worker"),
    NODES[1].as_container("nearhop-worker2"),
    NODES[2].as_container("nearhop-worker3"),
];

/// The nodes and their control plane, known by the folder with all they write.
#[derive(Clone, Debug)]
pub struct Kind {
    dir: PathBuf,
}

impl Kind {
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The one that `cargo xtask kind` has started.
    pub fn of_environment() -> anyhow::Result<Self> {
        let dir = std::env::var_os("NEARHOP_KIND");
        let kind = dir.map(|dir| Self::new(Path::new(&dir)));
        kind.filter(Self::is_up)
            .context("no cluster is up: `cargo xtask kind test` starts one and runs this in it")
    }

    /// The administrator's kubeconfig. Its address answers in the namespaces only.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        kubeconfig_of(&self.control_dir(), "admin")
    }

    /// The cluster as its administrator.
    pub fn cluster(&self) -> anyhow::Result<Cluster> {
        Ok(Cluster::running(self.control_plane()?, network::api()))
    }

    /// `kubectl` as its administrator.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        self.control_plane()?.kubectl()
    }

    fn control_plane(&self) -> anyhow::Result<ControlPlane> {
        // An engine publishes the API server's port on the host.
        let place = match self.is_of_containers() {
            true => None,
            false => Some(self.control_place()?),
        };
        Ok(ControlPlane::running(&self.control_dir(), place))
    }

    /// Whether kind has made it, with a container engine.
    #[must_use]
    pub fn is_of_containers(&self) -> bool {
        self.dir.join("engine").exists()
    }

    /// One in each of the zones a, b and c.
    #[must_use]
    pub fn nodes(&self) -> [Node; 3] {
        match self.is_of_containers() {
            true => CONTAINERS,
            false => NODES,
        }
    }

    /// Where every node reaches the API server without any Service.
    fn api_server(&self) -> String {
        match self.is_of_containers() {
            true => "https://nearhop-control-plane:6443".to_owned(),
            false => format!("https://{}", network::api()),
        }
    }

    /// Whether somebody has started it and not taken it down.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.cgroups_file().exists() || self.is_of_containers()
    }

    /// A command as a process of the node: with its network, mounts, processes and cgroup.
    pub fn on_node(&self, node: Node, program: &str) -> anyhow::Result<Command> {
        if self.is_of_containers() {
            let mut command = Command::new("docker");
            command.args(["exec", node.name, program]);
            return Ok(command);
        }
        let pid = self.first_process(node)?;
        let mut command = self.node_place(node)?.command("nsenter".as_ref(), &[])?;
        command.args(["--target", &pid, "--all", "--", program]);
        Ok(command)
    }

    /// A command beside the nodes: a machine that the nodes can reach, and that is none of them.
    pub fn beside(&self, program: &Path) -> anyhow::Result<Command> {
        self.control_place()?.command(program, &[])
    }

    /// Where everything is that it writes: a folder for each node, with its logs.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends every process and removes every folder, namespace and cgroup; also those that a killed
    /// start left, and those of a start that was another's with the same name.
    pub fn down(&self) -> anyhow::Result<()> {
        let mut errors = Vec::new();
        match self.folders() {
            Ok(folders) => errors.extend(folders.remove()),
            Err(error) => errors.push(error),
        }
        for name in network::namespaces() {
            errors.extend(crate::netns::remove(&name).err());
        }
        errors.extend(remove_dir(&self.dir).err());
        match errors.is_empty() {
            true => Ok(()),
            false => bail!(
                "{}",
                errors
                    .iter()
                    .map(|error| format!("{error:#}"))
                    .collect::<Vec<_>>()
                    .join("\n")
            ),
        }
    }

    /// The recorded ones; without a record, those that this process would make.
    fn folders(&self) -> anyhow::Result<Folders> {
        let path = self.cgroups_file();
        match path.exists() {
            true => Folders::read(&path),
            false => Folders::planned(),
        }
    }

    fn control_place(&self) -> anyhow::Result<Place> {
        Ok(Place {
            netns: network::control(),
            cgroup: self.folders()?.unified()?.join("control"),
        })
    }

    /// Where a node's own processes run: below what the node sees as the root of cgroup v2.
    fn node_place(&self, node: Node) -> anyhow::Result<Place> {
        Ok(Place {
            netns: node.netns(),
            cgroup: self.folders()?.unified()?.join(node.name).join("host"),
        })
    }

    /// The process that is number 1 on the node.
    fn first_process(&self, node: Node) -> anyhow::Result<String> {
        let path = self.node_dir(node).join("pid");
        let parent = fs::read_to_string(&path);
        let parent = parent.with_context(|| format!("{}: is the cluster up?", path.display()))?;
        let children = format!("/proc/{parent}/task/{parent}/children");
        let children = fs::read_to_string(children).unwrap_or_default();
        let first = children.split_whitespace().next();
        first.map(str::to_owned).with_context(|| {
            format!(
                "node {} has ended; its logs are in {}",
                node.name,
                self.node_dir(node).display()
            )
        })
    }

    fn control_dir(&self) -> PathBuf {
        self.dir.join("control-plane")
    }

    fn node_dir(&self, node: Node) -> PathBuf {
        self.dir.join(node.name)
    }

    fn kubelet_kubeconfig(&self, node: Node) -> PathBuf {
        kubeconfig_of(&self.control_dir(), &kubelet_user(node.name))
    }

    /// Which cgroups were made: `down` may be called from another session than `up`.
    fn cgroups_file(&self) -> PathBuf {
        self.dir.join("cgroups.json")
    }
}

/// Starts a program in the background, with its output in a file.
fn background(mut command: Command, log: &Path) -> anyhow::Result<u32> {
    let file = File::create(log).with_context(|| format!("make {}", log.display()))?;
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    Ok(child.id())
}

/// Runs a program to its end; its output is shown only in the error.
fn run(mut command: Command) -> anyhow::Result<()> {
    let name = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("start {name}"))?;
    ensure!(
        output.status.success(),
        "{name} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let what = format!("{} to be gone", dir.display());
    wait::until(&what, wait::PATIENCE, || fs::remove_dir_all(dir))
}
