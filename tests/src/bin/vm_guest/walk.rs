//! The publication stress on this kernel, and with as many CPUs as the machine was given.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use lb_tests::stress::{Goal, swap_while_walking};

/// Emulation is slower than the machine by far.
const GOAL: Goal = Goal {
    walks: 10_000_000,
    swaps: 200,
    limit: Duration::from_secs(420),
};

pub(crate) fn run() -> Result<()> {
    let object = fs::read("/lb-ebpf-walk.o").context("the walker's object")?;
    let report = swap_while_walking(&object, GOAL)?;
    println!("{report:?}");
    ensure!(
        report.walks.mixtures == 0 && report.walks.nothing == 0,
        "{report:?}"
    );
    Ok(())
}
