//! The result as a value: what the table, the JSON and the plot show.

use std::fmt::Write;

use anyhow::Context;
use serde::Serialize;

use crate::{
    bed::Way,
    profile::ProgramTime,
    sample::{Plan, Ratio, Round, Samples, percentile},
};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    kernel: String,
    cpus: usize,
    plan: Plan,
    pub(crate) sizes: Vec<Size>,
}

/// One number of Services.
#[derive(Debug, Serialize)]
pub(crate) struct Size {
    pub(crate) services: u32,
    pub(crate) ways: Vec<Row>,
    /// What the kernel spends in nearhop's programs, for each connect to a Service and its close.
    programs: Vec<ProgramTime>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) way: Way,
    p50_micros: f64,
    p99_micros: f64,
    /// To the direct way, as the next two.
    pub(crate) ratio_p50: Ratio,
    ratio_p99: Ratio,
    ratio_with_close_p50: Ratio,
    target: Option<f64>,
    verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Met,
    Missed,
    /// The interval holds the target.
    Open,
}

impl Report {
    pub(crate) fn new(plan: Plan) -> anyhow::Result<Self> {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
        Ok(Self {
            kernel: release.context("the kernel's release")?.trim().to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            plan,
            sizes: Vec::new(),
        })
    }

    pub(crate) fn add(&mut self, services: u32, samples: &Samples, programs: Vec<ProgramTime>) {
        let direct = &samples[&Way::Direct];
        let ways = samples.iter();
        self.sizes.push(Size {
            services,
            ways: ways
                .map(|(way, rounds)| Row::of(*way, rounds, direct))
                .collect(),
            programs,
        });
    }

    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let Plan { rounds, connects } = self.plan;
        let (kernel, cpus) = (&self.kernel, self.cpus);
        let mut line = |line: String| writeln!(text, "{line}").expect("a String takes all");
        line(format!(
            "TCP connect, {rounds} rounds of {connects} each, interleaved; Linux {kernel}, {cpus} CPUs"
        ));
        line("A ratio is that to the pod's own address, with its 95 % interval.".to_owned());
        for size in &self.sizes {
            line(format!(
                "\n{:<42}{:>9}{:>9}   {:<19}{:<19}{:<19}TARGET",
                format!("SERVICES: {}", size.services),
                "P50 µs",
                "P99 µs",
                "RATIO P50",
                "RATIO P99",
                "WITH CLOSE, P50"
            ));
            for row in &size.ways {
                line(row.line());
            }
            line(String::new());
            for program in &size.programs {
                line(program.line());
            }
        }
        text
    }
}

impl Row {
    fn of(way: Way, rounds: &[Round], direct: &[Round]) -> Self {
        let median = |figure: fn(&Round) -> f64| {
            let mut numbers: Vec<f64> = rounds.iter().map(figure).collect();
            percentile(&mut numbers, 0.5)
        };
        let ratio_p50 = Ratio::of(rounds, direct, |round| round.p50);
        Self {
            way,
            p50_micros: median(|round| round.p50),
            p99_micros: median(|round| round.p99),
            ratio_p50,
            ratio_p99: Ratio::of(rounds, direct, |round| round.p99),
            ratio_with_close_p50: Ratio::of(rounds, direct, |round| round.with_close),
            target: way.target(),
            verdict: way.target().map(|target| Verdict::of(ratio_p50, target)),
        }
    }

    fn line(&self) -> String {
        let target = match (self.target, self.verdict) {
            (Some(target), Some(verdict)) => format!("≤ {target:.2} {}", verdict.text()),
            _ => String::new(),
        };
        format!(
            "{:<42}{:>9.1}{:>9.1}   {:<19}{:<19}{:<19}{target}",
            self.way.text(),
            self.p50_micros,
            self.p99_micros,
            shown(self.ratio_p50),
            shown(self.ratio_p99),
            shown(self.ratio_with_close_p50),
        )
    }
}

fn shown(ratio: Ratio) -> String {
    format!("{:.2} [{:.2}, {:.2}]", ratio.value, ratio.low, ratio.high)
}

impl Verdict {
    fn of(ratio: Ratio, target: f64) -> Self {
        if ratio.high <= target {
            Self::Met
        } else if ratio.low > target {
            Self::Missed
        } else {
            Self::Open
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Open => "open: the interval holds it",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_inside_of_the_interval_is_neither_met_nor_missed() {
        let ratio = |low, high| Ratio {
            value: 1.0,
            low,
            high,
        };

        assert_eq!(Verdict::of(ratio(1.02, 1.09), 1.1), Verdict::Met);
        assert_eq!(Verdict::of(ratio(1.02, 1.11), 1.1), Verdict::Open);
        assert_eq!(Verdict::of(ratio(1.11, 1.15), 1.1), Verdict::Missed);
    }
}
