//! A real control plane as three processes, or four where there are kubelets: their keys, tokens,
//! kubeconfigs and flags. Apart from the lab, because `cargo xtask cluster up` starts the same on
//! loopback for a person, and `cargo xtask kind up` for real nodes.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::SocketAddr,
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::{wait, worker::Place};

/// The ranges that ClusterIPs are taken from.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// A start takes two seconds; a loaded machine may take ten times as long.
const PATIENCE: Duration = Duration::from_secs(60);

pub const ETCD: &str = "etcd";
pub const API_SERVER: &str = "kube-apiserver";
/// In the order of their start.
const PARTS: [&str; 4] = [
    ETCD,
    API_SERVER,
    "kube-controller-manager",
    "kube-scheduler",
];

/// Who stands behind the cluster's Nodes.
#[derive(Clone, Copy, Debug)]
pub enum Nodes<'a> {
    /// A test, which writes Nodes, and Pods with their status.
    Written,
    /// Kubelets with these names: Pods are scheduled, and all controllers run.
    Kubelets(&'a [&'a str]),
}

/// Who may talk to the API server, each with a group or none: the administrator, and parts with what
/// RBAC and the Node authorizer give them.
fn users(nodes: Nodes<'_>) -> Vec<(String, &'static str)> {
    let mut users = vec![
        ("admin".to_owned(), "system:masters"),
        ("system:kube-controller-manager".to_owned(), ""),
    ];
    if let Nodes::Kubelets(names) = nodes {
        users.push(("system:kube-scheduler".to_owned(), ""));
        let kubelets = names.iter().map(|name| kubelet_user(name));
        users.extend(kubelets.map(|user| (user, "system:nodes")));
    }
    users
}

/// The name that a kubelet must have for the Node authorizer.
#[must_use]
pub fn kubelet_user(node: &str) -> String {
    format!("system:node:{node}")
}

/// Those whose work needs neither a kubelet nor a scheduler. Without node-lifecycle-controller, which
/// would taint Nodes that have no kubelet.
const CONTROLLERS: &[&str] = &[
    "clusterrole-aggregation-controller",
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "root-ca-certificate-publisher-controller",
    "service-cidr-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
];

/// The one program that is every part: `NEARHOP_CLUSTER`, or what `cargo xtask test` leaves.
pub fn program() -> anyhow::Result<PathBuf> {
    let built = || {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let workspace = workspace.expect("tests/ lies in the workspace");
        workspace.join("target/cluster/nearhop-cluster")
    };
    let path = std::env::var_os("NEARHOP_CLUSTER").map_or_else(built, PathBuf::from);
    ensure!(
        path.is_file(),
        "no control plane at {}: `cargo xtask cluster up` and `cargo xtask test` build it; \
         NEARHOP_CLUSTER names another",
        path.display()
    );
    Ok(path)
}

/// A control plane and the folder with all it writes. Dropping it stops nothing.
#[derive(Debug)]
pub struct ControlPlane {
    dir: PathBuf,
    place: Option<Place>,
    /// Those that run, or ended by themselves.
    parts: Vec<Part>,
    killed: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    name: &'static str,
    flags: Vec<String>,
    child: Child,
}

impl Part {
    fn kill(&mut self) -> anyhow::Result<()> {
        let name = self.name;
        self.child.kill().with_context(|| format!("kill {name}"))?;
        self.child
            .wait()
            .with_context(|| format!("wait for {name}"))?;
        Ok(())
    }
}

impl ControlPlane {
    /// Starts all parts, with the API server at this address, and waits until Pods can be created.
    /// Without a place they run where the caller does.
    pub fn start(
        dir: &Path,
        at: SocketAddr,
        place: Option<Place>,
        nodes: Nodes<'_>,
    ) -> anyhow::Result<Self> {
        prepare(dir, at, nodes)?;
        let mut plane = Self::running(dir, place);
        plane.run(ETCD, &etcd_flags())?;
        plane.run(API_SERVER, &apiserver_flags(at))?;
        plane.wait_ready()?;
        plane.run("kube-controller-manager", &controller_flags(nodes))?;
        if matches!(nodes, Nodes::Kubelets(_)) {
            plane.run("kube-scheduler", &scheduler_flags())?;
        }
        // Pods are refused before their ServiceAccount exists.
        let account = ["get", "serviceaccount", "default"];
        plane.wait_for("the ServiceAccount default/default", &account)?;
        Ok(plane)
    }

