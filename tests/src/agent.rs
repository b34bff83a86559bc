//! A real agent on a simulated node, known only by its command line: the lab tests what is shipped.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    lab::{Node, Pod},
    must,
    objects::Objects,
    wait,
    worker::{Place, lock},
};

/// The agent under test: `NEARHOP_AGENT`, or what `cargo xtask build` leaves.
pub fn program() -> anyhow::Result<PathBuf> {
    let built = || {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let workspace = workspace.expect("tests/ lies in the workspace");
        workspace.join("target/release/lb-agent")
    };
    let path = std::env::var_os("NEARHOP_AGENT").map_or_else(built, PathBuf::from);
    ensure!(
        path.is_file(),
        "no agent at {}: build it with `cargo xtask build`, or name it in NEARHOP_AGENT",
        path.display()
    );
    Ok(path)
}

/// Versions of the agent whose maps have different layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The agent under test.
    This,
    /// The same with a word more in a cell: `NEARHOP_NEXT_AGENT`, or what
    /// `cargo xtask build --next-layout` leaves.
    Next,
}

impl Version {
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::This => Self::Next,
            Self::Next => Self::This,
        }
    }

    fn program(self) -> anyhow::Result<PathBuf> {
        match self {
            Self::This => program(),
            Self::Next => next_program(),
        }
    }
}

fn next_program() -> anyhow::Result<PathBuf> {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/next-layout/lb-agent");
    let path = std::env::var_os("NEARHOP_NEXT_AGENT").map_or_else(built, PathBuf::from);
    ensure!(
        path.is_file(),
        "no agent of another layout at {}: build it with `cargo xtask build --next-layout`, or name it \
         in NEARHOP_NEXT_AGENT",
        path.display()
    );
    Ok(path)
}

impl Node {
    /// Starts `lb-agent run` and waits until it has programmed these objects.
    #[must_use]
    pub fn agent(&self, objects: &Objects) -> Arc<Agent> {
        self.agent_with(objects, &[])
    }

    /// The same with more flags.
    #[must_use]
    pub fn agent_with(&self, objects: &Objects, flags: &[&str]) -> Arc<Agent> {
        let agent = self.start_agent(self.run_command(objects, flags, &[]));
        must(agent.wait_ready());
        agent
    }

    /// Starts an agent that is not expected to become ready.
    #[must_use]
    pub fn start_agent(&self, command: Command) -> Arc<Agent> {
        self.start(Version::This, command)
    }

    /// Starts an agent of this version, and does not wait for it.
    #[must_use]
    pub fn start_agent_of(&self, version: Version, objects: &Objects) -> Arc<Agent> {
        self.start(
            version,
            self.run(&must(version.program()), objects, &[], &[]),
        )
    }

    fn start(&self, version: Version, command: Command) -> Arc<Agent> {
        let agent = Arc::new(must(Agent::start(self, version, command)));
        self.lab().track_agent(&agent);
        agent
    }

    /// `lb-agent run` for this node, with these flags and without these capabilities.
    #[must_use]
    pub fn run_command(&self, objects: &Objects, flags: &[&str], without: &[&str]) -> Command {
        self.run(&must(program()), objects, flags, without)
    }

    fn run(&self, program: &Path, objects: &Objects, flags: &[&str], without: &[&str]) -> Command {
        let mut command = must(self.host().place().command(program, without));
        command.args(["run", "--node", self.name()]);
        command.arg("--objects").arg(objects.dir());
        command.arg("--cgroup").arg(self.cgroup());
        command.arg("--pin-path").arg(self.pin_path());
        command.args(flags);
        command
    }

    /// Other `lb-agent` commands as processes of this node.
    #[must_use]
    pub fn cli(&self) -> Cli {
        self.cli_of(Version::This)
    }

    /// The same of a version.
    #[must_use]
    pub fn cli_of(&self, version: Version) -> Cli {
        Cli {
            version,
            place: self.host().place().clone(),
            pin_path: self.pin_path(),
        }
    }
}

/// `lb-agent` commands on one node, run to their end.
#[derive(Clone, Debug)]
pub struct Cli {
    version: Version,
    place: Place,
    pin_path: PathBuf,
}

impl Cli {
    /// The same commands in the network of a pod.
    #[must_use]
    pub fn within(mut self, pod: &Pod) -> Self {
        self.place = pod.place().clone();
        self
    }

    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        let program = must(self.version.program());
        let mut command = must(self.place.command(&program, &[]));
        must(command.args(args).output().context("run lb-agent"))
    }

    /// A command that looks at this node's pins.
    #[must_use]
    pub fn on_pins(&self, args: &[&str]) -> Output {
        let pin_path = self
            .pin_path
            .to_str()
            .expect("the lab's paths are plain ASCII");
        self.run(&[args, &["--pin-path", pin_path]].concat())
    }

    /// `lb-agent status -o json`, or what it said where it could not tell.
    pub fn status(&self) -> Result<Value, String> {
        json(&self.on_pins(&["status", "-o", "json"]))
    }

    /// What was counted of a Service port, such as `default/web:http`, in a family, such as `IPv4`.
    pub fn counted(&self, port: &str, family: &str) -> Result<Counted, String> {
        let document = json(&self.on_pins(&["services", "--stats", "-o", "json"]))?;
        let mut services = document["services"].as_array().into_iter().flatten();
        let service = services.find(|service| {
            let text = |name: &str| service[name].as_str().unwrap_or_default();
            let id = format!("{}/{}:{}", text("namespace"), text("name"), text("port"));
            id == port && text("family") == family
        });
        let service = service.ok_or_else(|| format!("no {port} of {family} in {document}"))?;
        serde_json::from_value(service.clone()).map_err(|error| error.to_string())
    }

    /// A number of the status, by its name.
    pub fn number(&self, name: &str) -> Result<u64, String> {
        let status = self.status()?;
        number(&status, name)
    }

    /// How often the node's programs counted this reason.
    pub fn counter(&self, reason: &str) -> Result<u64, String> {
        let status = self.status()?;
        number(&status["counters"], reason)
    }
}

