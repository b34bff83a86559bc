//! What Prometheus reads: kube-proxy's metrics where they mean the same, and our own.
//!
//! The loop counts into atomics as it goes; what others count is in `scrape`.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, HistogramOpts, HistogramVec, Opts, Registry, TextEncoder,
    core::Collector,
};

use super::{
    health::Probe,
    scrape::{self, float},
};
use crate::{
    datapath::{Pins, packets::Packets, store::MapStore},
    model::{endpoint::Moment, name::Family, object::Kind, service_port::Traffic},
    source::{Batch, kube::watches::Watches},
    sync::{Engine, SyncReport},
};

/// Every metric. `docs/operations.md` says what each means.
pub mod names {
    pub const SYNC_DURATION: &str = "kubeproxy_sync_proxy_rules_duration_seconds";
    pub const SYNC_LAST: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
    pub const QUEUED_LAST: &str = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
    pub const PROGRAMMING: &str = "kubeproxy_network_programming_duration_seconds";
    pub const ENDPOINT_CHANGES: &str = "kubeproxy_sync_proxy_rules_endpoint_changes_total";
    pub const ENDPOINT_CHANGES_PENDING: &str =
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending";
    pub const SERVICE_CHANGES: &str = "kubeproxy_sync_proxy_rules_service_changes_total";
    pub const SERVICE_CHANGES_PENDING: &str = "kubeproxy_sync_proxy_rules_service_changes_pending";
    pub const NO_LOCAL_ENDPOINTS: &str = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    pub const HEALTHZ: &str = "kubeproxy_proxy_healthz_total";
    pub const LIVEZ: &str = "kubeproxy_proxy_livez_total";

    pub const DECISIONS: &str = "nearhop_decisions_total";
    pub const SERVICE_CONNECTIONS: &str = "nearhop_service_connections_total";
    pub const SERVICE_FAILURES: &str = "nearhop_service_failures_total";
    pub const SERVICE_ACTIVE: &str = "nearhop_service_active_connections";
    pub const SERVICE_SENT: &str = "nearhop_service_sent_bytes_total";
    pub const SERVICE_RECEIVED: &str = "nearhop_service_received_bytes_total";
    pub const READY: &str = "nearhop_ready";
    pub const SYNCS: &str = "nearhop_syncs_total";
    pub const SYNC_OPERATIONS: &str = "nearhop_sync_operations_total";
    pub const PROBLEMS: &str = "nearhop_problems";
    pub const SERVICE_PORTS: &str = "nearhop_service_ports";
    pub const WITHOUT_ROOM: &str = "nearhop_service_ports_without_room";
    pub const MAP_ENTRIES: &str = "nearhop_map_entries";
    pub const MAP_CAPACITY: &str = "nearhop_map_capacity";
    pub const MAP_MOVES: &str = "nearhop_map_moves_total";
    pub const INTERFACES: &str = "nearhop_attached_interfaces";
    pub const INTERFACE_FAILURES: &str = "nearhop_interface_attach_failures_total";
    pub const WATCH_ANSWERING: &str = "nearhop_watch_answering";
    pub const WATCH_HEARD: &str = "nearhop_watch_last_object_timestamp_seconds";
    pub const WATCH_LISTS: &str = "nearhop_watch_lists_total";
    pub const WATCH_FAILURES: &str = "nearhop_watch_failures_total";
    pub const BUILD_INFO: &str = "nearhop_build_info";

    pub const PROCESS_CPU: &str = "process_cpu_seconds_total";
    pub const PROCESS_START: &str = "process_start_time_seconds";
    pub const PROCESS_VIRTUAL: &str = "process_virtual_memory_bytes";
    pub const PROCESS_RESIDENT: &str = "process_resident_memory_bytes";
    pub const PROCESS_FDS: &str = "process_open_fds";
    pub const PROCESS_FDS_MAX: &str = "process_max_fds";
}

