//! The stress of what readers meet without a lock. Publication: whole lists are swapped by the agent's
//! own diff and store, each in the cells that the one before the last has just freed, while a kernel
//! program walks them. Addresses: they come and go while a program looks one up.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRunOptions,
    maps::{Map, MapData, PerCpuArray},
    programs::{SchedClassifier, TestRun as _},
};
use lb_agent::{
    datapath::{BpfMaps, store::MapStore},
    model::{
        ServicePort,
        endpoint::EndpointAddr,
        name::{Family, ServiceName, ServicePortId},
        policy::{Choice, Chosen, Reason, Topology, Uses, Why},
        service::Policy,
        service_port::Frontend,
    },
    tables::{
        Op,
        build::Desired,
        diff::{Diff, diff},
        programmed::Programmed,
    },
};
use lb_common::{
    addr::{Addr, Port, Proto},
    tables::{self, FrontendKey, Kind, ServiceIndex, names},
};

/// Backends of the lists, in turn. Of two lengths, so that the length of one with the place of the
/// other would show as well.
const LIST_LENS: [u16; 2] = [24, 17];

/// Walks in one system call. Short, since the kernel holds one read section over many of them.
const WALKS_PER_CALL: u32 = 2_000;

/// What the walks found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walks {
    /// Saw one whole list.
    pub whole: u64,
    /// Saw nothing published.
    pub nothing: u64,
    /// Saw parts of two lists.
    pub mixtures: u64,
}

/// What the stress did.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// What they found.
    pub walks: Walks,
    /// Lists swapped.
    pub swaps: u32,
    /// How long it took.
    pub took: Duration,
}

/// How much to do at least, and when to give up.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Walks.
    pub walks: u64,
    /// Swaps of the whole list.
    pub swaps: u32,
    /// Time.
    pub limit: Duration,
}

/// Swaps lists in the maps of `object` (lb-ebpf's `walk`) while it walks them.
///
/// # Errors
///
/// The kernel refuses, or the goal is not reached in time.
pub fn swap_while_walking(object: &[u8], goal: Goal) -> Result<Report> {
    let mut ebpf = load(object)?;
    let mut maps = BpfMaps::open(|name| open(&ebpf, name))?;
    let walks = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(open(&ebpf, "WALKS")?))?;
    let program: &mut SchedClassifier = ebpf
        .program_mut("nh_walk")
        .context("the object has no nh_walk")?
        .try_into()?;
    program.load().context("loading nh_walk")?;
    let mut swapper = Swapper::start(&mut maps)?;

    let start = Instant::now();
    while_running(program, || swapper.run(&walks, goal, start))?;
    Ok(Report {
        walks: count(&walks)?,
        swaps: swapper.swaps,
        took: start.elapsed(),
    })
}

/// Makes two addresses answer and answer no more, in turn, while `object` (lb-ebpf's `walk`) looks one
/// of them up. Each new entry lies where the kernel kept the one just removed. A mixture is a look-up
/// that led to the other's Service.
///
/// # Errors
///
/// The kernel refuses.
pub fn pass_entries_on_while_looking_up(object: &[u8], swaps: u32) -> Result<Report> {
    let mut ebpf = load(object)?;
    let mut maps = BpfMaps::open(|name| open(&ebpf, name))?;
    let walks = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(open(&ebpf, "WALKS")?))?;
    let program: &mut SchedClassifier = ebpf
        .program_mut("nh_look_up")
        .context("the object has no nh_look_up")?
        .try_into()?;
    program.load().context("loading nh_look_up")?;

    let start = Instant::now();
    while_running(program, || {
        for number in (0..swaps).flat_map(|_| [1, 2]) {
            let key = FrontendKey::new(Addr::v4([10, 96, 0, number]), Port(80), Proto::TCP);
            let service = ServiceIndex(number.into());
            let frontend = tables::Frontend::new(service, Kind::ClusterIp, false);
            maps.apply(&Op::PutFrontend { key, frontend })?;
            maps.apply(&Op::DeleteFrontend { key })?;
        }
        Ok(())
    })?;
    Ok(Report {
        walks: count(&walks)?,
        swaps,
        took: start.elapsed(),
    })
}

/// Runs the program over and over, on another thread, until `change` has returned.
fn while_running(program: &SchedClassifier, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        let runner = scope.spawn(|| run_until(program, &enough));
        let changed = change();
        enough.store(true, Ordering::Relaxed);
        runner.join().expect("the runner does not panic")?;
        changed
    })
}

