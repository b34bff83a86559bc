//! The commands, one file each.

pub mod check;
pub mod cleanup;
pub mod mount_bpffs;
pub mod plan;
pub mod run;
pub mod services;
pub mod status;
pub mod why;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::PIN_PATH;

/// A kube-proxy replacement that keeps Service traffic near
#[derive(Debug, Parser)]
#[command(version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Plan(plan::Args),
    Why(why::Args),
    Services(services::Args),
    Status(status::Args),
    Check(check::Args),
    Cleanup(cleanup::Args),
    MountBpffs(mount_bpffs::Args),
}

/// How a command prints.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

/// What every command takes that looks at the pins.
#[derive(Clone, Debug, Args)]
struct Pinned {
    /// Where maps and links are pinned
    #[arg(long, value_name = "DIR", default_value = PIN_PATH)]
    pin_path: PathBuf,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// The exit code where there is nothing to look at.
const NOT_INSTALLED: u8 = 3;

impl Cli {
    /// Run the command and say how the process ends.
    ///
    /// # Errors
    ///
    /// The command could not do what it is for.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let done = match self.command {
            Command::Run(args) => run::run(*args),
            Command::Plan(args) => plan::run(&args).map(|()| ExitCode::SUCCESS),
            Command::Why(args) => why::run(&args),
            Command::Services(args) => services::run(&args),
            Command::Status(args) => status::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Cleanup(args) => cleanup::run(&args),
            Command::MountBpffs(args) => mount_bpffs::run(&args),
        };
        match done {
            Err(error) if is_closed_pipe(&error) => Ok(ExitCode::SUCCESS),
            done => done,
        }
    }
}

/// Whether a reader such as `head` has had enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
