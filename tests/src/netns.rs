//! Named network namespaces, as `ip netns` shows them, so that a person can look into a lab that
//! hangs. Entered by setns: `ip netns exec` would remount /sys and hide the cgroups.

use std::{
    fs::File,
    io::Write,
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, removed by [`remove`].
#[derive(Clone, Debug)]
pub struct Netns {
    pub name: String,
}

impl Netns {
    /// Where its name is bound.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `ip` commands inside, one per line.
    pub fn ip(&self, commands: &str) -> anyhow::Result<()> {
        ip(&["-n", &self.name], commands)
    }

    /// Moves the calling thread, and with it all threads and processes it starts afterwards.
    pub fn enter(&self) -> anyhow::Result<()> {
        let path = self.path();
        let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter network namespace {}", self.name))
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        let inside = || {
            self.enter()?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join().expect("the work does not panic"))
    }
}

/// Runs `ip` commands of this process's own namespace, one per line, in one process.
pub fn ip(options: &[&str], commands: &str) -> anyhow::Result<()> {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("run ip: install iproute2")?;
    // An `ip` that gave up early closes its end; its message, not the broken pipe, says why.
    let _ = child
        .stdin
        .take()
        .map(|mut stdin| stdin.write_all(commands.as_bytes()));
    let output = child.wait_with_output().context("wait for ip")?;
    ensure!(
        output.status.success(),
        "ip {} -batch failed: {}\n{commands}",
        options.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Removes a namespace and its interfaces.
pub fn remove(name: &str) -> anyhow::Result<()> {
    ip(&[], &format!("netns del {name}\n"))
}
