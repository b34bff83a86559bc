//! The kernel's own time in each of nearhop's programs. It counts while somebody asks it to, which costs
//! two looks at the clock for each run: apart from the measurement of connects.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, ensure};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use serde::Serialize;
use serde_json::Value;

use crate::bed::{Bed, Way};

const CONNECTS: u32 = 2_000;

/// One program, for each connect to a Service and its close.
#[derive(Debug, Serialize)]
pub(crate) struct ProgramTime {
    program: String,
    /// After the kernel's compiler.
    instruction_bytes: u32,
    runs: f64,
    nanos: f64,
}

impl ProgramTime {
    pub(crate) fn line(&self) -> String {
        let Self {
            program,
            instruction_bytes,
            runs,
            nanos,
        } = self;
        let each = nanos / runs.max(f64::MIN_POSITIVE);
        format!(
            "  {program:<17}{runs:>5.1} runs a connect, {each:>5.0} ns each, {instruction_bytes:>6} bytes of code"
        )
    }
}

/// Those that ran.
pub(crate) fn programs(bed: &Bed) -> anyhow::Result<Vec<ProgramTime>> {
    let ids = attached(bed)?;
    let counting = enable_stats(Stats::RunTime).context("count the programs' time")?;
    let before = times(&ids)?;
    bed.time(Way::Nearhop, CONNECTS)?;
    let after = times(&ids)?;
    drop(counting);
    let per_connect = |more: f64| more / f64::from(CONNECTS);
    let programs = after.iter().map(|(program, after)| {
        let before = &before[program];
        ProgramTime {
            program: program.clone(),
            instruction_bytes: after.instruction_bytes,
            runs: per_connect(after.runs - before.runs),
            nanos: per_connect(after.nanos - before.nanos),
        }
    });
    Ok(programs.filter(|program| program.runs > 0.0).collect())
}

struct Times {
    instruction_bytes: u32,
    runs: f64,
    nanos: f64,
}

fn times(ids: &[u32]) -> anyhow::Result<BTreeMap<String, Times>> {
    let mut times = BTreeMap::new();
    for program in loaded_programs() {
        // One of somebody else's that was unloaded in between.
        let Ok(program) = program else { continue };
        if ids.contains(&program.id()) {
            let name = program.name_as_str().unwrap_or("?").to_owned();
            #[expect(clippy::cast_precision_loss, reason = "counts of thousands")]
            let runs = program.run_count() as f64;
            #[expect(clippy::cast_precision_loss, reason = "times of seconds")]
            let nanos = program.run_time().as_nanos() as f64;
            let instruction_bytes = program.size_jitted();
            times.insert(
                name,
                Times {
                    instruction_bytes,
                    runs,
                    nanos,
                },
            );
        }
    }
    Ok(times)
}

/// The programs at the cgroup of nearhop's node.
fn attached(bed: &Bed) -> anyhow::Result<Vec<u32>> {
    let mut bpftool = Command::new("bpftool");
    let output = bpftool
        .args(["--json", "cgroup", "show"])
        .arg(bed.node.cgroup())
        .output()
        .context("run bpftool")?;
    ensure!(
        output.status.success(),
        "bpftool cgroup show: {}",
        output.status
    );
    let programs: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let id = |program: &Value| u32::try_from(program["id"].as_u64()?).ok();
    Ok(programs.iter().filter_map(id).collect())
}
