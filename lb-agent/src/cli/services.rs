//! `lb-agent services`: what the kernel serves, as `ipvsadm -Ln` shows it, from the pinned maps alone.

mod json;
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
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pinned: Pinned,
}

const EXAMPLES: &str = "\
Examples:
  Which backends in other zones does this node use?
    lb-agent services -o json |
      jq '.services[] | .cluster.backends[]? | select(.locality == \"other-zone\")'

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
    let services = dump::services(&BpfMaps::open_pinned(&pins)?.dump()?);
    let mut out = anstream::stdout().lock();
    match args.pinned.output {
        Output::Table => table::write(&services, &mut out)?,
        Output::Json => json::write(&services, &mut out)?,
    }
    Ok(ExitCode::SUCCESS)
}
