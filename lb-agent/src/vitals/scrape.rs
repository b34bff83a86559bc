//! What others count than the agent's loop (the kernel, the watches, the process): read when somebody
//! asks.

use std::{
    array,
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use lb_common::tables::{SCHEMA, Stats};
use prometheus::{
    Registry,
    core::{Collector, Desc},
    proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType},
};
use tracing::warn;

use super::{metrics::names, process};
use crate::{
    datapath::{BpfMaps, Pins},
    source::kube::watches::{WatchState, Watches},
};

/// Name, help and kind of a metric.
pub(super) type About = (&'static str, &'static str, MetricType);

pub(super) fn register(registry: &Registry, pins: &Pins, watches: &Arc<OnceLock<Arc<Watches>>>) {
    let maps = pins.clone();
    read_together(
        registry,
        SERVICES.map(|(about, _)| about),
        &["namespace", "service", "port"],
        move || services(&maps),
    );
    let pins = pins.clone();
    read(registry, DECISIONS, &["reason"], move || decisions(&pins));
    read(registry, BUILD_INFO, &["version", "schema"], build_info);
    for (about, of) in WATCHES {
        let watches = Arc::clone(watches);
        read(registry, about, &["kind"], move || {
            let states = watches
                .get()
                .into_iter()
                .flat_map(|watches| watches.states());
            let sample = |state: WatchState| (vec![state.kind.to_string()], of(&state));
            states.map(sample).collect()
        });
    }
    for (about, of) in process::FIGURES {
        read(registry, about, &[], move || {
            of().map(|value| (Vec::new(), value)).into_iter().collect()
        });
    }
}

fn read(
    registry: &Registry,
    about: About,
    labels: &'static [&'static str],
    read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
) {
    let one = |(labels, value)| (labels, [value]);
    read_together(registry, [about], labels, move || {
        read().into_iter().map(one).collect()
    });
}

/// Metrics with the same labels that come from one reading.
fn read_together<const N: usize>(
    registry: &Registry,
    abouts: [About; N],
    labels: &'static [&'static str],
    read: impl Fn() -> Vec<(Vec<String>, [f64; N])> + Send + Sync + 'static,
) {
    let variable: Vec<String> = labels.iter().map(ToString::to_string).collect();
    let collector = ReadAtScrape {
        families: abouts.map(|(name, help, kind)| {
            let desc = Desc::new(
                name.to_owned(),
                help.to_owned(),
                variable.clone(),
                [].into(),
            );
            (desc.expect("names and labels are valid"), kind)
        }),
        labels,
        read,
    };
    let registered = registry.register(Box::new(collector));
    registered.expect("each metric has a name of its own");
}

/// The values of the labels, and the value.
type Sample = (Vec<String>, f64);

/// Metrics that others count.
struct ReadAtScrape<F, const N: usize> {
    families: [(Desc, MetricType); N],
    labels: &'static [&'static str],
    read: F,
}

impl<F, const N: usize> Collector for ReadAtScrape<F, N>
where
    F: Fn() -> Vec<(Vec<String>, [f64; N])> + Send + Sync,
{
    fn desc(&self) -> Vec<&Desc> {
        self.families.iter().map(|(desc, _)| desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let samples = (self.read)();
        let family = |(at, (desc, kind)): (usize, &(Desc, MetricType))| {
            let mut family = MetricFamily::default();
            family.set_name(desc.fq_name.clone());
            family.set_help(desc.help.clone());
            family.set_field_type(*kind);
            let metrics = samples.iter();
            let metric = |(labels, values): &(Vec<String>, [f64; N])| {
                metric(self.labels, labels, *kind, values[at])
            };
            family.set_metric(metrics.map(metric).collect());
            family
        };
        self.families.iter().enumerate().map(family).collect()
    }
}

fn metric(names: &[&str], labels: &[String], kind: MetricType, value: f64) -> Metric {
    let pair = |(name, value): (&&str, &String)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value.clone());
        pair
    };
    let mut metric = Metric::from_label(names.iter().zip(labels).map(pair).collect());
    match kind {
        MetricType::COUNTER => {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        MetricType::GAUGE | MetricType::HISTOGRAM | MetricType::SUMMARY | MetricType::UNTYPED => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
    }
    metric
}

