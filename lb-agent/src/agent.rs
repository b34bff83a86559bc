//! What `run` runs: one owner, one loop, a closed set of events.
//!
//! ```text
//! source ─ Batch ─┐
//! timer ── Tick ──┼─▶ fold ─▶ sync ─▶ STATUS
//! signal ─ Shutdown ─▶ exit; the kernel goes on serving
//! ```

mod growth;
mod local;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use bytemuck::Zeroable;
use lb_common::{
    addr::Addr,
    tables::{SCHEMA, Status},
    text::Text,
};
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::{self, error::TryRecvError},
    time::{self, Interval},
};
use tracing::{debug, info, warn};

use crate::{
    agent::growth::Growth,
    config::{self, Config, Source, watched::Watch},
    datapath::{
        BpfMaps, Datapath, Pins, capability,
        cgroup::Cgroup,
        flows::Walk,
        migrate::Origin,
        netlink::{Change, Follower, Machine},
        packets::Packets,
        store::StoreError,
    },
    model::{name::Family, state::Settings},
    source::{
        Batch, dir,
        kube::{
            self,
            announce::{Announcement, Announcer},
        },
    },
    sync::{Engine, SyncReport, Wanted},
    tables::set::Capacities,
    vitals::{
        Vitals,
        metrics::Outcome,
        server::{self, Role},
    },
};

/// Serves until told to stop. What is programmed then goes on serving.
///
/// # Errors
///
/// Something is missing that only the operator can give; the error says what.
pub fn run(config: &Config) -> Result<()> {
    capability::require()?;
    let pins = Pins::new(&config.pin_path);
    pins.require_bpffs()?;
    let cgroup = Cgroup::open(config.cgroup.as_deref())?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(config, &pins, cgroup))
}

async fn serve(config: &Config, pins: &Pins, cgroup: Cgroup) -> Result<()> {
    let vitals = Arc::new(Vitals::new(config, pins));
    let (batches, announcer) = follow(config, &vitals).await?;
    let mut events = Events::new(batches, config)?;
    start_servers(config, &vitals, &announcer).await?;
    let started = now();
    let mut wanted = Wanted::new(Settings {
        node: config.node.clone(),
        zone: config.zone.clone(),
        external_ips: config.external_ips,
    });
    if !gather(&mut events, &mut wanted, &vitals, pins.serve()).await? {
        return Ok(());
    }
    let capacities = config.capacities.over(wanted.capacities());
    let _lock = pins.lock()?;
    let (datapath, maps) = Datapath::open(pins, capacities)?;
    announcer.tell(&Announcement::Starting);
    info!(
        node = %config.node,
        zone = wanted.model().zone().unwrap_or("none"),
        cgroup = %cgroup.path.display(),
        maps = %datapath.set().folder().display(),
        adopted = *datapath.origin() == Origin::Adopted,
        "starting"
    );
    let growth = Growth::new(config.capacities);
    log_changes(&datapath, &growth, &maps);
    Agent {
        engine: Engine::start(wanted, maps)?,
        takeovers: datapath.origin().is_other_layout().into(),
        datapath,
        cgroup,
        packets: Packets::new(pins, config.packets.clone()),
        growth,
        history: History::new(started),
        vitals,
        flow_walk: Walk::default(),
        local: config.local.clone(),
        local_problem: None,
        problems_of_sync: Vec::new(),
        problems: Vec::new(),
        node_warned: false,
    }
    .run(&mut events)
    .await
}

/// Says what of the maps is not as the operator may expect.
fn log_changes(datapath: &Datapath, growth: &Growth, maps: &BpfMaps) {
    if let Origin::OtherLayout(other) = datapath.origin() {
        info!(from = %other, to = %datapath.set(), "taking over from another layout of the maps");
    }
    if let Some(exceeded) = growth.exceeded_by(maps.capacities()) {
        info!("maps do not shrink: {exceeded}");
    }
}

