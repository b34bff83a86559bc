//! `lb-agent run`: the agent itself.

mod flags;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use glob::Pattern;
use tracing::info;
use tracing_subscriber::EnvFilter;

use self::flags::KubeProxyFlags;
use crate::{
    agent,
    cli::cleanup,
    config::{self, Config, GivenCapacities, PIN_PATH, Source, given::Given, watched::Watched},
    datapath::{
        interface::{Rule, pattern},
        packets::{self, Way},
    },
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
    /// This node's name, as nodeName and node hints write it [default: the host's name]
    #[arg(long, visible_alias = "hostname-override", value_name = "NAME")]
    node: Option<String>,
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
    packets: PacketArgs,
    #[command(flatten)]
    capacities: Capacities,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    log: Log,
    #[command(flatten)]
    kube_proxy: KubeProxyArgs,
}

/// What kube-proxy is started with.
#[derive(Clone, Debug, Parser)]
#[command(
    next_help_heading = "As kube-proxy (its other flags are accepted too; the log says which have no meaning)"
)]
struct KubeProxyArgs {
    /// A KubeProxyConfiguration; the flags that it has fields for are ignored, but for the node's name
    /// and the log. When the file changes, the agent ends, to be started anew
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write a KubeProxyConfiguration with the defaults to this file, and end
    #[arg(long, value_name = "FILE")]
    write_config_to: Option<PathBuf>,
    /// Do what the command cleanup does, and end
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set, hide_default_value = true, hide_possible_values = true)]
    cleanup: bool,
    /// End at once: nothing has to be prepared with more rights
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set, hide_default_value = true, hide_possible_values = true)]
    init_only: bool,
    #[command(flatten)]
    flags: KubeProxyFlags,
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
    #[arg(long, visible_alias = "master", value_name = "URL")]
    api_server: Option<String>,
}

impl SourceArgs {
    fn source(self, kubeconfig: Option<PathBuf>) -> Source {
        match self.objects {
            Some(path) => Source::Folder(path),
            None => Source::ApiServer(Access {
                kubeconfig,
                api_server: self.api_server,
            }),
        }
    }
}

/// Which packets are looked at, and how.
#[derive(Clone, Debug, Parser)]
#[command(next_help_heading = "Packets that no socket hook sees")]
struct PacketArgs {
    /// Translate packets at this machine's interfaces, too, and not only what processes below the cgroup
    /// ask for
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set, hide_possible_values = true)]
    packet_path: bool,
    /// Only at these interfaces, by their names or patterns as for the shell [default: all Ethernet ones
    /// but bridges, dummies and what is below a bond]
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',', value_parser = pattern)]
    devices: Vec<Pattern>,
    /// Not at these
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',', value_parser = pattern)]
    exclude_devices: Vec<Pattern>,
    /// How programs get to interfaces
    #[arg(long, value_name = "WAY", default_value = "auto")]
    packet_attach: PacketAttach,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PacketAttach {
    /// By links where the kernel has them (6.6)
    Auto,
    /// By TCX links
    Tcx,
    /// By filters below the qdisc clsact
    Clsact,
}