const IP_FAMILY: &str = "ip_family";

pub struct Metrics {
    registry: Registry,
    /// What happened before is no measure of this agent.
    started: SystemTime,
    sync_duration: HistogramVec,
    sync_last: GaugeVec,
    queued_last: GaugeVec,
    programming: HistogramVec,
    endpoints: Changes,
    services: Changes,
    no_local_endpoints: GaugeVec,
    healthz: CounterVec,
    livez: CounterVec,
    ready: Gauge,
    syncs: CounterVec,
    sync_operations: Counter,
    problems: Gauge,
    service_ports: Gauge,
    without_room: Gauge,
    map_entries: GaugeVec,
    map_capacity: GaugeVec,
    map_moves: CounterVec,
    interfaces: Gauge,
    interface_failures: Counter,
    watches: Arc<OnceLock<Arc<Watches>>>,
}

/// Changes of one kind of object.
struct Changes {
    total: Counter,
    pending: Gauge,
}

/// What one sync came to.
pub struct Outcome<'a> {
    pub report: &'a SyncReport,
    pub took: Duration,
    pub failed: bool,
    /// All that the operator should look at.
    pub problems: usize,
    pub now: SystemTime,
}

impl Metrics {
    /// What the programs count lies in a map below `pins`.
    #[must_use]
    pub fn new(pins: &Pins) -> Self {
        let registry = Registry::new();
        let make = Make(&registry);
        let sync_duration = make.histograms(
            names::SYNC_DURATION,
            "Time that one sync took",
            sync_buckets(),
        );
        let programming = make.histograms(
            names::PROGRAMMING,
            "Time from the change of a Pod or Service to the sync that programmed it",
            programming_buckets(),
        );
        let watches = Arc::default();
        scrape::register(&registry, pins, &watches);
        Self {
            started: SystemTime::now(),
            sync_duration,
            sync_last: make.gauges(names::SYNC_LAST, "When a sync last succeeded", &[IP_FAMILY]),
            queued_last: make.gauges(
                names::QUEUED_LAST,
                "When something was last queued to be synced",
                &[IP_FAMILY],
            ),
            programming,
            endpoints: Changes {
                total: make.counter(names::ENDPOINT_CHANGES, "Changes of EndpointSlices"),
                pending: make.gauge(
                    names::ENDPOINT_CHANGES_PENDING,
                    "Changes of EndpointSlices that are not synced yet",
                ),
            },
            services: Changes {
                total: make.counter(names::SERVICE_CHANGES, "Changes of Services"),
                pending: make.gauge(
                    names::SERVICE_CHANGES_PENDING,
                    "Changes of Services that are not synced yet",
                ),
            },
            no_local_endpoints: make.gauges(
                names::NO_LOCAL_ENDPOINTS,
                "Service ports with a Local traffic policy, endpoints, and none on this node",
                &["traffic_policy", IP_FAMILY],
            ),
            healthz: make.answers(names::HEALTHZ, "Answers of /healthz"),
            livez: make.answers(names::LIVEZ, "Answers of /livez"),
            ready: make.gauge(
                names::READY,
                "1 once the tables were complete and the programs attached",
            ),
            syncs: make.counters(names::SYNCS, "Syncs", &["result"]),
            sync_operations: make.counter(names::SYNC_OPERATIONS, "Map operations of all syncs"),
            problems: make.gauge(
                names::PROBLEMS,
                "What an operator should look at; the log and the command status name it",
            ),
            service_ports: make.gauge(
                names::SERVICE_PORTS,
                "Service ports that are served, each family for itself",
            ),
            without_room: make.gauge(
                names::WITHOUT_ROOM,
                "Service ports that found no room in a map and are served as they were",
            ),
            map_entries: make.gauges(names::MAP_ENTRIES, "Cells in use", &["map"]),
            map_capacity: make.gauges(names::MAP_CAPACITY, "Cells that there are", &["map"]),
            map_moves: make.counters(
                names::MAP_MOVES,
                "How often links moved to other maps, since the agent's start",
                &["cause"],
            ),
            interfaces: make.gauge(
                names::INTERFACES,
                "Interfaces at which the packet programs run",
            ),
            interface_failures: make.counter(
                names::INTERFACE_FAILURES,
                "How often the packet programs could not be attached to an interface",
            ),
            watches,
            registry,
        }
    }

