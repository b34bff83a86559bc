//! The test's end of a worker: starts processes inside a pod, and asks the pod's worker.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, ensure};
use rustix::io::Errno;
use serde::de::DeserializeOwned;

use crate::{
    netns::Netns,
    protocol::{Reply, Request},
};

/// Where a process of the lab runs: the network of a pod, the socket hooks of a node.
#[derive(Clone, Debug)]
pub struct Place {
    pub netns: Netns,
    pub cgroup: PathBuf,
}

impl Place {
    /// A command that runs `program` in this place, without the named capabilities.
    pub fn command(&self, program: &Path, without: &[&str]) -> anyhow::Result<Command> {
        let mut command = self.launcher()?;
        for capability in without {
            command.args(["--without", capability]);
        }
        command.arg("--").arg(program);
        Ok(command)
    }

    /// `lab_worker` enters the place by itself, so that the lab needs no code between fork and
    /// exec. In a process group of its own, or Ctrl-C would end it before the lab is undone.
    fn launcher(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(worker_program()?);
        command
            .process_group(0)
            .arg("--netns")
            .arg(&self.netns.name)
            .arg("--cgroup")
            .arg(&self.cgroup);
        Ok(command)
    }
}

/// Cargo puts the lab's programs beside each other, and test programs into `deps/` below them.
fn worker_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("lab_worker"));
    beside
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no lab_worker beside {}: cargo build -p lb-tests --bins",
                own.display()
            )
        })
}

/// A pod's worker. Requests are answered one at a time.
#[derive(Debug)]
pub struct Worker {
    child: Mutex<Child>,
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Worker {
    pub fn start(place: &Place) -> anyhow::Result<Self> {
        let mut child = place
            .launcher()?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start lab_worker")?;
        let lines = Lines {
            requests: child.stdin.take().expect("standard input is piped"),
            replies: BufReader::new(child.stdout.take().expect("standard output is piped")),
        };
        Ok(Self {
            child: Mutex::new(child),
            lines: Mutex::new(lines),
        })
    }

    /// The value that the request asks for, or the errno of the socket call.
    pub fn ask<T: DeserializeOwned>(&self, request: &Request) -> anyhow::Result<Result<T, Errno>> {
        let Reply(outcome) = lock(&self.lines).exchange(request)?;
        match outcome.map_err(Errno::from_raw_os_error) {
            Ok(value) => serde_json::from_value(value)
                .map(Ok)
                .with_context(|| format!("a worker's reply to {request:?}")),
            Err(errno) => Ok(Err(errno)),
        }
    }

    pub fn kill(&self) -> anyhow::Result<()> {
        let mut child = lock(&self.child);
        child.kill().context("kill a worker")?;
        child.wait().context("wait for a worker")?;
        Ok(())
    }
}

impl Lines {
    fn exchange(&mut self, request: &Request) -> anyhow::Result<Reply> {
        let mut line = serde_json::to_string(request).context("write a request")?;
        line.push('\n');
        let asked = self.requests.write_all(line.as_bytes());
        asked.with_context(|| format!("ask the worker for {request:?}: it has ended"))?;
        line.clear();
        self.replies
            .read_line(&mut line)
            .context("read a worker's reply")?;
        ensure!(
            !line.is_empty(),
            "a worker ended at {request:?}; its message is above"
        );
        serde_json::from_str(&line).with_context(|| format!("a worker's reply to {request:?}"))
    }
}

/// A panic elsewhere does not make these values wrong, and undoing must go on after it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
