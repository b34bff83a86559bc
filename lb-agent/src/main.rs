//! The binary: parse the arguments, run the command, say what went wrong.

use std::process::ExitCode;

use clap::Parser;
use lb_agent::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            anstream::eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