/// Room for two lists and no more: a new list can only lie where the last but one was.
fn load(object: &[u8]) -> Result<Ebpf> {
    let cells = LIST_LENS.map(u32::from).iter().sum();
    EbpfLoader::new()
        .map_max_entries(names::FRONTENDS, 16)
        .map_max_entries(names::SLOTS, cells)
        .map_max_entries(names::BACKENDS, cells)
        .load(object)
        .context("loading the walker's object")
}

fn open(ebpf: &Ebpf, name: &str) -> Result<MapData> {
    let map = ebpf
        .map(name)
        .with_context(|| format!("the object has no map {name}"))?;
    let (Map::Array(data) | Map::HashMap(data) | Map::PerCpuArray(data)) = map else {
        anyhow::bail!("{name} is of an unexpected kind");
    };
    Ok(MapData::from_fd(data.fd().as_fd().try_clone_to_owned()?)?)
}

fn run_until(program: &SchedClassifier, enough: &AtomicBool) -> Result<()> {
    let packet = [0_u8; 64];
    while !enough.load(Ordering::Relaxed) {
        let run = TestRunOptions {
            data_in: Some(&packet),
            repeat: WALKS_PER_CALL,
            ..TestRunOptions::default()
        };
        program.test_run(run).context("BPF_PROG_TEST_RUN")?;
    }
    Ok(())
}

fn count(walks: &PerCpuArray<MapData, u64>) -> Result<Walks> {
    let sum = |index| -> Result<u64> { Ok(walks.get(&index, 0)?.iter().sum()) };
    Ok(Walks {
        whole: sum(0)?,
        nothing: sum(1)?,
        mixtures: sum(2)?,
    })
}

/// The agent's part.
struct Swapper<'a> {
    maps: &'a mut BpfMaps,
    have: Programmed,
    want: Desired,
    swaps: u32,
}

impl<'a> Swapper<'a> {
    fn start(maps: &'a mut BpfMaps) -> Result<Self> {
        let have = Programmed::restore(&maps.dump()?);
        let mut swapper = Self {
            maps,
            have,
            want: Desired::new(),
            swaps: 0,
        };
        swapper.swap()?;
        Ok(swapper)
    }

    fn run(&mut self, walks: &PerCpuArray<MapData, u64>, goal: Goal, start: Instant) -> Result<()> {
        while self.swaps < goal.swaps || count(walks)?.whole < goal.walks {
            ensure!(
                start.elapsed() < goal.limit,
                "{} swaps and {:?} in {:?}, less than {goal:?}",
                self.swaps,
                count(walks)?,
                goal.limit
            );
            self.swap()?;
        }
        Ok(())
    }

    /// Replaces all backends of the list.
    fn swap(&mut self) -> Result<()> {
        self.swaps += 1;
        let number = u16::try_from(self.swaps % 60_000)? + 1;
        let service = service();
        self.want
            .replace(&service, &[list(&service, Port(number))], None);
        let Diff { ops, full } = diff(&mut self.have, &mut self.want);
        ensure!(full.is_empty(), "{}", full[0]);
        for op in &ops {
            self.maps.apply(op)?;
        }
        self.maps.grace()?;
        for op in self.have.retire() {
            self.maps.apply(&op)?;
        }
        Ok(())
    }
}

fn service() -> ServiceName {
    ServiceName {
        namespace: "default".into(),
        name: "walked".into(),
    }
}

/// A Service port all of whose endpoints listen at `port`, by which the walker knows the list.
fn list(service: &ServiceName, port: Port) -> ServicePort {
    let len = LIST_LENS[usize::from(port.0) % LIST_LENS.len()];
    let endpoints = (0..len).map(|number| {
        let [high, low] = number.to_be_bytes();
        let addr = Addr::from(IpAddr::V4(Ipv4Addr::new(10, 0, high, low)));
        Chosen {
            at: EndpointAddr { addr, port },
            zone: None,
            is_local: false,
            usable: true,
            keeps_flows: true,
            reason: Reason {
                cluster: Some(Why::Ready),
                local: None,
            },
        }
    });
    ServicePort {
        id: ServicePortId {
            service: service.clone(),
            port: String::new(),
            proto: Proto::TCP,
            family: Family::V4,
        },
        frontends: vec![Frontend {
            kind: Kind::ClusterIp,
            addr: Some(Addr::v4([10, 96, 0, 1])),
            port: Port(80),
        }],
        internal_policy: Policy::Cluster,
        external_policy: Policy::Cluster,
        affinity_secs: None,
        source_ranges: Vec::new(),
        choice: Choice {
            uses: Uses {
                cluster: true,
                local: false,
            },
            has_any: true,
            topology: Topology::Unhinted,
            endpoints: endpoints.collect(),
        },
    }
}