    /// One that somebody else started with this folder.
    #[must_use]
    pub fn running(dir: &Path, place: Option<Place>) -> Self {
        Self {
            dir: dir.to_owned(),
            place,
            parts: Vec::new(),
            killed: Vec::new(),
        }
    }

    /// What an administrator needs.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        kubeconfig_of(&self.dir, "admin")
    }

    /// What ServiceAccounts of nearhop asked.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.dir.join(AUDIT_LOG)
    }

    /// `kubectl` as the administrator.
    pub fn kubectl(&self) -> anyhow::Result<Command> {
        let mut kubectl = self.command()?;
        kubectl
            .arg("kubectl")
            .env("KUBECONFIG", self.kubeconfig())
            .env("KUBECACHEDIR", self.dir.join("kubectl"));
        Ok(kubectl)
    }

    /// Kills all parts; what they wrote stays.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        for part in &mut self.parts {
            part.kill()?;
        }
        Ok(())
    }

    /// SIGKILL for one part; what it wrote stays.
    pub fn kill_part(&mut self, name: &str) -> anyhow::Result<()> {
        let found = self.parts.iter().position(|part| part.name == name);
        let found = found.with_context(|| format!("{name} does not run"))?;
        let mut part = self.parts.swap_remove(found);
        part.kill()?;
        self.killed.push(part);
        Ok(())
    }

    /// Starts a part again that was killed, as it was.
    pub fn start_again(&mut self, name: &str) -> anyhow::Result<()> {
        let found = self.killed.iter().position(|part| part.name == name);
        let found = found.with_context(|| format!("{name} was not killed"))?;
        let Part { name, flags, .. } = self.killed.swap_remove(found);
        self.run(name, &flags)
    }

    /// Waits until the API server can read and write what etcd holds.
    pub fn wait_ready(&mut self) -> anyhow::Result<()> {
        self.wait_for("the API server", &["get", "--raw", "/readyz"])
    }

    /// Removes all that etcd holds, as the loss of its disk does. It must not run.
    pub fn lose_etcd_data(&self) -> anyhow::Result<()> {
        let data = self.dir.join(ETCD_DATA);
        fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))
    }

    /// The end of what each part logged, which is where it says why.
    #[must_use]
    pub fn last_words(&self) -> String {
        let words = self
            .parts
            .iter()
            .map(|part| last_words(&self.dir, part.name));
        words.collect()
    }

    fn run(&mut self, name: &'static str, flags: &[String]) -> anyhow::Result<()> {
        let path = self.dir.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("open {}", path.display()))?;
        let child = self
            .command()?
            .arg(name)
            .args(flags)
            // Flags name files of this folder; a socket's whole path may be too long for the kernel.
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        fs::write(pid_file(&self.dir, name), child.id().to_string())?;
        self.parts.push(Part {
            name,
            flags: flags.to_vec(),
            child,
        });
        Ok(())
    }

    /// Asks until it is answered.
    fn wait_for(&mut self, what: &str, args: &[&str]) -> anyhow::Result<()> {
        let ended = wait::until(what, PATIENCE, || {
            if let Some(part) = self.ended()? {
                return Ok(Some(part));
            }
            let output = self.kubectl()?.args(args).output()?;
            ensure!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            Ok::<_, anyhow::Error>(None)
        });
        match ended.with_context(|| self.last_words())? {
            Some(part) => bail!(
                "{part} ended at its start:\n{}",
                last_words(&self.dir, part)
            ),
            None => Ok(()),
        }
    }

    fn command(&self) -> anyhow::Result<Command> {
        if let Some(place) = &self.place {
            return place.command(&program()?, &[]);
        }
        let mut command = Command::new(program()?);
        // Ctrl-C is for the program that starts it.
        command.process_group(0);
        Ok(command)
    }

    fn ended(&mut self) -> anyhow::Result<Option<&'static str>> {
        for part in &mut self.parts {
            if part.child.try_wait()?.is_some() {
                return Ok(Some(part.name));
            }
        }
        Ok(None)
    }
}

