//! A process of a pod: enters a network namespace and a cgroup, then becomes the program it is given
//! or does what the test asks for on standard input. It moves itself, so that the lab runs no code
//! between fork and exec.

mod abuse;
mod client;
mod server;

use std::{
    ffi::OsString,
    io::{self, BufRead, Write},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
};

use anyhow::Context;
use clap::Parser;
use lb_tests::{
    cgroup,
    netns::Netns,
    protocol::{Reply, Request},
};
use rustix::{
    io::Errno,
    thread::{CapabilitySet, remove_capability_from_bounding_set},
};
use serde::Serialize;
use serde_json::Value;

use client::{Background, Sockets};
use server::Servers;

#[derive(Parser)]
struct Args {
    /// Network namespace to enter, as `ip netns` names it
    #[arg(long)]
    netns: String,
    /// Cgroup v2 folder to join
    #[arg(long)]
    cgroup: PathBuf,
    /// Capability that the program must not have, such as bpf
    #[arg(long)]
    without: Vec<String>,
    /// Program to become
    #[arg(last = true)]
    program: Vec<OsString>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    cgroup::join(&args.cgroup)?;
    Netns { name: args.netns }.enter()?;
    for name in &args.without {
        renounce(name)?;
    }
    match args.program.split_first() {
        Some((program, args)) => Err(become_program(program, args)),
        None => serve_requests(),
    }
}

fn become_program(program: &OsString, args: &[OsString]) -> anyhow::Error {
    let error = Command::new(program).args(args).exec();
    anyhow::Error::new(error).context(format!("run {}", program.display()))
}

/// Root gets at exec what its bounding set holds.
fn renounce(name: &str) -> anyhow::Result<()> {
    let capability = CapabilitySet::from_name(&name.to_uppercase())
        .with_context(|| format!("there is no capability {name}"))?;
    remove_capability_from_bounding_set(capability).with_context(|| format!("renounce {name}"))
}

fn serve_requests() -> anyhow::Result<()> {
    let mut worker = Worker::default();
    for line in io::stdin().lock().lines() {
        let line = line.context("read a request")?;
        let request = serde_json::from_str(&line).with_context(|| format!("request {line}"))?;
        say(&Reply(worker.answer(request).map_err(Errno::raw_os_error)))?;
    }
    Ok(())
}

#[derive(Default)]
struct Worker {
    servers: Servers,
    sockets: Sockets,
    background: Background,
}

impl Worker {
    fn answer(&mut self, request: Request) -> rustix::io::Result<Value> {
        match request {
            Request::Serve { serve, at } => value(self.servers.start(serve, at)?),
            Request::Answered { serve, at } => value(self.servers.answered(serve, at)),
            Request::Open { transport, family } => value(self.sockets.open(transport, family)?),
            Request::Connect { socket, to } => value(self.sockets.connect(socket, to)?),
            Request::Disconnect { socket } => value(self.sockets.disconnect(socket)?),
            Request::Send { socket, to, text } => value(self.sockets.send(socket, to, &text)?),
            Request::Receive { socket } => value(self.sockets.receive(socket)?),
            Request::PeerName { socket } => value(self.sockets.peer_name(socket)?),
            Request::LocalName { socket } => value(self.sockets.local_name(socket)?),
            Request::Close { socket } => value(self.sockets.close(socket)?),
            Request::Abuse(abuse) => abuse::abuse(&abuse),
            Request::Load { target, count } => value(client::load(target, count)),
            Request::TimeConnects { to, count } => value(client::time_connects(&to, count)?),
            Request::StartLoad { target, clients } => {
                value(self.background.start(target, clients)?)
            }
            Request::FinishLoad { at_least } => value(self.background.finish(at_least)?),
        }
    }
}

fn value(reply: impl Serialize) -> rustix::io::Result<Value> {
    Ok(serde_json::to_value(reply).expect("replies are plain data"))
}

fn say(reply: &Reply) -> anyhow::Result<()> {
    let mut line = serde_json::to_string(reply).context("write a reply")?;
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .context("send a reply")
}
