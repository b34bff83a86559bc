//! `lb-agent cleanup`: the way back to a machine without nearhop.

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use serde_json::json;

use crate::{
    cli::{Output, Pinned},
    datapath::Pins,
};

/// Remove everything that `run` has put into the kernel
///
/// Detaches the programs, removes the maps and the pin folder, and says what it removed. Sockets that
/// are connected stay so. Nothing to remove is no error.
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pinned: Pinned,
}

const EXAMPLES: &str = "\
Examples:
  Uninstall:
    systemctl stop nearhop; lb-agent cleanup

Exit codes:
  0  nothing is left
  1  something could not be removed, and the error says what";

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let pins = Pins::new(&args.pinned.pin_path);
    let running = pins.running_agent();
    let removed = pins.remove_all()?;

    let mut out = anstream::stdout().lock();
    match args.pinned.output {
        Output::Json => {
            let document = json!({ "removed": removed, "running_agent": running });
            writeln!(out, "{document:#}")?;
        }
        Output::Table => {
            for path in &removed {
                writeln!(out, "removed {}", path.display())?;
            }
            if removed.is_empty() {
                writeln!(
                    out,
                    "nothing to remove at {}",
                    args.pinned.pin_path.display()
                )?;
            }
            if let Some(pid) = running {
                anstream::eprintln!(
                    "warning: the agent with pid {pid} still runs; it serves nobody until it is restarted"
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
