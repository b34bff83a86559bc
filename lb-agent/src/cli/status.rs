//! `lb-agent status`: what is installed and whether it is well, from the pinned maps alone. It answers
//! while no agent runs, because then somebody wants to know.

mod table;

use std::{collections::BTreeMap, io::Write, net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use bytemuck::Zeroable;
use clap::Parser;
use lb_common::{
    addr::Addr,
    tables::{Status as Cell, names},
};
use serde::Serialize;

use crate::{
    cli::{NOT_INSTALLED, Output, Pinned},
    datapath::{
        BpfMaps, Pins,
        attach::{Attached, PROGRAMS, attached},
        cgroup,
        packets::{AttachedInterface, attached_interfaces},
        process,
        store::MapStore,
    },
    tables::{
        TableSet,
        dump::{self, hints_name},
    },
};

/// Show what is installed on this node and whether it is well
///
/// Reads the pinned maps and links, and so works while no agent runs: the kernel serves without one.
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    pinned: Pinned,
}

const EXAMPLES: &str = "\
Examples:
  Is this node served?
    lb-agent status && echo yes

  How much traffic left the zone?
    lb-agent status -o json | jq '.counters[\"forward-other-zone\"]'

Exit codes:
  0  ready: every program is attached and the tables were complete
  1  it cannot be told, and the error says why
  3  nothing is installed
  4  installed, and not ready";

const NOT_READY: u8 = 4;

/// What `-o json` prints.
#[derive(Debug, Serialize)]
struct Status {
    /// Every program is attached to a cgroup that exists, and the tables were complete once.
    ready: bool,
    installed: bool,
    node: String,
    zone: Option<String>,
    /// Of the agent that programmed last.
    pid: u32,
    version: String,
    /// Whether it still runs.
    running: bool,
    /// Unix time, as `last_sync`.
    started: u64,
    /// `null`: not yet.
    last_sync: Option<u64>,
    syncs: u64,
    sync_failures: u64,
    first_sync_ops: u64,
    last_sync_ops: u64,
    problems: u32,
    /// The first of them, or why the last sync failed.
    problem: Option<String>,
    /// Service ports that found no room in a map.
    full: u32,
    /// Service ports, each family for itself.
    services: usize,
    frontends: usize,
    backends: usize,
    /// Service ports by what became of topology hints.
    hints: BTreeMap<&'static str, usize>,
    /// The folder of the maps that serve, or are about to.
    set: String,
    /// Their layout.
    schema: u32,
    /// Folders of maps that an unfinished growth or upgrade has left; the next start of an agent removes
    /// them.
    unfinished: Vec<String>,
    /// How often the maps have grown since the agent's start.
    growths: u32,
    /// How often they took over from those of another layout.
    takeovers: u32,
    maps: BTreeMap<&'static str, Usage>,
    counters: BTreeMap<&'static str, u64>,
    /// The attached ones.
    programs: Vec<&'static str>,
    /// What they are attached to, if it can be seen from here.
    cgroup: Option<PathBuf>,
    cgroup_id: Option<u64>,
    /// Where packets are looked at.
    interfaces: Vec<Interface>,
    pin_path: PathBuf,
    /// The node's own, one of each family, as its Node object says.
    addresses: Vec<IpAddr>,
}

/// An interface with programs of ours.
#[derive(Clone, Debug, Serialize)]
struct Interface {
    index: u32,
    /// `null`: it is not in this network namespace.
    name: Option<String>,
    /// How the programs got there: tcx or clsact.
    attached_by: &'static str,
    programs: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Usage {
    used: usize,
    capacity: u32,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let pins = Pins::new(&args.pinned.pin_path);
    let mut out = anstream::stdout().lock();
    if !pins.exist() {
        match args.pinned.output {
            Output::Json => writeln!(out, "{:#}", not_installed(&pins))?,
            Output::Table => {
                writeln!(out, "nothing is installed at {}", pins.root().display())?;
            }
        }
        return Ok(ExitCode::from(NOT_INSTALLED));
    }
    let status = Status::read(&pins)?;
    match args.pinned.output {
        Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?,
        Output::Table => table::write(&status, &mut out)?,
    }
    Ok(if status.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_READY)
    })
}

fn not_installed(pins: &Pins) -> serde_json::Value {
    serde_json::json!({ "ready": false, "installed": false, "pin_path": pins.root() })
}

