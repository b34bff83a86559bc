//! `lb-agent run`: the agent itself.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{
    agent,
    config::{self, Config, GivenCapacities, PIN_PATH, Source},
    source::kube::access::Access,
    vitals::server::Listen,
};

/// Keep the kernel's tables equal to what a cluster, or a folder of its objects, says
///
/// Translates connections to ClusterIPs of every process below the cgroup. Stays in the foreground;
/// SIGTERM and SIGINT end it, and what is programmed keeps serving. A restarted agent adopts it.
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// This node's name, as nodeName and node hints write it
    #[arg(long, value_name = "NAME")]
    node: String,
    /// This node's zone, whatever its Node object says
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// The cgroup whose processes are served, or a folder with the cgroup2 mount in it, such as a host's
    /// /sys/fs/cgroup [default: the root of the cgroup2 hierarchy]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Where maps and links are pinned, on a BPF file system
    #[arg(long, value_name = "DIR", default_value = PIN_PATH)]
    pin_path: PathBuf,
    #[command(flatten)]
    capacities: Capacities,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    log: Log,
}

/// One source; without any flag, the API server of the cluster whose pod this is.
#[derive(Clone, Debug, Parser)]
#[command(
    next_help_heading = "Where objects come from (default: the API server, by the ServiceAccount of this pod)"
)]
struct SourceArgs {
    /// A folder of Service, EndpointSlice, Node and ServiceCIDR objects in YAML or JSON, followed
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_server"])]
    objects: Option<PathBuf>,
    /// The API server that this file's current context names
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The API server's address, whatever the kubeconfig or the pod's environment says: without kube-proxy,
    /// the address of the Service "kubernetes" is not reachable before this agent serves it
    #[arg(long, value_name = "URL")]
    api_server: Option<String>,
}

impl SourceArgs {
    fn source(self) -> Source {
        match self.objects {
            Some(path) => Source::Folder(path),
            None => Source::ApiServer(Access {
                kubeconfig: self.kubeconfig,
                api_server: self.api_server,
            }),
        }
    }
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
#[command(next_help_heading = "Health and metrics, over HTTP")]
struct HealthArgs {
    /// Where to serve /healthz and /livez; nothing: nowhere
    #[arg(long, value_name = "ADDRESS:PORT", default_value = config::HEALTHZ_ADDRESS)]
    healthz_bind_address: String,
    /// Where to serve /metrics; nothing: nowhere
    #[arg(long, value_name = "ADDRESS:PORT", default_value = config::METRICS_ADDRESS)]
    metrics_bind_address: String,
    /// End where such an address cannot be had, instead of trying again every 5 seconds
    #[arg(long)]
    bind_address_hard_fail: bool,
    /// A change that is not programmed after twice this time makes /healthz and /livez fail
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = config::duration)]
    sync_period: Duration,
}

impl HealthArgs {
    fn listen(&self) -> anyhow::Result<Listen> {
        let address = |flag, text: &str, port| {
            let address = config::bind_address(text, port).map_err(anyhow::Error::msg);
            address.context(flag)
        };
        Ok(Listen {
            healthz: address(
                "--healthz-bind-address",
                &self.healthz_bind_address,
                config::HEALTHZ_PORT,
            )?,
            metrics: address(
                "--metrics-bind-address",
                &self.metrics_bind_address,
                config::METRICS_PORT,
            )?,
        })
    }
}

#[derive(Clone, Debug, Parser)]
#[command(next_help_heading = "Log, on standard error")]
struct Log {
    /// What to log: error, warn, info, debug, trace, or as in RUST_LOG [default: RUST_LOG, or info without the watches' own log]
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

  Serve what a cluster says, from outside of it or as a static pod:
    lb-agent run --kubeconfig /etc/nearhop/kubeconfig --node node-1

  In a pod of a cluster that has no kube-proxy:
    lb-agent run --api-server https://192.0.2.10:6443 --node \"$NODE_NAME\"

  Only for the processes below one cgroup, beside another instance:
    lb-agent run --objects DIR --node a --cgroup /sys/fs/cgroup/a --pin-path /sys/fs/bpf/a

Exit codes:
  0  ended by SIGTERM or SIGINT
  1  something is missing, and the error says what; pins of an earlier run keep serving";

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    start_log(&args.log)?;
    let listen = args.health.listen()?;
    agent::run(&Config {
        source: args.source.source(),
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
        listen,
        bind_hard_fail: args.health.bind_address_hard_fail,
        sync_period: args.health.sync_period,
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