impl PacketArgs {
    fn settings(self) -> packets::Settings {
        packets::Settings {
            rule: self.packet_path.then_some(Rule {
                only: self.devices,
                except: self.exclude_devices,
            }),
            way: match self.packet_attach {
                PacketAttach::Auto => None,
                PacketAttach::Tcx => Some(Way::Tcx),
                PacketAttach::Clsact => Some(Way::Clsact),
            },
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
    /// Where to serve /healthz and /livez; nothing: nowhere [default: 0.0.0.0:10256]
    #[arg(long, value_name = "ADDRESS:PORT")]
    healthz_bind_address: Option<String>,
    /// Where to serve /metrics; nothing: nowhere [default: 127.0.0.1:10249]
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_bind_address: Option<String>,
    /// End where such an address cannot be had, instead of trying again every 5 seconds
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    bind_address_hard_fail: Option<bool>,
    /// A change that is not programmed after twice this time makes /healthz and /livez fail [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = config::duration)]
    sync_period: Option<Duration>,
}

#[derive(Clone, Debug, Parser)]
#[command(next_help_heading = "Log, on standard error")]
struct Log {
    /// What to log: error, warn, info, debug, trace, or as in RUST_LOG [default: RUST_LOG, or info without the watches' own log]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How to write it [default: text]
    #[arg(long, visible_alias = "logging-format", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
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

  Packets at the interfaces to other machines and of Calico's pods only:
    lb-agent run --objects DIR --devices 'eth*,cali*'

  Only for the processes below one cgroup, beside another instance:
    lb-agent run --objects DIR --node a --cgroup /sys/fs/cgroup/a --pin-path /sys/fs/bpf/a

Exit codes:
  0  ended by SIGTERM or SIGINT
  1  something is missing, and the error says what; pins of an earlier run keep serving";

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let kube_proxy = &args.kube_proxy;
    if let Some(path) = &kube_proxy.write_config_to {
        let written = fs::write(path, config::given::DEFAULTS);
        written.with_context(|| format!("writing {}", path.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if kube_proxy.cleanup {
        let pin_path = args.pin_path.into_os_string();
        let args = ["cleanup".into(), "--pin-path".into(), pin_path];
        return cleanup::run(&cleanup::Args::parse_from(args));
    }
    if kube_proxy.init_only {
        return Ok(ExitCode::SUCCESS);
    }
    let flags = kube_proxy.flags.given.iter();
    let flags = Given::of_flags(flags.map(|(setting, value)| (*setting, value.as_str())));
    let flags = flags.map_err(anyhow::Error::msg)?;
    let file = kube_proxy
        .config
        .as_deref()
        .map(Watched::read)
        .transpose()?;
    let file = file.map(|watched| Ok((Given::parse(&watched.path, &watched.text)?, watched)));
    let file: Option<(Given, Watched)> = file
        .transpose()
        .map_err(|error: config::given::FileError| error)?;

    start_log(&args.log, &flags, file.as_ref().map(|(given, _)| given))?;
    say(&args, &flags, file.as_ref().map(|(given, _)| given));
    agent::run(&settle(args, flags, file)?)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The flags of ours on the command line that kube-proxy's file has fields for.
    fn declared(&self) -> Vec<&'static str> {
        let health = &self.health;
        let flags = [
            ("kubeconfig", self.source.kubeconfig.is_some()),
            (
                "healthz-bind-address",
                health.healthz_bind_address.is_some(),
            ),
            (
                "metrics-bind-address",
                health.metrics_bind_address.is_some(),
            ),
            (
                "bind-address-hard-fail",
                health.bind_address_hard_fail.is_some(),
            ),
        ];
        let given = flags.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(flag, _)| flag).collect()
    }
}

/// What of kube-proxy's settings does nothing here, a line each.
fn say(args: &Args, flags: &Given, file: Option<&Given>) {
    let given = &args.kube_proxy.flags;
    let of_file = file.into_iter().flat_map(Given::meaningless);
    let of_flags = match file {
        Some(_) => given.replaced(&args.declared()),
        None => flags.meaningless(),
    };
    let of_packets = match args.packets.packet_path {
        true => Vec::new(),
        false => file.unwrap_or(flags).without_packets(),
    };
    let lines = of_file.chain(of_flags).chain(of_packets);
    for line in lines.chain(given.meaningless()) {
        info!("{line}");
    }
}

/// The file wins over the flags that it has fields for, as with kube-proxy; flags of our own win over
/// both.
fn settle(args: Args, flags: Given, file: Option<(Given, Watched)>) -> Result<Config> {
    let (from_file, watched) = file.unzip();
    let has_file = from_file.is_some();
    let given = from_file.unwrap_or(flags);
    let kubeconfig = match has_file {
        true => given.text("clientConnection.kubeconfig").map(PathBuf::from),
        false => args.source.kubeconfig.clone(),
    };
    let address = |field, flag: Option<&str>, port| {
        let text = match has_file {
            true => given.text(field),
            false => flag,
        };
        let text = text.map_or_else(|| given.default_address(port), str::to_owned);
        let address = config::bind_address(&text, port).map_err(anyhow::Error::msg);
        address.with_context(|| given.place(field))
    };
    let health = &args.health;
    let listen = Listen {
        healthz: address(
            "healthzBindAddress",
            health.healthz_bind_address.as_deref(),
            config::HEALTHZ_PORT,
        )?,
        metrics: address(
            "metricsBindAddress",
            health.metrics_bind_address.as_deref(),
            config::METRICS_PORT,
        )?,
    };
    let bind_hard_fail = match has_file {
        true => given.flag("bindAddressHardFail"),
        false => health.bind_address_hard_fail == Some(true),
    };
    let node = match args.node.as_deref().or(given.text("hostnameOverride")) {
        Some(name) => name.to_owned(),
        None => config::host_name(),
    };
    let node = node.trim().to_lowercase();
    ensure!(!node.is_empty(), "this node has no name: give --node NAME");
    Ok(Config {
        node,
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
        bind_hard_fail,
        sync_period: health.sync_period.unwrap_or_else(|| given.sync_period()),
        packets: args.packets.settings(),
        local: given.local()?,
        external_ips: given.external_ips(),
        source: args.source.source(kubeconfig),
        given,
        watched,
    })
}

fn start_log(args: &Log, flags: &Given, file: Option<&Given>) -> Result<()> {
    use std::io::{IsTerminal, stderr};

    let either = |of: fn(&Given) -> Option<LogFormat>| of(flags).or_else(|| of(file?));
    let format = args
        .log_format
        .or_else(|| either(|given| LogFormat::from_str(given.text("logging.format")?, true).ok()));
    let level = flags.log_level().or_else(|| file?.log_level());
    let level = args.log_level.as_deref().or(level);
    let filter = EnvFilter::try_new(config::log_filter(level))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_target(false)
        .with_ansi(stderr().is_terminal());
    match format {
        None | Some(LogFormat::Text) => log.init(),
        Some(LogFormat::Json) => log.json().init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Kind, SETTINGS};

    const KUBEADM: &str = include_str!("../config/kubeadm.yaml");

    fn parse(flags: &[&str]) -> Args {
        Args::try_parse_from([&["run"], flags].concat()).unwrap()
    }

    fn of_flags(args: &Args) -> Given {
        let flags = args.kube_proxy.flags.given.iter();
        Given::of_flags(flags.map(|(setting, value)| (*setting, value.as_str()))).unwrap()
    }

    /// What these flags, and the text of a file, come to.
    fn settled(flags: &[&str], file: Option<&str>) -> Config {
        let args = parse(flags);
        let path = PathBuf::from("config.conf");
        let file = file.map(|text| {
            let given = Given::parse(&path, text).unwrap();
            let text = text.to_owned();
            (given, Watched { path, text })
        });
        let given = of_flags(&args);
        settle(args, given, file).unwrap()
    }

    fn listen(config: &Config) -> [String; 2] {
        [config.listen.healthz, config.listen.metrics]
            .map(|at| at.map_or_else(String::new, |at| at.to_string()))
    }

    #[test]
    fn what_kubeadms_daemonset_passes_is_followed() {
        let flags = ["--config=config.conf", "--hostname-override=Node-1 "];
        let config = settled(&flags, Some(KUBEADM));

        assert_eq!(config.node, "node-1");
        assert_eq!(listen(&config), ["0.0.0.0:10256", "127.0.0.1:10249"]);
        let Source::ApiServer(access) = &config.source else {
            panic!("{:?}", config.source)
        };
        let kubeconfig = PathBuf::from("/var/lib/kube-proxy/kubeconfig.conf");
        assert_eq!(access.kubeconfig, Some(kubeconfig));
        let fields = &config.configz()["kubeproxy.config.k8s.io"];
        assert_eq!(fields["clusterCIDR"], "10.244.0.0/16");
        assert_eq!(fields["hostnameOverride"], "node-1");
        assert_eq!(fields["metricsBindAddress"], "127.0.0.1:10249");
    }

    #[test]
    fn without_anything_the_node_is_the_host_and_the_addresses_are_kube_proxys() {
        let config = settled(&[], None);

        assert_eq!(config.node, config::host_name().to_lowercase());
        assert_eq!(listen(&config), ["0.0.0.0:10256", "127.0.0.1:10249"]);
        assert_eq!(config.sync_period, Duration::from_secs(30));
        assert!(config.external_ips && !config.bind_hard_fail);
    }

    #[test]
    fn the_file_wins_over_its_flags_and_our_own_flags_over_the_file() {
        let file = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                    hostnameOverride: in-file\nmetricsBindAddress: 127.0.0.1:7\nbindAddressHardFail: true\n\
                    iptables: {syncPeriod: 7s}\n";
        let flags = [
            "--config=config.conf",
            "--metrics-bind-address=",
            "--bind-address-hard-fail=false",
            "--iptables-sync-period=9s",
            "--master=https://192.0.2.1",
        ];
        let config = settled(&flags, Some(file));

        assert_eq!(config.node, "in-file");
        assert_eq!(listen(&config), ["0.0.0.0:10256", "127.0.0.1:7"]);
        assert_eq!(config.sync_period, Duration::from_secs(7));
        assert!(config.bind_hard_fail);
        let Source::ApiServer(access) = &config.source else {
            panic!("{:?}", config.source)
        };
        assert_eq!(access.api_server.as_deref(), Some("https://192.0.2.1"));
        let args = parse(&flags);
        let replaced = args.kube_proxy.flags.replaced(&args.declared());
        assert_eq!(
            replaced,
            [
                "--iptables-sync-period is ignored, as --config is given; set iptables.syncPeriod in that \
                 file instead",
                "--bind-address-hard-fail is ignored, as --config is given; set bindAddressHardFail in that \
                 file instead",
                "--metrics-bind-address is ignored, as --config is given; set metricsBindAddress in that \
                 file instead",
            ]
        );
        let own = settled(
            &["--config=config.conf", "--sync-period=1s", "--node=n"],
            Some(file),
        );
        assert_eq!(
            (own.sync_period, own.node.as_str()),
            (Duration::from_secs(1), "n")
        );
    }

    #[test]
    fn flags_without_a_file_are_followed() {
        let config = settled(
            &[
                "--bind-address=::",
                "--healthz-bind-address=",
                "--bind-address-hard-fail",
                "--feature-gates=AllowServiceExternalIPs=false",
                "--proxy-mode=ipvs",
                "--ipvs-sync-period=5s",
            ],
            None,
        );

        assert_eq!(listen(&config), ["", "[::1]:10249"]);
        assert_eq!(config.sync_period, Duration::from_secs(5));
        assert!(config.bind_hard_fail && !config.external_ips);
    }

    #[test]
    fn every_flag_of_kube_proxy_is_accepted() {
        for setting in SETTINGS.iter().filter(|setting| !setting.flag.is_empty()) {
            let value = match setting.kind {
                Kind::Text if setting.field == "logging.format" => "text",
                Kind::Text | Kind::List => "x",
                Kind::Flag | Kind::On => "true",
                Kind::Number => "1",
                Kind::Span => "1s",
                Kind::Gates => "A=true",
            };
            let flag = format!("--{}={value}", setting.flag);
            let args = Args::try_parse_from(["run", &flag]);
            let _given = of_flags(&args.unwrap_or_else(|error| panic!("{error}")));
        }
        let bare = parse(&["--masquerade-all", "--cleanup", "-v", "4"]);
        assert!(bare.kube_proxy.cleanup);
        assert_eq!(of_flags(&bare).log_level(), Some("debug"));
        let only_flags: Vec<_> = parse(&["--healthz-port=1"])
            .kube_proxy
            .flags
            .meaningless()
            .collect();
        assert_eq!(
            only_flags,
            [
                "--healthz-port has no meaning here: kube-proxy has deprecated it; use --healthz-bind-address"
            ]
        );
    }

    #[test]
    fn what_cannot_be_followed_is_named_with_its_place() {
        let file = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                    metricsBindAddress: nowhere\n";
        let given = Given::parse(&PathBuf::from("config.conf"), file).unwrap();
        let watched = Watched {
            path: "config.conf".into(),
            text: file.to_owned(),
        };
        let error = settle(parse(&[]), Given::default(), Some((given, watched))).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("config.conf:3: metricsBindAddress: \"nowhere\""),
            "{error:#}"
        );

        let flags = parse(&["--healthz-bind-address=nowhere"]);
        let error = settle(flags, Given::default(), None).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("--healthz-bind-address: \"nowhere\""),
            "{error:#}"
        );
        let nameless = settle(parse(&["--node= "]), Given::default(), None).unwrap_err();
        assert!(
            nameless.to_string().contains("give --node NAME"),
            "{nameless}"
        );
    }
}