type OfStats = (About, fn(&Stats) -> u64);

const SERVICES: [OfStats; 5] = [
    (
        (
            names::SERVICE_CONNECTIONS,
            "TCP connections begun, and UDP sockets that were given a backend",
            MetricType::COUNTER,
        ),
        |stats| stats.connections,
    ),
    (
        (
            names::SERVICE_FAILURES,
            "TCP connections that ended before they were established",
            MetricType::COUNTER,
        ),
        |stats| stats.failures,
    ),
    (
        (
            names::SERVICE_ACTIVE,
            "Connections that have not ended",
            MetricType::GAUGE,
        ),
        |stats| stats.active,
    ),
    (
        (
            names::SERVICE_SENT,
            "Bytes to backends, of TCP connections that have ended",
            MetricType::COUNTER,
        ),
        |stats| stats.bytes_out,
    ),
    (
        (
            names::SERVICE_RECEIVED,
            "Bytes from backends, of TCP connections that have ended",
            MetricType::COUNTER,
        ),
        |stats| stats.bytes_in,
    ),
];

/// Of the Service ports that clients on this node have used, both families together: a node uses few of
/// the cluster's Services, and each has five series.
fn services(pins: &Pins) -> Vec<(Vec<String>, [f64; SERVICES.len()])> {
    let services = BpfMaps::pinned_statistics(pins).unwrap_or_else(|error| {
        warn!("no figures of Services for Prometheus: {error:#}");
        None
    });
    let mut by_labels: BTreeMap<Vec<String>, Stats> = BTreeMap::new();
    let used = services.into_iter().flatten();
    for service in used.filter(|service| service.total.connections > 0) {
        let name = service.id.service;
        let labels = vec![name.namespace, name.name, service.id.port];
        *by_labels.entry(labels).or_default() += service.total;
    }
    let values = |stats: Stats| array::from_fn(|at| float(SERVICES[at].1(&stats)));
    by_labels
        .into_iter()
        .map(|(labels, stats)| (labels, values(stats)))
        .collect()
}

const DECISIONS: About = (
    names::DECISIONS,
    "What the programs did to calls, by reason",
    MetricType::COUNTER,
);

/// None before the maps are there.
fn decisions(pins: &Pins) -> Vec<Sample> {
    let counts = BpfMaps::pinned_counters(pins).unwrap_or_else(|error| {
        warn!("no counters for Prometheus: {error:#}");
        None
    });
    let counts = counts.into_iter().flatten();
    let sample = |(reason, count): (&str, u64)| (vec![reason.to_owned()], float(count));
    counts.map(sample).collect()
}

const BUILD_INFO: About = (
    names::BUILD_INFO,
    "1; the version, and that of the maps' layout",
    MetricType::GAUGE,
);

fn build_info() -> Vec<Sample> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    vec![(vec![version, SCHEMA.to_string()], 1.0)]
}

type OfWatch = (About, fn(&WatchState) -> f64);

const WATCHES: [OfWatch; 4] = [
    (
        (
            names::WATCH_ANSWERING,
            "1 while the API server answers the watch",
            MetricType::GAUGE,
        ),
        |state| f64::from(u8::from(state.answering)),
    ),
    (
        (
            names::WATCH_HEARD,
            "When the watch last told of an object",
            MetricType::GAUGE,
        ),
        |state| float(state.heard_secs),
    ),
    (
        (names::WATCH_LISTS, "Complete lists", MetricType::COUNTER),
        |state| float(state.lists),
    ),
    (
        (
            names::WATCH_FAILURES,
            "Tries that the API server did not answer, or refused",
            MetricType::COUNTER,
        ),
        |state| float(state.failures),
    ),
];

/// Prometheus has no other numbers; beyond 2⁵³ it rounds.
#[expect(clippy::cast_precision_loss, reason = "all Prometheus has")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}