    /// The watches to read when somebody asks.
    pub fn has_watches(&self, watches: &Arc<Watches>) {
        self.watches.get_or_init(|| Arc::clone(watches));
    }

    /// What came is to be programmed.
    pub fn queued(&self, now: SystemTime) {
        set_for_both(&self.queued_last, seconds(now));
    }

    /// Something came from the source.
    pub fn heard(&self, batch: &Batch) {
        for object in &batch.apply {
            self.changed(object.key().kind);
        }
        for key in &batch.delete {
            self.changed(key.kind);
        }
    }

    fn changed(&self, kind: Kind) {
        let changes = match kind {
            Kind::EndpointSlice => &self.endpoints,
            Kind::Service => &self.services,
            Kind::Node | Kind::ServiceCidr => return,
        };
        changes.total.inc();
        changes.pending.inc();
    }

    /// Links moved to larger maps so often, and to maps of another layout.
    pub fn moved(&self, growths: u32, takeovers: u32) {
        for (cause, count) in [("growth", growths), ("layout", takeovers)] {
            let moves = self.map_moves.with_label_values(&[cause]);
            moves.inc_by(float(count.into()) - moves.get());
        }
    }

    /// So many interfaces run the packet programs, and so often one could not.
    pub fn attached(&self, packets: &Packets) {
        self.interfaces.set(float(packets.attached() as u64));
        let failures = &self.interface_failures;
        failures.inc_by(float(packets.failures()) - failures.get());
    }

    /// What was queued was tried to be programmed.
    pub fn synced<S: MapStore>(&self, engine: &mut Engine<S>, outcome: &Outcome<'_>) {
        for family in Family::BOTH {
            let duration = self.sync_duration.with_label_values(&[family.to_string()]);
            duration.observe(outcome.took.as_secs_f64());
        }
        let result = if outcome.failed { "failure" } else { "success" };
        self.syncs.with_label_values(&[result]).inc();
        self.sync_operations.inc_by(float(outcome.report.ops));
        self.problems.set(float(outcome.problems as u64));
        if outcome.failed {
            return;
        }
        set_for_both(&self.sync_last, seconds(outcome.now));
        self.endpoints.pending.set(0.0);
        self.services.pending.set(0.0);
        self.ready.set(1.0);
        for (family, trigger) in engine.take_triggers() {
            self.observe_programming(family, trigger, outcome.now);
        }
        self.show_tables(engine);
        self.without_room
            .set(float(outcome.report.full.len() as u64));
    }

    /// As kube-proxy does: what was changed before the agent started did not wait for it.
    fn observe_programming(&self, family: Family, trigger: Moment, now: SystemTime) {
        let changed = UNIX_EPOCH + Duration::from_nanos(trigger.0);
        if changed > self.started {
            // A clock of the control plane that is ahead of ours is no negative time.
            let took = now.duration_since(changed).unwrap_or_default();
            let programming = self.programming.with_label_values(&[family.to_string()]);
            programming.observe(took.as_secs_f64());
        }
    }

    fn show_tables<S: MapStore>(&self, engine: &Engine<S>) {
        let (wanted, programmed) = (engine.wanted(), engine.programmed());
        for traffic in Traffic::BOTH {
            for family in Family::BOTH {
                let labels = [traffic.to_string(), family.to_string()];
                let lacking = wanted.without_local(traffic, family);
                let lacking = float(lacking as u64);
                self.no_local_endpoints
                    .with_label_values(&labels)
                    .set(lacking);
            }
        }
        self.service_ports
            .set(float(programmed.ports().len() as u64));
        for (gauges, cells) in [
            (&self.map_entries, programmed.used()),
            (&self.map_capacity, programmed.capacities()),
        ] {
            for (map, count) in cells.by_map() {
                gauges.with_label_values(&[map]).set(float(count.into()));
            }
        }
    }