async fn follow(config: &Config, vitals: &Vitals) -> Result<(mpsc::Receiver<Batch>, Announcer)> {
    match &config.source {
        Source::Folder(path) => Ok((dir::follow(path)?, Announcer::nobody())),
        Source::ApiServer(access) => {
            let access = access.load().await?;
            let watches = Arc::default();
            vitals.metrics.has_watches(&watches);
            let batches = kube::follow(&access, &config.node, watches)?;
            Ok((batches, Announcer::new(&access, &config.node)?))
        }
    }
}

/// An address that somebody else has is tried again, unless that is to be the end.
async fn start_servers(config: &Config, vitals: &Arc<Vitals>, announcer: &Announcer) -> Result<()> {
    let failures = server::start(vitals, config.listen).context("starting the HTTP servers")?;
    for failure in failures {
        let told = announcer.tell(&match failure.role {
            Role::Health => Announcement::NoHealthServer(failure.to_string()),
            Role::Metrics => Announcement::NoMetricsServer(failure.to_string()),
        });
        if config.bind_hard_fail {
            let _ = told.await;
            return Err(failure.into());
        }
        warn!("{failure}; trying again every 5 seconds");
    }
    Ok(())
}

/// Waits for the whole source. Where tables of an earlier agent serve, also until every file and object
/// was usable once, as what is not known would be pruned; where nothing serves, nothing can be lost.
/// Returns whether to go on.
async fn gather(
    events: &mut Events,
    wanted: &mut Wanted,
    vitals: &Vitals,
    serving: bool,
) -> Result<bool> {
    loop {
        match events.next(None).await? {
            Event::Batch(batch) => {
                vitals.heard(&batch);
                wanted.fold(batch);
            }
            Event::Tick | Event::Sweep | Event::Look | Event::Flows | Event::Interfaces(_) => {
                continue;
            }
            Event::Shutdown => return Ok(false),
        }
        if wanted.is_complete() || !serving {
            return Ok(true);
        }
        warn_of_problems(&wanted.problems());
        warn!("waiting until every file and object was usable once; nothing is changed until then");
    }
}

/// What the loop waits for.
enum Event {
    Batch(Batch),
    /// It is time to try again.
    Tick,
    /// It is time to look for what only time ends.
    Sweep,
    /// It is time to look whether all is as it was left.
    Look,
    /// It is time to look at some of the flows.
    Flows,
    /// Interfaces or addresses of this machine may have changed.
    Interfaces(Change),
    Shutdown,
}

struct Events {
    batches: mpsc::Receiver<Batch>,
    config_file: Option<Watch>,
    /// If packets are looked at.
    interfaces: Option<Follower>,
    sweeps: Interval,
    looks: Interval,
    flows: Interval,
    terminate: Signal,
    interrupt: Signal,
}

/// Expired affinity counts no more from the second on; this is how soon its memory is free.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// An interface that could not be attached to is tried again so soon, and one that somebody has detached
/// is missed so late.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Between two parts of the flows.
const FLOWS_PAUSE: Duration = Duration::from_millis(50);