impl Status {
    fn read(pins: &Pins) -> Result<Self> {
        let maps = BpfMaps::open_pinned(pins)?;
        let (set, unfinished) = sets(pins)?;
        let cell: Cell = maps.status()?;
        let tables = maps.dump()?;
        let attached = attached(pins)?;
        let cgroup_id = attached.first().map(|link| link.cgroup_id);
        Ok(Self {
            ready: is_ready(&attached, &cell),
            installed: true,
            node: cell.node.as_str().to_owned(),
            zone: some_text(cell.zone.as_str()),
            pid: cell.pid,
            version: cell.version.as_str().to_owned(),
            running: process::is_agent(cell.pid),
            started: cell.started_secs,
            last_sync: (cell.synced_secs != 0).then_some(cell.synced_secs),
            syncs: cell.syncs,
            sync_failures: cell.sync_failures,
            first_sync_ops: cell.first_sync_ops,
            last_sync_ops: cell.last_sync_ops,
            problems: cell.problems,
            problem: some_text(cell.problem.as_str()),
            full: cell.full,
            services: used_services(&tables),
            frontends: tables
                .frontends
                .keys()
                .filter(|key| !key.is_address())
                .count(),
            backends: used_backends(&tables),
            hints: hints(&tables),
            set,
            schema: cell.schema,
            unfinished,
            growths: cell.growths,
            takeovers: cell.takeovers,
            maps: usage(&tables),
            counters: maps.counters()?,
            programs: attached.iter().map(|link| link.program).collect(),
            cgroup: cgroup_id.and_then(cgroup::find),
            cgroup_id,
            interfaces: interfaces(pins)?,
            pin_path: pins.root().to_owned(),
            addresses: addresses(&cell),
        })
    }
}

/// Whether every program is attached to a cgroup that exists, and the tables were complete once.
pub(super) fn is_ready(attached: &[Attached], cell: &Cell) -> bool {
    let everywhere =
        attached.len() == PROGRAMS.len() && attached.iter().all(|link| link.cgroup_id != 0);
    everywhere && cell.synced_secs != 0
}

/// The set of maps that serves, or is about to, and those beside it.
fn sets(pins: &Pins) -> Result<(String, Vec<String>)> {
    let mut sets = pins.sets()?;
    let newest = sets.pop().context("the maps were removed just now")?;
    let beside = sets.iter().map(ToString::to_string);
    let beside = beside.chain(pins.unfinished()?).collect();
    Ok((newest.to_string(), beside))
}

fn addresses(cell: &Cell) -> Vec<IpAddr> {
    let given = cell
        .addresses
        .iter()
        .filter(|addr| **addr != Addr::zeroed());
    given.map(|addr| (*addr).into()).collect()
}

fn interfaces(pins: &Pins) -> Result<Vec<Interface>> {
    let show = |found: AttachedInterface| Interface {
        index: found.index,
        name: found.name,
        attached_by: found.way.name(),
        programs: found.sides.iter().map(|side| side.program()).collect(),
    };
    Ok(attached_interfaces(pins)?.into_iter().map(show).collect())
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn used_services(tables: &TableSet) -> usize {
    tables
        .names
        .iter()
        .filter(|name| !name.text.is_empty())
        .count()
}

/// The word is that of `services -o json`.
fn hints(tables: &TableSet) -> BTreeMap<&'static str, usize> {
    let mut hints = BTreeMap::new();
    for service in dump::services(tables) {
        *hints.entry(hints_name(service.hints)).or_default() += 1;
    }
    hints
}

fn used_backends(tables: &TableSet) -> usize {
    let used = |lists: u32| lists != 0;
    tables
        .backends
        .iter()
        .filter(|cell| used(cell.membership.lists))
        .count()
}

fn usage(tables: &TableSet) -> BTreeMap<&'static str, Usage> {
    let rings = tables
        .services
        .iter()
        .flat_map(|cell| [cell.cluster, cell.local]);
    let capacities = tables.capacities();
    let usage = |used, capacity| Usage { used, capacity };
    BTreeMap::from([
        (
            names::FRONTENDS,
            usage(tables.frontends.len(), capacities.frontends),
        ),
        (
            names::SERVICES,
            usage(used_services(tables), capacities.services),
        ),
        (
            names::SLOTS,
            usage(
                rings.map(|ring| usize::from(ring.len)).sum(),
                capacities.slots,
            ),
        ),
        (
            names::BACKENDS,
            usage(used_backends(tables), capacities.backends),
        ),
    ])
}
