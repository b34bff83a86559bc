//! What a run was told by its command line: plain values, passed in. The environment is read here alone.

use std::{
    env,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use k8s_openapi::jiff::SignedDuration;

use crate::{source::kube::access::Access, tables::set::Capacities, vitals::server::Listen};

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

/// kube-proxy's ports, and where they are served unless told otherwise.
pub const HEALTHZ_ADDRESS: &str = "0.0.0.0:10256";
pub const HEALTHZ_PORT: u16 = 10256;
pub const METRICS_ADDRESS: &str = "127.0.0.1:10249";
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