impl Events {
    fn new(batches: mpsc::Receiver<Batch>, config: &Config) -> Result<Self> {
        let packets = config.packets.rule.is_some();
        Ok(Self {
            batches,
            config_file: config.watched.clone().map(Watch::new),
            interfaces: packets.then(Follower::new).transpose()?,
            sweeps: time::interval(SWEEP_EVERY),
            looks: time::interval(LOOK_EVERY),
            flows: time::interval(LOOK_EVERY),
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self, tick_in: Option<Duration>) -> Result<Event> {
        let tick = async {
            match tick_in {
                Some(delay) => time::sleep(delay).await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            match &mut self.config_file {
                Some(file) => file.changed().await,
                None => std::future::pending().await,
            }
        };
        let interfaces = async {
            match &mut self.interfaces {
                Some(follower) => follower.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            batch = self.batches.recv() => {
                Ok(Event::Batch(batch.context("what follows the objects has ended")?))
            }
            () = tick => Ok(Event::Tick),
            path = changed => bail!(
                "{} was changed; ending, so that a new start reads it. What is programmed keeps serving",
                path.display()
            ),
            change = interfaces => Ok(Event::Interfaces(change?)),
            _ = self.sweeps.tick() => Ok(Event::Sweep),
            _ = self.looks.tick() => Ok(Event::Look),
            _ = self.flows.tick() => Ok(Event::Flows),
            _ = self.terminate.recv() => Ok(Event::Shutdown),
            _ = self.interrupt.recv() => Ok(Event::Shutdown),
        }
    }

    /// What has come in meanwhile, so that it is programmed in one go.
    fn queued(&mut self) -> Result<Option<Batch>, TryRecvError> {
        match self.batches.try_recv() {
            Ok(batch) => Ok(Some(batch)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The first delay after a failed sync; doubled for each further one.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(5);

struct Agent {
    engine: Engine<BpfMaps>,
    datapath: Datapath,
    cgroup: Cgroup,
    packets: Packets,
    growth: Growth,
    takeovers: u32,
    history: History,
    vitals: Arc<Vitals>,
    flow_walk: Walk,
    local: config::Local,
    local_problem: Option<String>,
    problems_of_sync: Vec<String>,
    /// As last logged.
    problems: Vec<String>,
    node_warned: bool,
}

impl Agent {
    async fn run(mut self, events: &mut Events) -> Result<()> {
        self.vitals.queued();
        let mut retry_in = self.sync()?;
        loop {
            match events.next(retry_in).await? {
                Event::Batch(batch) => {
                    self.fold(batch);
                    while let Some(batch) = events.queued()? {
                        self.fold(batch);
                    }
                }
                Event::Tick => {}
                Event::Sweep => {
                    self.sweep();
                    continue;
                }
                Event::Look => {
                    self.write_local();
                    self.datapath.verify(&mut self.packets);
                    self.show_packets()?;
                    continue;
                }
                Event::Flows => {
                    events.flows.reset_after(self.sweep_flows());
                    continue;
                }
                Event::Interfaces(change) => {
                    self.write_local();
                    self.datapath.follow(&mut self.packets, &change);
                    self.show_packets()?;
                    continue;
                }
                Event::Shutdown => {
                    info!("stopping; what is programmed keeps serving");
                    return Ok(());
                }
            }
            retry_in = self.sync()?;
            // An endpoint may have gone.
            events.flows.reset_immediately();
        }
    }

    fn fold(&mut self, batch: Batch) {
        self.vitals.heard(&batch);
        self.vitals.queued();
        self.engine.fold(batch);
    }

    fn sweep(&mut self) {
        match self.engine.store_mut().sweep_affinity() {
            Ok(clients) => debug!(clients, "swept session affinity"),
            Err(error) => {
                warn!("session affinity was not swept, again in {SWEEP_EVERY:?}: {error:#}")
            }
        }
    }

    /// A part of the flows at a time, so that nothing else waits for long. Returns when the next is due.
    fn sweep_flows(&mut self) -> Duration {
        let store = self.engine.store_mut();
        match store.sweep_flows(&mut self.flow_walk) {
            Ok(true) => LOOK_EVERY,
            Ok(false) => FLOWS_PAUSE,
            Err(error) => {
                warn!("flows were not swept, again in {LOOK_EVERY:?}: {error:#}");
                LOOK_EVERY
            }
        }
    }

    /// Programs what is wanted. Returns when to try again, if that failed.
    fn sync(&mut self) -> Result<Option<Duration>> {
        let eligible = self.engine.wanted().model().node_is_eligible();
        self.vitals.health.node_is_eligible(eligible);
        let begun = Instant::now();
        let mut report = SyncReport::default();
        let done = self.sync_and_grow(&mut report)?;
        let took = begun.elapsed();
        let failed = done.err().map(|error| error.to_string());
        self.history.record(&report, failed.is_some());
        self.problems_of_sync = self.problems_after(&report, failed.as_deref());
        self.log_problems();
        self.log(&report, took, failed.is_some());
        self.write_status(&report)?;
        self.show_vitals(&report, took, failed.is_some());
        Ok(match failed {
            Some(_) => Some(self.history.retry_in()),
            None => self.growth.retry_in(Instant::now()),
        })
    }

    /// The inner result is that of the sync. An outer error ends the agent: links may have moved in part,
    /// and a start is what carries that on.
    fn sync_and_grow(&mut self, report: &mut SyncReport) -> Result<Result<(), StoreError>> {
        if let Err(error) = self.engine.sync(report) {
            return Ok(Err(error));
        }
        self.write_local();
        self.datapath.attach(&self.cgroup, &mut self.packets)?;
        let Some(capacities) = self.outgrown(report) else {
            return Ok(Ok(()));
        };
        match self.datapath.grow(self.engine.store(), capacities) {
            Ok(larger) => self.move_to(larger)?,
            Err(error) => {
                self.growth.failed(&error, Instant::now());
                return Ok(Ok(()));
            }
        }
        Ok(self.engine.sync(report))
    }

    /// Says what the packet programs must know of this node, before they are attached and whenever it may
    /// have changed. A failure is told, and tried again.
    fn write_local(&mut self) {
        if !self.packets.are_on() {
            return;
        }
        let node = self.engine.wanted().model().own_node();
        let tables = Machine::read().map(|machine| local::tables(&self.local, node, &machine));
        let written = tables.and_then(|tables| self.engine.store_mut().write_local(&tables));
        let problem =
            |error| format!("what packets must know of this node: {error:#}; trying again");
        self.local_problem = written.err().map(problem);
    }

    /// The capacities that the maps should have instead.
    fn outgrown(&mut self, report: &SyncReport) -> Option<Capacities> {
        if self.growth.must_wait(Instant::now()) {
            return None;
        }
        let programmed = self.engine.programmed();
        let is_first = self.history.syncs == 0;
        let may_be = is_first || programmed.is_crowded() || !report.full.is_empty();
        let due = may_be.then(|| {
            let need = self.engine.wanted().capacities();
            self.growth.due(programmed.capacities(), need, &report.full)
        });
        let due = due.flatten();
        if due.is_none() {
            self.growth.is_not_due();
        }
        due
    }

    fn move_to(&mut self, (mut datapath, maps): (Datapath, BpfMaps)) -> Result<()> {
        datapath.attach(&self.cgroup, &mut self.packets)?;
        let (from, to) = (self.engine.store().capacities(), maps.capacities());
        self.engine.move_to(maps)?;
        self.datapath = datapath;
        self.growth.succeeded();
        info!(maps = %self.datapath.set().folder().display(), ?from, ?to, "the maps have grown");
        Ok(())
    }

    fn problems_after(&self, report: &SyncReport, failed: Option<&str>) -> Vec<String> {
        let failed = failed.map(|error| format!("{error}; trying again"));
        let full = report.full.iter().map(ToString::to_string);
        let growth = self.growth.problem().map(str::to_owned);
        let mut problems: Vec<_> = failed.into_iter().chain(growth).chain(full).collect();
        problems.extend(self.engine.wanted().problems());
        problems
    }

    /// Says what became of the interfaces.
    fn show_packets(&mut self) -> Result<()> {
        let before = self.problems.len();
        self.log_problems();
        self.vitals.metrics.attached(&self.packets);
        if before == 0 && self.problems.is_empty() {
            return Ok(());
        }
        let store = self.engine.store();
        store.write_status(&Status {
            problems: self.count_of_problems(),
            problem: self.first_problem(),
            ..store.status()?
        })
    }

    fn log_problems(&mut self) {
        self.warn_of_unknown_node();
        let mut problems = self.packets.problems();
        problems.extend(self.local_problem.clone());
        problems.extend_from_slice(&self.problems_of_sync);
        if problems != self.problems {
            warn_of_problems(&problems);
            self.problems = problems;
        }
    }

    fn log(&self, report: &SyncReport, took: Duration, failed: bool) {
        info!(
            services = self.engine.programmed().ports().len(),
            ops = report.ops,
            micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            problems = self.problems.len(),
            "{}",
            if failed { "not synced" } else { "synced" }
        );
        if self.history.syncs == 1 && !failed {
            info!("ready");
        }
    }

    /// Last of all, so that who is stuck before it is not taken for done.
    fn show_vitals(&mut self, report: &SyncReport, took: Duration, failed: bool) {
        let outcome = Outcome {
            report,
            took,
            failed,
            problems: self.problems.len(),
            now: SystemTime::now(),
        };
        self.vitals.metrics.synced(&mut self.engine, &outcome);
        self.vitals.metrics.moved(self.growth.count, self.takeovers);
        self.vitals.metrics.attached(&self.packets);
        if !failed {
            self.vitals.done();
        }
    }

    fn warn_of_unknown_node(&mut self) {
        let model = self.engine.wanted().model();
        let unknown = !model.knows_own_node();
        if unknown && !self.node_warned {
            let zone = model.zone().unwrap_or("none, so zone hints are ignored");
            warn!(
                node = model.node(),
                zone, "no such Node object; add it, or check --node; --zone sets its zone"
            );
        }
        self.node_warned = unknown;
    }

    fn write_status(&self, report: &SyncReport) -> Result<()> {
        let wanted = self.engine.wanted();
        let history = &self.history;
        self.engine.store().write_status(&Status {
            started_secs: history.started_secs,
            synced_secs: history.synced_secs,
            syncs: history.syncs,
            sync_failures: history.sync_failures,
            first_sync_ops: history.first_sync_ops,
            last_sync_ops: report.ops,
            pid: std::process::id(),
            problems: self.count_of_problems(),
            full: count(report.full.len()),
            schema: SCHEMA,
            growths: self.growth.count,
            takeovers: self.takeovers,
            node: Text::new(wanted.model().node()),
            zone: Text::new(wanted.model().zone().unwrap_or_default()),
            problem: self.first_problem(),
            version: Text::new(env!("CARGO_PKG_VERSION")),
            addresses: Family::BOTH.map(|family| {
                wanted
                    .model()
                    .node_address(family)
                    .unwrap_or(Addr::zeroed())
            }),
        })
    }

    /// With what the source says, and with interfaces.
    fn count_of_problems(&self) -> u32 {
        let of_source = self.engine.wanted().problems().len();
        let of_node = usize::from(self.local_problem.is_some());
        count(of_source + self.packets.problems().len() + of_node)
    }

    fn first_problem<const N: usize>(&self) -> Text<N> {
        Text::new(self.problems.first().map_or("", String::as_str))
    }
}

/// What `status` tells of the syncs since the agent's start.
struct History {
    started_secs: u64,
    synced_secs: u64,
    syncs: u64,
    sync_failures: u64,
    failed_in_a_row: u32,
    first_sync_ops: u64,
}

impl History {
    fn new(started_secs: u64) -> Self {
        Self {
            started_secs,
            synced_secs: 0,
            syncs: 0,
            sync_failures: 0,
            failed_in_a_row: 0,
            first_sync_ops: 0,
        }
    }

    fn record(&mut self, report: &SyncReport, failed: bool) {
        if self.syncs == 0 {
            self.first_sync_ops += report.ops;
        }
        if failed {
            self.sync_failures += 1;
            self.failed_in_a_row += 1;
        } else {
            self.syncs += 1;
            self.failed_in_a_row = 0;
            self.synced_secs = now();
        }
    }

    fn retry_in(&self) -> Duration {
        let doubled = self.failed_in_a_row.saturating_sub(1).min(16);
        RETRY_FIRST.saturating_mul(1 << doubled).min(RETRY_MAX)
    }
}

fn warn_of_problems(problems: &[String]) {
    for problem in problems {
        warn!("{problem}");
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn count(of: usize) -> u32 {
    u32::try_from(of).unwrap_or(u32::MAX)
}