/// Writes what the parts read at their start.
fn prepare(dir: &Path, at: SocketAddr, nodes: Nodes<'_>) -> anyhow::Result<()> {
    let mut private = fs::DirBuilder::new();
    let made = private.recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("make {}", dir.display()))?;
    let mut tokens = String::new();
    for (user, group) in users(nodes) {
        let token = random_token()?;
        tokens.push_str(&format!("{token},{user},{user},{group}\n"));
        write_private(&kubeconfig_of(dir, &user), &kubeconfig(dir, at, &token))?;
    }
    write_private(&dir.join("tokens.csv"), &tokens)?;
    write_private(&dir.join("audit.yaml"), &audit_policy())?;
    write_private(&dir.join("service-account.key"), &new_key()?)
}

const AUDIT_LOG: &str = "audit.log";

/// Audited is only who is to have no more rights than it uses.
fn audit_policy() -> String {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "Metadata", "users": ["system:serviceaccount:kube-system:nearhop"]},
            {"level": "None"},
        ],
    })
    .to_string()
}

/// Whether every part runs that was started with this folder.
#[must_use]
pub fn is_up(dir: &Path) -> bool {
    // The scheduler is not in every cluster.
    PARTS[..3].iter().all(|part| running(dir, part).is_some())
}

/// Ends the parts that were started with this folder, by whomever, and removes it.
pub fn stop(dir: &Path) -> anyhow::Result<()> {
    for part in PARTS.iter().rev() {
        if let Some(pid) = running(dir, part) {
            end(dir, part, pid)?;
        }
    }
    fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))
}

/// SIGTERM, and SIGKILL for a part that has not obeyed in time.
fn end(dir: &Path, part: &str, pid: Pid) -> anyhow::Result<()> {
    let gone = || running(dir, part).map_or(Ok(()), |_| Err("it runs"));
    for signal in [Signal::TERM, Signal::KILL] {
        kill_process(pid, signal).with_context(|| format!("end {part}"))?;
        if wait::until(part, wait::PATIENCE, gone).is_ok() {
            return Ok(());
        }
    }
    bail!("{part}, process {}, outlives SIGKILL", pid.as_raw_nonzero())
}

/// The process of a part, unless it has ended; its number may be another program's by now.
fn running(dir: &Path, part: &str) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(pid_file(dir, part)).ok()?.parse().ok()?;
    // Empty for one that has ended and was not waited for.
    let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = command_line.split(|byte| *byte == 0).skip(1);
    (words.next()? == part.as_bytes()).then(|| Pid::from_raw(pid))?
}

fn pid_file(dir: &Path, part: &str) -> PathBuf {
    dir.join(format!("{part}.pid"))
}

fn last_words(dir: &Path, part: &str) -> String {
    let log = fs::read_to_string(dir.join(format!("{part}.log"))).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(15)..];
    format!("---- {part} ----\n{}\n", last.join("\n"))
}

/// The kubeconfig that a start in this folder writes for one of its users.
#[must_use]
pub fn kubeconfig_of(dir: &Path, user: &str) -> PathBuf {
    let name = user.trim_start_matches("system:").replace(':', "-");
    dir.join(format!("{name}.kubeconfig"))
}

/// A kubeconfig is YAML, of which JSON is a part.
fn kubeconfig(dir: &Path, at: SocketAddr, token: &str) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "nearhop", "cluster": {
            "server": format!("https://{at}"),
            // The API server makes itself a certificate, with its authority behind it.
            "certificate-authority": dir.join("apiserver.crt"),
        }}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "nearhop", "context": {"cluster": "nearhop", "user": "user"}}],
        "current-context": "nearhop",
    });
    format!("{config:#}\n")
}

