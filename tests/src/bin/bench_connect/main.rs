//! What a TCP connect costs: to the pod's own address, to a Service by nearhop, and by the rules that the
//! real kube-proxy writes, side by side on one kernel. Started by `cargo xtask bench connect`.

mod bed;
mod fill;
mod plot;
mod profile;
mod report;
mod sample;

use std::{
    fs, panic,
    path::PathBuf,
    process::{self, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use lb_tests::{Lab, agent, cluster::control_plane, lab::Undo};

use bed::{Bed, Stage};
use report::Report;
use sample::Plan;

/// Measures connects by every way, at several numbers of Services
#[derive(Parser)]
struct Args {
    /// Few Services and few connects: shows that the harness works, and nothing about times
    #[arg(long)]
    quick: bool,
    /// Numbers of Services, ascending
    #[arg(long, value_delimiter = ',', value_name = "N,N,…")]
    services: Option<Vec<u32>>,
    /// Rounds, in each of which every way has its turn
    #[arg(long)]
    rounds: Option<u32>,
    /// Print the result as JSON on standard output
    #[arg(long)]
    json: bool,
    /// Where connect.json and connect.svg are written
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

fn main() -> ExitCode {
    // The lab reports its own failures by panics; here they are errors like any other.
    panic::set_hook(Box::new(|panic| {
        complain(panic.payload_as_str().unwrap_or("the benchmark broke"));
    }));
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Set when a signal is being obeyed.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What breaks because the lab is being taken down is no error: the signal's thread ends the process.
fn complain(message: &str) {
    while INTERRUPTED.load(Ordering::Relaxed) {
        thread::park();
    }
    eprintln!("error: {message}");
}

fn run(args: &Args) -> anyhow::Result<()> {
    agent::program()?;
    control_plane::program()?;
    let (sizes, plan) = args.plan();
    let lab = Lab::create(undo_on_signal)?;
    let report = measure(&lab, &sizes, plan)?;
    lab.undo();
    fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let (json, plot) = (args.out.join("connect.json"), args.out.join("connect.svg"));
    let document = serde_json::to_string_pretty(&report)?;
    fs::write(&json, &document).with_context(|| json.display().to_string())?;
    fs::write(&plot, plot::svg(&report)).with_context(|| plot.display().to_string())?;
    say(args, &report, &document);
    eprintln!("written: {} and {}", json.display(), plot.display());
    Ok(())
}

impl Args {
    fn plan(&self) -> (Vec<u32>, Plan) {
        let (sizes, rounds, connects) = if self.quick {
            (vec![1, 50], 10, 50)
        } else {
            (vec![1, 1_000, 10_000], 200, 300)
        };
        let plan = Plan {
            rounds: self.rounds.unwrap_or(rounds),
            connects,
        };
        (self.services.clone().unwrap_or(sizes), plan)
    }
}

fn measure(lab: &Lab, sizes: &[u32], plan: Plan) -> anyhow::Result<Report> {
    let step = Step::new();
    step.begin(1, "starting a control plane and three servers");
    let stage = Stage::build(lab);
    let mut report = Report::new(plan)?;
    let mut there = 0;
    for (number, &services) in (1..).zip(sizes) {
        stage.fill(there..services, &step)?;
        there = services;
        let bed = Bed::build(&stage, number, services, &step)?;
        step.begin(
            1,
            &format!("{services} Services: checking where each way leads"),
        );
        bed.check()?;
        let samples = sample::measure(&bed, plan, services, &step)?;
        step.begin(
            1,
            &format!("{services} Services: the kernel's time in each program"),
        );
        let programs = profile::programs(&bed)?;
        report.add(services, &samples, programs);
    }
    step.end();
    Ok(report)
}

/// What is being done, and how far it is.
pub(crate) struct Step(ProgressBar);

impl Step {
    fn new() -> Self {
        let style =
            ProgressStyle::with_template("{spinner} [{elapsed}] {bar:24} {pos}/{len} {msg}");
        let bar = ProgressBar::new(1).with_style(style.expect("the template is good"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    pub(crate) fn begin(&self, parts: u32, what: &str) {
        self.0.set_position(0);
        self.0.set_length(u64::from(parts));
        self.0.set_message(what.to_owned());
    }

    pub(crate) fn advance(&self) {
        self.0.inc(1);
    }

    fn end(&self) {
        self.0.finish_and_clear();
    }
}

#[expect(clippy::print_stdout, reason = "the result")]
fn say(args: &Args, report: &Report, document: &str) {
    if args.json {
        println!("{document}");
    } else {
        print!("{}", report.table());
    }
}

/// Ctrl-C and SIGTERM take the lab down.
fn undo_on_signal(lab: Undo) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        INTERRUPTED.store(true, Ordering::Relaxed);
        eprintln!("interrupted: cleaning up");
        lab.undo();
        process::exit(130);
    })
    .context("catch Ctrl-C")
}
