//! One packet's way through one program, by BPF_PROG_TEST_RUN: a packet goes in, and what comes out is
//! the verdict, the packet, and the counters that moved. No interface and no network; the maps are filled
//! by the agent's own engine from objects, as on a node.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use aya::programs::{TestRun, TestRunOptions, TestRunResult};
use lb_agent::{
    datapath::{BpfMaps, load::Object, maps::LocalTables},
    model::state::Settings,
    source::{Batch, document},
    sync::{Engine, SyncReport, Wanted},
};

/// Programs with their maps, filled, and attached nowhere.
pub struct Journeys {
    object: Object,
    engine: Engine<BpfMaps>,
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub verdict: Verdict,
    pub packet: Vec<u8>,
    /// Counters that moved, and by how much.
    pub counted: BTreeMap<&'static str, u64>,
    /// Of the program, per packet.
    pub took: Duration,
}

/// What a packet program returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The next program, or the kernel, has its turn.
    Next,
    Dropped,
    /// Sent out of the interface it came from.
    SentBack,
    Other(u32),
}

impl From<u32> for Verdict {
    fn from(code: u32) -> Self {
        match code {
            u32::MAX => Self::Next,
            2 => Self::Dropped,
            7 => Self::SentBack,
            other => Self::Other(other),
        }
    }
}

/// How a packet came to where the program sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// By an interface of this node.
    ByInterface,
    /// From a process of this node.
    FromNode,
}

impl Came {
    /// The kernel's `struct __sk_buff` up to `ingress_ifindex`.
    fn context(self) -> [u8; 40] {
        let mut context = [0; 40];
        let index: u32 = match self {
            Self::ByInterface => 1,
            Self::FromNode => 0,
        };
        context[36..].copy_from_slice(&index.to_ne_bytes());
        context
    }
}

/// Longest packet that comes out.
const ROOM: usize = 4096;

impl Journeys {
    /// Programs whose maps hold what a node of this name has of these objects.
    pub fn new(node: &str, objects: &str) -> Result<Self> {
        let mut wanted = Wanted::new(Settings {
            node: node.to_owned(),
            zone: None,
            external_ips: true,
        });
        let contents = document::parse("objects.yaml", objects);
        let contents = contents.map_err(|problem| anyhow!("{problem}"))?;
        ensure!(contents.problems.is_empty(), "{:?}", contents.problems);
        wanted.fold(Batch {
            apply: contents.objects.into_values().collect(),
            complete: true,
            ..Batch::default()
        });
        let object = Object::create(wanted.capacities())?;
        let mut engine = Engine::start(wanted, object.maps()?)?;
        engine.sync(&mut SyncReport::default())?;
        Ok(Self { object, engine })
    }

    /// The maps that the programs read and write.
    pub fn maps(&self) -> &BpfMaps {
        self.engine.store()
    }

    /// Says what the programs must know of the node.
    pub fn write_local(&mut self, local: &LocalTables) -> Result<()> {
        self.object.maps()?.write_local(local)
    }

    /// Runs a program on a packet.
    pub fn run(&mut self, program: &str, packet: &[u8], came: Came) -> Result<Arrival> {
        self.repeat(program, packet, came, 1)
    }

    /// Runs a program on a packet so many times. The counters are those of all runs.
    pub fn repeat(
        &mut self,
        program: &str,
        packet: &[u8],
        came: Came,
        times: u32,
    ) -> Result<Arrival> {
        let before = self.maps().counters()?;
        let mut out = vec![0; ROOM];
        let context = came.context();
        let result = self.test_run(
            program,
            TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                repeat: times,
                ..TestRunOptions::default()
            },
        )?;
        out.truncate(result.data_size_out as usize);
        let after = self.maps().counters()?;
        let counted = after
            .into_iter()
            .map(|(reason, count)| (reason, count - before[reason]))
            .filter(|(_, count)| *count > 0)
            .collect();
        Ok(Arrival {
            verdict: result.return_value.into(),
            packet: out,
            counted,
            took: result.duration,
        })
    }

    /// Runs a program on a packet that comes in, and looks at nothing: for very many.
    pub fn send(&mut self, program: &str, packet: &[u8]) -> Result<()> {
        let options = TestRunOptions {
            data_in: Some(packet),
            ..TestRunOptions::default()
        };
        self.test_run(program, options).map(drop)
    }

    fn test_run(&mut self, program: &str, options: TestRunOptions<'_>) -> Result<TestRunResult> {
        let run = self.object.packet_program(program)?.test_run(options);
        run.with_context(|| format!("running {program}"))
    }
}
