//! `lb-agent mount-bpffs`: what a node needs before its first agent, if it does not have it from boot.
//! A command of its own, because the agent itself has no right to mount.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;

use crate::datapath::bpffs;

/// Mount a BPF file system where there is none
///
/// Pins lie on it: they keep traffic flowing while no agent runs. Hosts with systemd have one from boot,
/// and then this only says so.
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Where it belongs
    #[arg(long, value_name = "DIR", default_value = bpffs::MOUNT_POINT)]
    at: PathBuf,
    /// The mount namespace to mount it in [default: this process's own]
    #[arg(long, value_name = "FILE")]
    namespace: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  On a host:
    lb-agent mount-bpffs

  For the node, from a pod with the node's /proc at /host/proc:
    lb-agent mount-bpffs --namespace /host/proc/1/ns/mnt

Exit codes:
  0  there is one
  1  it could not be mounted, and the error says why";

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    if let Some(namespace) = &args.namespace {
        bpffs::enter(namespace)?;
    }
    let said = match bpffs::provide(&args.at)? {
        true => "mounted a BPF file system on",
        false => "there is a BPF file system on",
    };
    writeln!(anstream::stdout(), "{said} {}", args.at.display())?;
    Ok(ExitCode::SUCCESS)
}
