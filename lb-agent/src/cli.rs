//! The commands, one file each.

pub mod plan;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};

/// A kube-proxy replacement that keeps Service traffic in its zone.
#[derive(Debug, Parser)]
#[command(version, about, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Plan(plan::Args),
}

impl Cli {
    /// Run the command and say how the process ends.
    ///
    /// # Errors
    ///
    /// The command could not do what it is for.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let done = match self.command {
            Command::Plan(args) => plan::run(&args),
        };
        match done {
            Err(error) if is_closed_pipe(&error) => Ok(ExitCode::SUCCESS),
            done => done.map(|()| ExitCode::SUCCESS),
        }
    }
}

/// Whether a reader such as `head` has had enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
