//! What a run was told by its command line: plain values, passed in. The environment is read here alone.

pub mod given;
pub mod settings;
pub mod watched;

use std::{
    env,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use glob::Pattern;
use k8s_openapi::jiff::SignedDuration;
use serde_json::{Value, json};

use self::{given::Given, watched::Watched};
use crate::{
    datapath::{
        interface::Rule,
        packets::{self, Way},
    },
    model::service::Cidr,
    source::kube::access::Access,
    tables::set::Capacities,
    vitals::server::Listen,
};

/// Where pins lie unless told otherwise.
pub const PIN_PATH: &str = "/sys/fs/bpf/nearhop";

/// How one agent runs.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: Source,
    pub node: String,
    /// Overrides the zone of the Node object.
    pub zone: Option<String>,
    /// `None`: the root of the hierarchy.
    pub cgroup: Option<PathBuf>,
    pub pin_path: PathBuf,
    pub capacities: GivenCapacities,
    pub listen: Listen,
    /// An address of `listen` that cannot be had ends the agent, instead of being tried again.
    pub bind_hard_fail: bool,
    /// kube-proxy's sync period: a change that waits for two of them makes the agent unhealthy.
    pub sync_period: Duration,
    /// At which interfaces packets are looked at, and how.
    pub packets: packets::Settings,
    /// Which clients are hidden behind this node.
    pub local: Local,
    /// Whether `spec.externalIPs` are served.
    pub external_ips: bool,
    /// kube-proxy's settings, followed or not.
    pub given: Given,
    /// The file that they came from, whose change ends the agent.
    pub watched: Option<Watched>,
}

impl Config {
    /// What is in force, for `/configz`: kube-proxy's fields as they were set or are followed, and ours.
    #[must_use]
    pub fn configz(&self) -> Value {
        let address = |at: Option<SocketAddr>| at.map_or_else(String::new, |at| at.to_string());
        let mut fields = self.given.as_fields();
        fields["apiVersion"] = given::API_VERSION.into();
        fields["kind"] = given::KIND.into();
        fields["hostnameOverride"] = self.node.clone().into();
        fields["healthzBindAddress"] = address(self.listen.healthz).into();
        fields["metricsBindAddress"] = address(self.listen.metrics).into();
        fields["bindAddressHardFail"] = self.bind_hard_fail.into();
        fields["featureGates"][given::EXTERNAL_IPS] = self.external_ips.into();
        let patterns = |of: fn(&Rule) -> &Vec<Pattern>| {
            let rule = self.packets.rule.as_ref();
            rule.map(|rule| of(rule).iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let (objects, access) = match &self.source {
            Source::Folder(path) => (Some(path), None),
            Source::ApiServer(access) => (None, Some(access)),
        };
        json!({
            "kubeproxy.config.k8s.io": fields,
            "nearhop.io": {
                "node": self.node,
                "zone": self.zone,
                "objects": objects,
                "kubeconfig": access.and_then(|access| access.kubeconfig.as_ref()),
                "apiServer": access.and_then(|access| access.api_server.as_ref()),
                "cgroup": self.cgroup,
                "pinPath": self.pin_path,
                "packetPath": self.packets.rule.is_some(),
                "devices": patterns(|rule| &rule.only),
                "excludeDevices": patterns(|rule| &rule.except),
                "packetAttach": self.packets.way.map_or("auto", Way::name),
                "syncPeriodSeconds": self.sync_period.as_secs_f64(),
                "configFile": self.watched.as_ref().map(|file| &file.path),
            },
        })
    }
}

/// Which clients of a ClusterIP are hidden behind this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// All.
    pub masquerade_all: bool,
    pub detect: Detect,
}

/// How pods are told from others, who are hidden: kube-proxy's modes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detect {
    /// Pods have addresses of these ranges; none: nobody is told from pods.
    Ranges(Vec<Cidr>),
    /// The ranges are those of the Node.
    NodeRanges,
    /// Pods' packets come in by ports of this bridge.
    Bridge(String),
    /// Pods' interfaces have names that begin so.
    Prefix(String),
}

/// What the kernel calls this host.
#[must_use]
pub fn host_name() -> String {
    let system = rustix::system::uname();
    system.nodename().to_string_lossy().into_owned()
}