/// The figures of a Service port or of one of its backends, as `services --stats` says them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counted {
    /// Of a backend.
    pub address: Option<String>,
    pub connections: u64,
    pub active: u64,
    pub failures: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
    /// Of a Service port.
    #[serde(default)]
    pub backends: Vec<Counted>,
}

fn number(object: &Value, name: &str) -> Result<u64, String> {
    object[name]
        .as_u64()
        .ok_or_else(|| format!("no number `{name}` in {object}"))
}

fn json(output: &Output) -> Result<Value, String> {
    if !output.status.success() {
        return Err(format!(
            "{}: {}",
            output.status,
            text(&output.stderr).trim()
        ));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
}

/// Changes the objects and waits until every one of these agents has programmed them.
pub fn all_program(agents: &[&Agent], change: impl FnOnce()) {
    let before: Vec<_> = agents.iter().map(|agent| must(agent.syncs())).collect();
    change();
    for (agent, before) in agents.iter().zip(before) {
        let what = format!("agent {} to program a change", agent.node);
        must(wait::until(&what, wait::PATIENCE, || {
            let syncs = agent.syncs()?;
            if syncs > before {
                Ok(())
            } else {
                Err(format!("{syncs} syncs, as before"))
            }
        }));
    }
}

/// What a program printed.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A running `lb-agent run`.
#[derive(Debug)]
pub struct Agent {
    node: String,
    cli: Cli,
    log: PathBuf,
    child: Mutex<Child>,
}

impl Agent {
    fn start(node: &Node, version: Version, mut command: Command) -> anyhow::Result<Self> {
        let log = node.lab().dir().join(format!("agent-{}.log", node.name()));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("start lb-agent")?;
        Ok(Self {
            node: node.name().to_owned(),
            cli: node.cli_of(version),
            log,
            child: Mutex::new(child),
        })
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        lock(&self.child).id()
    }

    /// Waits until this process, not its predecessor, says that it is ready.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        let (node, own) = (&self.node, u64::from(self.id()));
        let ended = wait::until(&format!("agent {node} to be ready"), wait::PATIENCE, || {
            if let Some(status) = self.exit_status() {
                return Ok(Some(status));
            }
            let status = self.cli.status()?;
            let ready = status["ready"] == true && status["pid"].as_u64() == Some(own);
            if ready {
                Ok(None)
            } else {
                Err(status.to_string())
            }
        })
        .with_context(|| self.log())?;
        if let Some(status) = ended {
            bail!(
                "agent {node} ended with {status} before it was ready:\n{}",
                self.log()
            );
        }
        Ok(())
    }

    /// Changes the objects and waits until the agent has programmed them.
    pub fn programs(&self, change: impl FnOnce()) {
        all_program(&[self], change);
    }

    fn syncs(&self) -> Result<u64, String> {
        self.cli.number("syncs")
    }

    /// The end of the process, if it has ended.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        must(lock(&self.child).try_wait())
    }

    /// Waits for the process to end by itself.
    #[must_use]
    pub fn wait_exit(&self) -> ExitStatus {
        must(wait::until("the agent to end", wait::PATIENCE, || {
            self.exit_status().ok_or("it runs")
        }))
    }

    /// SIGTERM, and the status it ends with.
    #[must_use]
    pub fn terminate(&self) -> ExitStatus {
        let pid = Pid::from_child(&lock(&self.child));
        must(kill_process(pid, Signal::TERM));
        self.wait_exit()
    }

    /// SIGKILL. What it pinned goes on working.
    pub fn kill(&self) -> anyhow::Result<()> {
        let mut child = lock(&self.child);
        child.kill().context("kill an agent")?;
        child.wait().context("wait for an agent")?;
        Ok(())
    }

    /// What it has logged so far; agents that follow each other on a node share the file.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("no log: {error}"))
    }

    /// What a failed test prints about this node.
    pub(crate) fn report(&self) -> String {
        let show = |args| {
            let output = self.cli.on_pins(args);
            format!(
                "$ lb-agent {}\n{}{}",
                args.join(" "),
                text(&output.stdout),
                text(&output.stderr)
            )
        };
        format!(
            "node {}:\n{}{}agent's log:\n{}",
            self.node,
            show(&["services"]),
            show(&["status"]),
            self.log()
        )
    }
}
