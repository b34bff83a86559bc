//! What Prometheus clients tell of their process, under the names that they give it.

use std::fs;

use prometheus::proto::MetricType;
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

use super::{
    metrics::names,
    scrape::{About, float},
};

/// What each figure is, and how it is read; `None` where /proc does not tell.
pub(super) const FIGURES: [(About, fn() -> Option<f64>); 6] = [
    (
        (
            names::PROCESS_CPU,
            "Processor time that was spent, of user and system, in seconds",
            MetricType::COUNTER,
        ),
        || Some(seconds(stat(14)? + stat(15)?)),
    ),
    (
        (
            names::PROCESS_START,
            "When the process started, in seconds of Unix time",
            MetricType::GAUGE,
        ),
        || Some(float(booted()?) + seconds(stat(22)?)),
    ),
    (
        (
            names::PROCESS_VIRTUAL,
            "Size of the address space in bytes",
            MetricType::GAUGE,
        ),
        || stat(23).map(float),
    ),
    (
        (
            names::PROCESS_RESIDENT,
            "Memory in use in bytes",
            MetricType::GAUGE,
        ),
        || Some(float(stat(24)? * page_size() as u64)),
    ),
    (
        (
            names::PROCESS_FDS,
            "Open file descriptors",
            MetricType::GAUGE,
        ),
        || Some(float(fs::read_dir("/proc/self/fd").ok()?.count() as u64)),
    ),
    (
        (
            names::PROCESS_FDS_MAX,
            "How many file descriptors may be open",
            MetricType::GAUGE,
        ),
        || getrlimit(Resource::Nofile).current.map(float),
    ),
];

/// A field by its number in proc_pid_stat(5). The second one is a name, which may hold anything, so they
/// are counted from the end of it.
fn stat(field: usize) -> Option<u64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(field - 3)?.parse().ok()
}

fn seconds(ticks: u64) -> f64 {
    float(ticks) / float(clock_ticks_per_second())
}

/// Unix time in seconds.
fn booted() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let mut lines = stat.lines();
    lines.find_map(|line| line.strip_prefix("btime ")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str) -> f64 {
        let mut figures = FIGURES.into_iter();
        let (_, read) = figures.find(|((of, ..), _)| *of == name).unwrap();
        read().expect(name)
    }

    #[test]
    fn every_figure_is_read_and_plausible() {
        let resident = figure(names::PROCESS_RESIDENT);
        assert!((1e6..1e11).contains(&resident), "{resident}");
        assert!(resident <= figure(names::PROCESS_VIRTUAL));
        assert!(figure(names::PROCESS_START) > 1.7e9);
        assert!((0.0..1e5).contains(&figure(names::PROCESS_CPU)));
        let open = figure(names::PROCESS_FDS);
        assert!(
            (3.0..=figure(names::PROCESS_FDS_MAX)).contains(&open),
            "{open}"
        );
    }
}