fn random_token() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 16];
    let mut random = File::open("/dev/urandom").context("open /dev/urandom")?;
    random.read_exact(&mut bytes).context("read /dev/urandom")?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// A private key in PEM, for signing ServiceAccount tokens.
fn new_key() -> anyhow::Result<String> {
    let output = Command::new(program()?).arg("new-key").output();
    let output = output.context("run nearhop-cluster new-key")?;
    ensure!(
        output.status.success(),
        "nearhop-cluster new-key: {}",
        output.status
    );
    String::from_utf8(output.stdout).context("a key in PEM")
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let written = options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}", path.display()))
}

/// Unix sockets only: a second cluster on this host is not in the way. These are file names; etcd
/// wants the form of an address.
const ETCD_AT: &str = "unix://etcd.sock:0";
const ETCD_PEER: &str = "unix://peer.sock:0";
const ETCD_DATA: &str = "etcd";

fn etcd_flags() -> Vec<String> {
    flags(&[
        ("name", "nearhop"),
        ("data-dir", ETCD_DATA),
        ("listen-client-urls", ETCD_AT),
        ("advertise-client-urls", ETCD_AT),
        ("listen-peer-urls", ETCD_PEER),
        ("initial-advertise-peer-urls", ETCD_PEER),
        ("initial-cluster", &format!("nearhop={ETCD_PEER}")),
        // The data dies with the cluster.
        ("unsafe-no-fsync", "true"),
        ("log-level", "warn"),
    ])
}

fn apiserver_flags(at: SocketAddr) -> Vec<String> {
    let (ip, port) = (at.ip().to_string(), at.port().to_string());
    let mut flags = flags(&[
        ("etcd-servers", ETCD_AT),
        ("bind-address", &ip),
        ("advertise-address", &ip),
        ("secure-port", &port),
        ("cert-dir", "."),
        ("token-auth-file", "tokens.csv"),
        ("authorization-mode", "Node,RBAC"),
        ("enable-admission-plugins", "NodeRestriction"),
        ("service-account-issuer", "https://kubernetes.default.svc"),
        ("service-account-key-file", "service-account.key"),
        ("service-account-signing-key-file", "service-account.key"),
        ("service-cluster-ip-range", &SERVICE_CIDRS.join(",")),
        ("allow-privileged", "true"),
        // Names of nodes are in no DNS.
        ("kubelet-preferred-address-types", "InternalIP"),
        ("audit-policy-file", "audit.yaml"),
        ("audit-log-path", AUDIT_LOG),
    ]);
    if at.ip().is_loopback() {
        // A loopback address is refused as the endpoint of default/kubernetes.
        flags.push("--endpoint-reconciler-type=none".into());
    }
    flags
}

fn controller_flags(nodes: Nodes<'_>) -> Vec<String> {
    let controllers = match nodes {
        Nodes::Written => CONTROLLERS.join(","),
        Nodes::Kubelets(_) => "*".to_owned(),
    };
    flags(&[
        ("kubeconfig", "kube-controller-manager.kubeconfig"),
        ("controllers", &controllers),
        // Each controller has only what its own role gives it, as in a real cluster.
        ("use-service-account-credentials", "true"),
        ("service-account-private-key-file", "service-account.key"),
        ("root-ca-file", "apiserver.crt"),
        ("leader-elect", "false"),
        // It serves nobody, so it needs no port.
        ("secure-port", "0"),
    ])
}

fn scheduler_flags() -> Vec<String> {
    flags(&[
        ("kubeconfig", "kube-scheduler.kubeconfig"),
        ("leader-elect", "false"),
        // It serves nobody, so it needs no port.
        ("secure-port", "0"),
    ])
}

fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    let flags = pairs
        .iter()
        .map(|(name, value)| format!("--{name}={value}"));
    flags.collect()
}
