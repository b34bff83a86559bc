//! `lb-agent run`: the agent itself.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{
    agent,
    config::{self, Config, GivenCapacities, PIN_PATH},
};

/// Keep the kernel's tables equal to a folder of Kubernetes objects
///
/// Translates connections to ClusterIPs of every process below the cgroup. Stays in the foreground;
/// SIGTERM and SIGINT end it, and what is programmed keeps serving. A restarted agent adopts it.
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A folder of Service, EndpointSlice, Node and ServiceCIDR objects in YAML or JSON, followed
    #[arg(long, value_name = "DIR")]
    objects: PathBuf,
    /// This node's name, as nodeName and node hints write it
    #[arg(long, value_name = "NAME")]
    node: String,
    /// This node's zone, whatever its Node object says
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// The cgroup whose processes are served [default: the root of the cgroup2 hierarchy]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Where maps and links are pinned, on a BPF file system
    #[arg(long, value_name = "DIR", default_value = PIN_PATH)]
    pin_path: PathBuf,
    #[command(flatten)]
    capacities: Capacities,
    #[command(flatten)]
    log: Log,
}

/// Sizes of new maps. By default the power of two above twice what the first objects need; adopted maps
/// keep theirs.
#[derive(Clone, Debug, Parser)]
#[command(next_help_heading = "Capacities of new maps (default: by need)")]
struct Capacities {
    /// Addresses with a port
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    capacity_frontends: Option<u32>,
    /// Service ports, each family for itself
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    capacity_services: Option<u32>,
    /// Places in backend lists
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    capacity_slots: Option<u32>,
    /// Endpoints of Service ports
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    capacity_backends: Option<u32>,
}

#[derive(Clone, Debug, Parser)]
#[command(next_help_heading = "Log, on standard error")]
struct Log {
    /// What to log: error, warn, info, debug, trace, or as in RUST_LOG [default: RUST_LOG, or info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How to write it
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Text,
    /// For programs: one object a line
    Json,
}

const EXAMPLES: &str = "\
Examples:
  Serve the objects in a folder on this node:
    lb-agent run --objects /etc/nearhop --node node-1

  Only for the processes below one cgroup, beside another instance:
    lb-agent run --objects DIR --node a --cgroup /sys/fs/cgroup/a --pin-path /sys/fs/bpf/a

Exit codes:
  0  ended by SIGTERM or SIGINT
  1  something is missing, and the error says what; pins of an earlier run keep serving";

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    start_log(&args.log)?;
    agent::run(&Config {
        objects: args.objects,
        node: args.node.trim().to_lowercase(),
        zone: args.zone.filter(|zone| !zone.is_empty()),
        cgroup: args.cgroup,
        pin_path: args.pin_path,
        capacities: GivenCapacities {
            frontends: args.capacities.capacity_frontends,
            services: args.capacities.capacity_services,
            slots: args.capacities.capacity_slots,
            backends: args.capacities.capacity_backends,
        },
    })?;
    Ok(ExitCode::SUCCESS)
}

fn start_log(args: &Log) -> anyhow::Result<()> {
    use std::io::{IsTerminal, stderr};

    let filter = EnvFilter::try_new(config::log_filter(args.log_level.as_deref()))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_target(false)
        .with_ansi(stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
