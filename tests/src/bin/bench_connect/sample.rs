//! Samples and what can be said of them. Every way has its turn in every round, in an order drawn anew,
//! and is compared with the direct way of the same round: what disturbs the machine for longer than a
//! round disturbs both.

use std::collections::BTreeMap;

use anyhow::{Context, ensure};
use lb_tests::protocol::Timed;
use serde::Serialize;

use crate::{
    Step,
    bed::{Bed, Way},
};

/// How much is measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    /// Of each way in a round.
    pub(crate) connects: u32,
}

/// One way's percentiles in one round, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// Median of connect and close together: statistics are also written when a connection ends.
    pub(crate) with_close: f64,
}

/// The rounds of each way.
pub(crate) type Samples = BTreeMap<Way, Vec<Round>>;

pub(crate) fn measure(
    bed: &Bed,
    plan: Plan,
    services: u32,
    step: &Step,
) -> anyhow::Result<Samples> {
    let mut random = fastrand::Rng::with_seed(u64::from(services));
    let mut samples = Samples::new();
    step.begin(plan.rounds, &format!("{services} Services: rounds"));
    for way in Way::ALL {
        bed.time(way, plan.connects)?;
    }
    let mut lost = 0;
    while samples.values().next().map_or(0, Vec::len) < plan.rounds as usize {
        let mut ways = Way::ALL;
        random.shuffle(&mut ways);
        match round(bed, &ways, plan.connects) {
            Ok(round) => {
                for (way, figures) in round {
                    samples.entry(way).or_default().push(figures);
                }
                step.advance();
            }
            Err(error) => {
                lost += 1;
                let few = lost <= plan.rounds / LOST_SHARE;
                ensure!(few, "{lost} rounds were lost; the last: {error:#}");
                eprintln!("{services} Services: a round is left out: {error:#}");
            }
        }
    }
    Ok(samples)
}

/// One in so many rounds may be left out because a connect in it timed out, which is told. A SYN that
/// a peer's conntrack drops comes again after a second, and is no figure of a connect.
const LOST_SHARE: u32 = 5;

fn round(bed: &Bed, ways: &[Way], connects: u32) -> anyhow::Result<Vec<(Way, Round)>> {
    let one = |way: &Way| {
        let timed = bed.time(*way, connects).with_context(|| way.text())?;
        Ok((*way, Round::of(&timed)))
    };
    ways.iter().map(one).collect()
}

impl Round {
    fn of(timed: &[Timed]) -> Self {
        let mut connects: Vec<f64> = timed.iter().map(|t| f64::from(t.connect)).collect();
        let both = |t: &Timed| f64::from(t.connect) + f64::from(t.close);
        let mut both: Vec<f64> = timed.iter().map(both).collect();
        Self {
            p50: percentile(&mut connects, 0.50) / 1000.0,
            p99: percentile(&mut connects, 0.99) / 1000.0,
            with_close: percentile(&mut both, 0.50) / 1000.0,
        }
    }
}

/// A number with the interval that holds it in 95 of 100 repetitions.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Ratio {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

const RESAMPLES: usize = 2000;

impl Ratio {
    /// The median of the rounds' ratios; its interval by the bootstrap, which draws as many rounds from
    /// those there are and asks how far the median moves.
    pub(crate) fn of(way: &[Round], direct: &[Round], figure: impl Fn(&Round) -> f64) -> Self {
        let pairs = way.iter().zip(direct);
        let mut ratios: Vec<f64> = pairs
            .map(|(way, direct)| figure(way) / figure(direct))
            .collect();
        let mut random = fastrand::Rng::with_seed(1);
        let mut again = || {
            let draw = |_| ratios[random.usize(..ratios.len())];
            let mut drawn: Vec<f64> = (0..ratios.len()).map(draw).collect();
            percentile(&mut drawn, 0.5)
        };
        let mut medians: Vec<f64> = (0..RESAMPLES).map(|_| again()).collect();
        Self {
            low: percentile(&mut medians, 0.025),
            high: percentile(&mut medians, 0.975),
            value: percentile(&mut ratios, 0.5),
        }
    }
}

/// The number below which this share lies; zero of none.
pub(crate) fn percentile(numbers: &mut [f64], share: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "an index of a list that fits into memory"
    )]
    let at = (numbers.len().saturating_sub(1) as f64 * share).round() as usize;
    numbers.get(at).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(p50: impl Iterator<Item = f64>) -> Vec<Round> {
        let round = |p50| Round {
            p50,
            p99: 2.0 * p50,
            with_close: p50,
        };
        p50.map(round).collect()
    }

    #[test]
    fn a_percentile_is_one_of_the_numbers() {
        let mut numbers: Vec<f64> = (0..=100).rev().map(f64::from).collect();

        assert_eq!(percentile(&mut numbers, 0.5), 50.0);
        assert_eq!(percentile(&mut numbers, 0.99), 99.0);
        assert_eq!(percentile(&mut [], 0.5), 0.0);
    }

    #[test]
    fn a_machine_that_slows_down_changes_no_ratio() {
        let slower = |at: i32| f64::from(10 + at);
        let direct = rounds((0..100).map(slower));
        let way = rounds((0..100).map(|at| 1.5 * slower(at)));

        let ratio = Ratio::of(&way, &direct, |round| round.p50);

        assert!((ratio.value - 1.5).abs() < 1e-9, "{ratio:?}");
        assert!((ratio.high - ratio.low).abs() < 1e-9, "{ratio:?}");
    }

    #[test]
    fn the_interval_of_noise_holds_the_truth_and_no_effect_that_is_not_there() {
        let mut random = fastrand::Rng::with_seed(3);
        let mut noisy = |mean: f64| {
            rounds(
                (0..200)
                    .map(|_| mean + random.f64())
                    .collect::<Vec<_>>()
                    .into_iter(),
            )
        };
        let (direct, way) = (noisy(10.0), noisy(12.0));

        let ratio = Ratio::of(&way, &direct, |round| round.p50);

        assert!(
            ratio.low < 12.5 / 10.5 && 12.5 / 10.5 < ratio.high,
            "{ratio:?}"
        );
        assert!(ratio.low > 1.15 && ratio.high < 1.25, "{ratio:?}");
    }
}
