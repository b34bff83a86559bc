//! What others count than the agent's loop (the kernel, the watches, the process): read when somebody
//! asks.

use std::sync::{Arc, OnceLock};

use lb_common::tables::SCHEMA;
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
    (name, help, kind): About,
    labels: &'static [&'static str],
    read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
) {
    let variable = labels.iter().map(ToString::to_string).collect();
    let desc = Desc::new(name.to_owned(), help.to_owned(), variable, [].into());
    let collector = ReadAtScrape {
        desc: desc.expect("names and labels are valid"),
        kind,
        labels,
        read,
    };
    let registered = registry.register(Box::new(collector));
    registered.expect("each metric has a name of its own");
}

/// The values of the labels, and the value.
type Sample = (Vec<String>, f64);

/// A metric that others count.
struct ReadAtScrape<F> {
    desc: Desc,
    kind: MetricType,
    labels: &'static [&'static str],
    read: F,
}

impl<F: Fn() -> Vec<Sample> + Send + Sync> Collector for ReadAtScrape<F> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let samples = (self.read)();
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(self.kind);
        family.set_metric(
            samples
                .into_iter()
                .map(|sample| self.metric(sample))
                .collect(),
        );
        vec![family]
    }
}

impl<F> ReadAtScrape<F> {
    fn metric(&self, (labels, value): Sample) -> Metric {
        let pair = |(name, value): (&&str, String)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value);
            pair
        };
        let pairs = self.labels.iter().zip(labels).map(pair).collect();
        let mut metric = Metric::from_label(pairs);
        match self.kind {
            MetricType::COUNTER => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            MetricType::GAUGE
            | MetricType::HISTOGRAM
            | MetricType::SUMMARY
            | MetricType::UNTYPED => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        metric
    }
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