/// Where objects come from.
#[derive(Clone, Debug)]
pub enum Source {
    Folder(PathBuf),
    ApiServer(Access),
}

/// Capacities by hand, where given.
#[derive(Clone, Copy, Debug, Default)]
pub struct GivenCapacities {
    pub frontends: Option<u32>,
    pub services: Option<u32>,
    pub slots: Option<u32>,
    pub backends: Option<u32>,
}

impl GivenCapacities {
    /// The given ones, and `by_need` for the others.
    #[must_use]
    pub fn over(self, by_need: Capacities) -> Capacities {
        Capacities {
            frontends: self.frontends.unwrap_or(by_need.frontends),
            services: self.services.unwrap_or(by_need.services),
            slots: self.slots.unwrap_or(by_need.slots),
            backends: self.backends.unwrap_or(by_need.backends),
        }
    }

    /// Each by its flag.
    #[must_use]
    pub fn flags(self) -> [(&'static str, Option<u32>); 4] {
        [
            ("--capacity-frontends", self.frontends),
            ("--capacity-services", self.services),
            ("--capacity-slots", self.slots),
            ("--capacity-backends", self.backends),
        ]
    }
}

/// kube-proxy's default.
pub const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// kube-proxy's ports, and where they are served unless told otherwise.
pub const HEALTHZ_ADDRESS: &str = "0.0.0.0:10256";
pub const HEALTHZ_PORT: u16 = 10256;
pub const METRICS_PORT: u16 = 10249;

/// An address to serve on, with this port unless it has one itself; nothing is nowhere.
///
/// # Errors
///
/// It is neither.
pub fn bind_address(text: &str, port: u16) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let with_port = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
    let address = with_port.or_else(|_| text.parse());
    address.map(Some).map_err(|_| {
        format!(
            "{text:?} is no address to serve on: write ADDRESS:PORT, as in {HEALTHZ_ADDRESS} or \
             [::]:{port}, or nothing at all to not serve"
        )
    })
}

/// A span of time as Go writes it: `30s`, `1m30s`, `0s`.
///
/// # Errors
///
/// It is none, or negative.
pub fn duration(text: &str) -> Result<Duration, String> {
    let span = text.parse::<SignedDuration>().ok();
    let span = span.and_then(|span| Duration::try_from(span).ok());
    span.ok_or_else(|| format!("{text:?} is no span of time: write it as in 30s or 1m30s"))
}

/// `info`, without what the watches log for each try: the agent says it once, as a problem.
const LOG: &str = "info,kube_runtime=off,kube_client=off";

/// What to log, in the syntax of `RUST_LOG`: the flag, else the variable, else `info` for our own words.
#[must_use]
pub fn log_filter(flag: Option<&str>) -> String {
    let variable = || env::var("RUST_LOG").ok();
    flag.map(str::to_owned)
        .or_else(variable)
        .unwrap_or_else(|| LOG.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_port_or_the_default_one_or_is_none() {
        for (text, expected) in [
            ("0.0.0.0:10256", Ok(Some("0.0.0.0:10256"))),
            ("192.0.2.1", Ok(Some("192.0.2.1:7"))),
            ("[::1]:10249", Ok(Some("[::1]:10249"))),
            ("::", Ok(Some("[::]:7"))),
            ("", Ok(None)),
            ("localhost:10249", Err(())),
            (":10249", Err(())),
            ("192.0.2.1:", Err(())),
            ("192.0.2.1:65536", Err(())),
        ] {
            let read = bind_address(text, 7).map_err(|why| assert!(why.contains(text), "{why}"));
            let read = read.map(|read| read.map(|address| address.to_string()));

            assert_eq!(
                read,
                expected.map(|some| some.map(str::to_owned)),
                "{text:?}"
            );
        }
    }

    #[test]
    fn spans_of_time_are_as_go_writes_them() {
        for (text, millis) in [
            ("30s", Some(30_000)),
            ("1m30s", Some(90_000)),
            ("15m0s", Some(900_000)),
            ("24h0m0s", Some(86_400_000)),
            ("0s", Some(0)),
            ("1.5s", Some(1_500)),
            ("100ms", Some(100)),
            ("-1s", None),
            ("30", None),
            ("", None),
            ("soon", None),
        ] {
            let read = duration(text).ok().map(|span| span.as_millis());

            assert_eq!(read, millis, "{text:?}");
        }
    }
}