    /// A probe was answered with this code.
    pub(super) fn answered(&self, probe: Probe, code: u16) {
        let answers = match probe {
            Probe::Healthz => &self.healthz,
            Probe::Livez => &self.livez,
        };
        answers.with_label_values(&[code.to_string()]).inc();
    }

    /// All of it, in Prometheus' text format.
    #[must_use]
    pub fn text(&self) -> String {
        let families = self.registry.gather();
        let text = TextEncoder::new().encode_to_string(&families);
        text.expect("families that were gathered are whole")
    }
}

/// kube-proxy's: 1 ms, doubled fourteen times.
fn sync_buckets() -> Vec<f64> {
    (0..15)
        .map(|doubled| 0.001 * f64::from(1 << doubled))
        .collect()
}

/// kube-proxy's: seconds up to a minute, then ever wider up to five.
fn programming_buckets() -> Vec<f64> {
    let seconds = (1..60)
        .chain((60..120).step_by(5))
        .chain((120..=300).step_by(30));
    [0.25, 0.5]
        .into_iter()
        .chain(seconds.map(f64::from))
        .collect()
}

fn set_for_both(gauges: &GaugeVec, value: f64) {
    for family in Family::BOTH {
        gauges.with_label_values(&[family.to_string()]).set(value);
    }
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// Makes metrics and registers them.
struct Make<'a>(&'a Registry);

impl Make<'_> {
    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(Opts::new(name, help), labels))
    }

    fn counter(&self, name: &str, help: &str) -> Counter {
        self.register(Counter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        self.register(CounterVec::new(Opts::new(name, help), labels))
    }

    /// Counted from 0, so that the first failure is an increase.
    fn answers(&self, name: &str, help: &str) -> CounterVec {
        let answers = self.counters(name, help, &["code"]);
        for code in ["200", "503"] {
            answers.with_label_values(&[code]);
        }
        answers
    }

    /// One for each family.
    fn histograms(&self, name: &str, help: &str, buckets: Vec<f64>) -> HistogramVec {
        let opts = HistogramOpts::new(name, help).buckets(buckets);
        self.register(HistogramVec::new(opts, &[IP_FAMILY]))
    }

    fn register<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect("names and labels are valid");
        let registered = self.0.register(Box::new(metric.clone()));
        registered.expect("each metric has a name of its own");
        metric
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::{
        datapath::fake::FakeMaps,
        model::{ObjectKey, state::Settings},
        source::document,
        sync::Wanted,
        tables::set::Capacities,
        vitals::health::Probe,
    };

    const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels: {kubernetes.io/service-name: web}
  annotations: {endpoints.kubernetes.io/last-change-trigger-time: 'TRIGGER'}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.1.1]}]
";
    const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ipFamilies: [IPv4]
  internalTrafficPolicy: Local
  ports: [{name: http, port: 80}]
