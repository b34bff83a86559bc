//! `lb-agent services`: what the kernel serves, as `ipvsadm -Ln` shows it, from the pinned maps alone.

mod json;
mod stats;
mod table;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::{
    cli::{NOT_INSTALLED, Output, Pinned},
    datapath::{BpfMaps, Pins, store::MapStore},
    tables::dump,
};

/// Show what the kernel serves: every Service port with its addresses and backends
///
/// Reads the pinned maps, and so shows what is, not what is wanted; `plan` shows the latter.
///
/// With --stats: what clients on this node did with each Service port and each backend, as
/// `ipvsadm -Ln --stats` shows it. TCP connections count from their first packet to their end, and their
/// bytes when they end; UDP sockets count from when they are given a backend until they are closed or
/// given another one. A Service's line sums its backends and those that it no longer has.
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Show connections, failures and bytes of each Service port and backend
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    pinned: Pinned,
}

const EXAMPLES: &str = "\
Examples:
  Which backends in other zones does this node use?
    lb-agent services -o json |
      jq '.services[] | .cluster.backends[]? | select(.locality == \"other-zone\")'
  Which backends do not answer?
    lb-agent services --stats -o json |
      jq '.services[].backends[] | select(.failures > 0)'

Exit codes:
  0  printed
  1  it cannot be read, and the error says why
  3  nothing is installed";

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let pins = Pins::new(&args.pinned.pin_path);
    if !pins.exist() {
        anstream::eprintln!("nothing is installed at {}", pins.root().display());
        return Ok(ExitCode::from(NOT_INSTALLED));
    }
    let maps = BpfMaps::open_pinned(&pins)?;
    let mut out = anstream::stdout().lock();
    if args.stats {
        let services = maps.statistics()?;
        match args.pinned.output {
            Output::Table => stats::table(&services, &mut out)?,
            Output::Json => stats::json(&services, &mut out)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let services = dump::services(&maps.dump()?);
    match args.pinned.output {
        Output::Table => table::write(&services, &mut out)?,
        Output::Json => json::write(&services, &mut out)?,
    }
    Ok(ExitCode::SUCCESS)
}
