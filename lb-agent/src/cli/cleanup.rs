//! `lb-agent cleanup`: the way back to a machine without nearhop.

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use serde_json::json;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use crate::{
    cli::{Output, Pinned},
    datapath::{Pins, packets},
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
    /// Stay until SIGTERM when all is removed, as a pod of a DaemonSet must
    #[arg(long)]
    hold: bool,
}

const EXAMPLES: &str = "\
Examples:
  On one host, once the agent is stopped:
    lb-agent cleanup

  On every node of a cluster:
    kubectl apply -k deploy/cleanup/

Exit codes:
  0  nothing is left
  1  something could not be removed, and the error says what";

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    clean(args)?;
    if args.hold {
        hold()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn clean(args: &Args) -> Result<()> {
    let pins = Pins::new(&args.pinned.pin_path);
    let running = pins.running_agent();
    let filters = packets::remove_filters(&pins)?;
    let removed = pins.remove_all()?;

    let mut out = anstream::stdout().lock();
    match args.pinned.output {
        Output::Json => {
            let document =
                json!({ "filters": filters, "removed": removed, "running_agent": running });
            writeln!(out, "{document:#}")?;
        }
        Output::Table => {
            for filter in &filters {
                writeln!(out, "removed {filter}")?;
            }
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
    Ok(())
}

/// A container's first process gets no signal that it does not ask for.
fn hold() -> Result<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        signal(SignalKind::terminate())?.recv().await;
        Ok(())
    })
}