";

    /// An agent without a kernel, whose maps lie nowhere.
    struct Agent {
        metrics: Metrics,
        engine: Engine<FakeMaps>,
    }

    impl Agent {
        fn new() -> Self {
            let wanted = Wanted::new(Settings {
                node: "n1".to_owned(),
                zone: None,
                external_ips: true,
            });
            Self {
                metrics: Metrics::new(&Pins::new("/nowhere")),
                engine: Engine::start(wanted, FakeMaps::new(Capacities::default())).unwrap(),
            }
        }

        fn queue(&mut self, batch: Batch) {
            self.metrics.heard(&batch);
            self.metrics.queued(at(1));
            self.engine.fold(batch);
        }

        fn sync(&mut self, failed: bool, now: SystemTime) {
            let mut report = SyncReport::default();
            self.engine.sync(&mut report).unwrap();
            let outcome = Outcome {
                report: &report,
                took: Duration::from_millis(3),
                failed,
                problems: 0,
                now,
            };
            self.metrics.synced(&mut self.engine, &outcome);
        }

        fn value(&self, series: &str) -> f64 {
            let text = self.metrics.text();
            let mut lines = text.lines();
            let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
            value
                .unwrap_or_else(|| panic!("no {series} in\n{text}"))
                .parse()
                .unwrap()
        }
    }

    fn at(secs: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn batch(yaml: &[&str]) -> Batch {
        let contents = document::parse("web.yaml", &yaml.join("---")).unwrap();
        assert_eq!(contents.problems, []);
        Batch {
            apply: contents.objects.into_values().collect(),
            complete: true,
            ..Batch::default()
        }
    }

    #[test]
    fn changes_are_pending_until_a_sync_succeeds() {
        let mut agent = Agent::new();
        let pending = |agent: &Agent| {
            [
                names::SERVICE_CHANGES_PENDING,
                names::ENDPOINT_CHANGES_PENDING,
            ]
            .map(|name| agent.value(name))
        };
        agent.queue(batch(&[WEB, SLICE]));
        agent.queue(batch(&[SLICE]));
        assert_eq!(pending(&agent), [1.0, 2.0]);

        agent.sync(true, at(2));
        assert_eq!(pending(&agent), [1.0, 2.0]);
        agent.sync(false, at(3));
        assert_eq!(pending(&agent), [0.0, 0.0]);

        agent.queue(Batch {
            delete: vec![ObjectKey::new(Kind::EndpointSlice, "default", "web-1")],
            ..Batch::default()
        });
        assert_eq!(pending(&agent), [0.0, 1.0]);
        assert_eq!(agent.value(names::SERVICE_CHANGES), 1.0);
        assert_eq!(agent.value(names::ENDPOINT_CHANGES), 3.0);
    }

    #[test]
    fn a_sync_is_counted_and_shows_what_it_left() {
        let mut agent = Agent::new();
        agent.queue(batch(&[WEB, SLICE]));
        agent.sync(true, at(2));
        assert_eq!(agent.value(names::READY), 0.0);
        agent.sync(false, at(3));

        for (series, expected) in [
            ("nearhop_syncs_total{result=\"success\"}", 1.0),
            ("nearhop_syncs_total{result=\"failure\"}", 1.0),
            ("nearhop_ready", 1.0),
            ("nearhop_service_ports", 1.0),
            ("nearhop_map_entries{map=\"FRONTENDS\"}", 2.0),
            ("nearhop_map_entries{map=\"SERVICES\"}", 1.0),
            ("nearhop_map_capacity{map=\"SERVICES\"}", 256.0),
            (
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total\
                 {ip_family=\"IPv4\",traffic_policy=\"internal\"}",
                1.0,
            ),
            (
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total\
                 {ip_family=\"IPv4\",traffic_policy=\"external\"}",
                0.0,
            ),
            (
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"}",
                1.0,
            ),
            (
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}",
                3.0,
            ),
            (
                "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.002\"}",
                0.0,
            ),
            (
                "kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.004\"}",
                2.0,
            ),
        ] {
            assert_eq!(agent.value(series), expected, "{series}");
        }
        assert!(agent.value(names::SYNC_OPERATIONS) > 0.0);
    }

    #[test]
    fn programming_is_measured_from_the_slices_trigger_if_that_is_younger_than_the_agent() {
        let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
        let sum = "kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv4\"}";
        let mut agent = Agent::new();
        let trigger = agent.metrics.started + Duration::from_secs(10);
        let written = k8s_openapi::jiff::Timestamp::try_from(trigger).unwrap();
        let slice = SLICE.replace("TRIGGER", &written.to_string());

        agent.queue(batch(&[
            WEB,
            &SLICE.replace("TRIGGER", "2026-01-01T00:00:00Z"),
        ]));
        agent.queue(batch(&[&slice.replace("10.0.1.1", "10.0.1.2")]));
        agent.sync(true, trigger);
        agent.sync(false, trigger + Duration::from_secs(7));

        assert_eq!(agent.value(count), 1.0);
        assert!(
            (agent.value(sum) - 7.0).abs() < 1e-6,
            "{}",
            agent.value(sum)
        );
        agent.sync(false, trigger + Duration::from_secs(20));
        assert_eq!(agent.value(count), 1.0);
    }

    #[test]
    fn buckets_are_kube_proxys() {
        let sync = sync_buckets();
        assert_eq!((sync.len(), sync[0], sync[14]), (15, 0.001, 16.384));
        let programming = programming_buckets();
        assert_eq!(programming.len(), 2 + 59 + 12 + 7);
        assert_eq!(programming[..4], [0.25, 0.5, 1.0, 2.0]);
        assert_eq!(programming[60..63], [59.0, 60.0, 65.0]);
        assert_eq!(programming[72..75], [115.0, 120.0, 150.0]);
        assert_eq!(programming.last(), Some(&300.0));
    }

    #[test]
    fn probes_are_counted_by_their_code() {
        let agent = Agent::new();
        agent.metrics.answered(Probe::Livez, 503);

        assert_eq!(
            agent.value("kubeproxy_proxy_livez_total{code=\"503\"}"),
            1.0
        );
        assert_eq!(
            agent.value("kubeproxy_proxy_livez_total{code=\"200\"}"),
            0.0
        );
        assert_eq!(
            agent.value("kubeproxy_proxy_healthz_total{code=\"503\"}"),
            0.0
        );
    }

    #[test]
    fn moves_to_other_maps_are_counted_by_their_cause() {
        let agent = Agent::new();
        for growths in [0, 2, 2, 3] {
            agent.metrics.moved(growths, 1);
        }

        let moves =
            |cause: &str| agent.value(&format!("{}{{cause=\"{cause}\"}}", names::MAP_MOVES));
        assert_eq!((moves("growth"), moves("layout")), (3.0, 1.0));
    }

    /// The rules of Prometheus' text format, 0.0.4.
    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut agent = Agent::new();
        agent.metrics.has_watches(&Arc::default());
        agent.queue(batch(&[WEB, SLICE]));
        agent.sync(false, at(3));
        let text = agent.metrics.text();

        let mut types = BTreeMap::new();
        let mut helped = BTreeSet::new();
        let mut series = BTreeSet::new();
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(!help.is_empty() && helped.insert(name), "{line}");
            } else if let Some(of_type) = line.strip_prefix("# TYPE ") {
                let (name, kind) = of_type.split_once(' ').unwrap();
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(types.insert(name, kind).is_none(), "{line}");
                assert!(helped.contains(name), "no help before {line}");
            } else {
                let (of, value) = line.rsplit_once(' ').unwrap();
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(series.insert(of), "twice: {line}");
                let name = of.split('{').next().unwrap();
                let valid = |c: char| c.is_ascii_lowercase() || c == '_';
                assert!(name.chars().all(valid), "{line}");
                let parts = ["_bucket", "_sum", "_count"];
                let histogram = parts.iter().find_map(|part| name.strip_suffix(part));
                let kind = types.get(name).or_else(|| types.get(histogram?));
                assert!(kind.is_some(), "no type before {line}");
                assert!(
                    kind != Some(&"counter") || name.ends_with("_total"),
                    "{line}"
                );
            }
        }
        assert!(types.len() >= 28, "{}", types.len());
        for kind in ["Service", "EndpointSlice", "Node", "ServiceCIDR"] {
            assert!(series.contains(&*format!("nearhop_watch_answering{{kind=\"{kind}\"}}")));
        }
    }
}
