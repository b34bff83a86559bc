//! `lb-agent why`: what becomes of one flow on this node, and why. From the pinned maps, and so what the
//! kernel does; or from a folder of objects, and so what it would do, with the reason for each endpoint.

mod explain;
mod json;
mod table;

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use lb_common::{
    addr::{Port, Proto},
    reason::Reason,
    select::{Decision, Flow, Origin},
    tables::{Client, Kind},
};

use crate::{
    cli::{
        NOT_INSTALLED, Output, Pinned,
        plan::{self, Plan, plan},
        status::is_ready,
    },
    datapath::{
        BpfMaps, Pins, attach::attached, maps::boot_nanos, process::own_client, store::MapStore,
    },
    model::{Model, ServicePort, name::ServicePortId},
    tables::{
        TableSet,
        build::Desired,
        diff::diff,
        programmed::Programmed,
        why::{Answer, Held},
    },
};

/// Show what becomes of a connection to a Service, and why
///
/// Says which Service port it is, which list serves it and by which policy, what topology hints did, what
/// session affinity says, and which backends may be chosen, with their zones; and where it is refused,
/// dropped or left alone, the reason and what to do next.
///
/// Reads the pinned maps, and asks them what the programs in the kernel ask, by the same code. With
/// --objects it needs neither root nor a cluster: it says what the node would do with the objects of a
/// folder, and why for each endpoint.
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLES, allow_missing_positional = true)]
pub struct Args {
    /// Who asks: pod, host, outside, here, or the cookie of a network namespace
    ///
    /// Session affinity tells clients apart by their network namespace. `here` is the one that this
    /// command runs in; a number is the cookie of another, as `bpftool map dump` shows it in AFFINITY.
    #[arg(value_name = "CLIENT", default_value = "pod")]
    client: Asker,
    /// The Service's address and port, as in `10.96.0.10:80` or `[fd00::10]:80`
    #[arg(value_name = "ADDRESS:PORT", value_parser = address)]
    to: SocketAddr,
    /// The protocol
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
    protocol: Protocol,
    /// Answer from a folder of objects, as `plan` reads it
    #[arg(long, value_name = "DIR", requires = "node")]
    objects: Option<PathBuf>,
    /// The node to answer for, with --objects
    #[arg(long, value_name = "NAME", requires = "objects")]
    node: Option<String>,
    /// The node's zone, whatever its Node object says, with --objects
    #[arg(long, value_name = "ZONE", requires = "objects")]
    zone: Option<String>,
    #[command(flatten)]
    pinned: Pinned,
}

const EXAMPLES: &str = "\
Examples:
  Where do pods on this node go that connect to this Service?
    lb-agent why 10.96.0.10:80

  Why does traffic leave the zone?
    lb-agent why 10.96.0.10:80 -o json | jq -r .why_no_hints

  Which backend does this pod keep, by session affinity?
    nsenter --net=/proc/PID/ns/net lb-agent why here 10.96.0.10:80

  What would node-1 do with the objects in this folder?
    lb-agent why --objects examples/cross-zone --node node-1 pod 10.100.200.50:80

  On a node of a cluster:
    kubectl -n kube-system exec POD -- /lb-agent why 10.96.0.10:80

Exit codes:
  0  forwarded to a backend
  1  it cannot be told, and the error says why
  3  nothing is installed
  4  refused, dropped, or left alone";

const NOT_FORWARDED: u8 = 4;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
}

impl From<Protocol> for Proto {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::TCP,
            Protocol::Udp => Self::UDP,
        }
    }
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asker {
    Pod,
    Host,
    Outside,
    /// Whoever is in the network namespace of this command.
    Here,
    Cookie(u64),
}

impl FromStr for Asker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "pod" => Self::Pod,
            "host" => Self::Host,
            "outside" => Self::Outside,
            "here" => Self::Here,
            cookie => match cookie.parse() {
                Ok(cookie @ 1..) => Self::Cookie(cookie),
                Ok(0) | Err(_) => {
                    return Err(
                        "a client is pod, host, outside, here, or the cookie of a network namespace; \
                         for what a certain pod keeps by affinity, run `why here` in its network \
                         namespace: nsenter --net=/proc/PID/ns/net lb-agent why here …"
                            .to_owned(),
                    );
                }
            },
        })
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod => f.write_str("pod"),
            Self::Host => f.write_str("host"),
            Self::Outside => f.write_str("outside"),
            Self::Here => f.write_str("here"),
            Self::Cookie(cookie) => cookie.fmt(f),
        }
    }
}

impl Asker {
    fn origin(self) -> Origin {
        match self {
            Self::Outside => Origin::Outside,
            Self::Pod | Self::Host | Self::Here | Self::Cookie(_) => Origin::Node,
        }
    }

    fn client(self) -> Result<Option<Client>> {
        match self {
            Self::Pod | Self::Host | Self::Outside => Ok(None),
            Self::Here => own_client().map(Some).context(
                "asking for the cookie of this network namespace, which kernels before 5.14 do not \
                 tell; say `pod`",
            ),
            Self::Cookie(cookie) => Ok(Some(Client(cookie))),
        }
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "it is not ADDRESS:PORT, such as 10.96.0.10:80 or [fd00::10]:80; `kubectl get services -A` \
         shows the addresses"
            .to_owned()
    })
}

/// One question, and all that is known to answer it.
struct Case {
    /// As it was given.
    asker: Asker,
    flow: Flow,
    node: String,
    zone: Option<String>,
    /// Zones that are known of, and whether these are all.
    zones: BTreeSet<String>,
    all_zones: bool,
    answer: Answer,
    obstacle: Option<Obstacle>,
    /// The Service ports of the objects, if it is answered from objects.
    planned: Option<Vec<ServicePort>>,
}

/// Why the tables do not matter.
#[derive(Clone, Copy, Debug)]
enum Obstacle {
    /// A program is missing, or the tables were never complete.
    NotReady,
    /// The programs are at the sockets of this node.
    Outside,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let case = match &args.objects {
        Some(objects) => Case::of_objects(args, objects.clone())?,
        None => {
            let pins = Pins::new(&args.pinned.pin_path);
            if !pins.exist() {
                anstream::eprintln!("nothing is installed at {}", pins.root().display());
                return Ok(ExitCode::from(NOT_INSTALLED));
            }
            Case::of_pins(args, &pins)?
        }
    };
    let mut out = io::BufWriter::new(anstream::stdout().lock());
    match args.pinned.output {
        Output::Table => table::write(&case, &mut out)?,
        Output::Json => json::write(&case, &mut out)?,
    }
    out.flush()?;
    Ok(if case.is_forwarded() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_FORWARDED)
    })
}

impl Case {
    /// What the kernel does.
    fn of_pins(args: &Args, pins: &Pins) -> Result<Self> {
        let client = args.client.client()?;
        let maps = BpfMaps::open_pinned(pins)?;
        let status = maps.status()?;
        let ready = is_ready(&attached(pins)?, &status);
        let flow = args.flow();
        let (held, answer) = read(&maps, &flow, client)?;
        let zone = Some(status.zone.as_str()).filter(|zone| !zone.is_empty());
        let labels = held.tables.zones.iter().map(|zone| zone.text.as_str());
        Ok(Self {
            zones: labels
                .chain(zone)
                .filter(|zone| !zone.is_empty())
                .map(str::to_owned)
                .collect(),
            all_zones: false,
            asker: args.client,
            node: status.node.as_str().to_owned(),
            zone: zone.map(str::to_owned),
            obstacle: obstacle(flow.origin).or((!ready).then_some(Obstacle::NotReady)),
            flow,
            answer,
            planned: None,
        })
    }

    /// What it would do.
    fn of_objects(args: &Args, objects: PathBuf) -> Result<Self> {
        let plan = plan(&plan::Args {
            objects,
            node: args.node.clone().unwrap_or_default(),
            zone: args.zone.clone(),
            output: args.pinned.output,
        })?;
        plan.warn(&mut anstream::stderr().lock())?;
        let flow = args.flow();
        // Whom a client was given is nowhere but in the kernel.
        let held = Held::new(tables_of(&plan.model), Vec::new(), 0);
        let Plan {
            model,
            services,
            zones,
            ..
        } = plan;
        Ok(Self {
            asker: args.client,
            flow,
            node: model.node().to_owned(),
            zone: model.zone().map(str::to_owned),
            zones,
            all_zones: true,
            answer: held.answer(&flow, None),
            obstacle: obstacle(flow.origin),
            planned: Some(services),
        })
    }

    fn is_forwarded(&self) -> bool {
        self.obstacle.is_none() && matches!(self.answer.decision, Decision::Forward(_))
    }

    /// The Service port as the objects want it.
    fn planned_port(&self) -> Option<&ServicePort> {
        let id = &self.answer.served.as_ref()?.id;
        let mut planned = self.planned.iter().flatten();
        planned.find(|port| port.id == *id)
    }

    /// Who is to answer here as the objects say, by a kind of address that has no program.
    fn only_planned(&self) -> Option<(&ServicePortId, Kind)> {
        let mut planned = self.planned.iter().flatten();
        planned.find_map(|port| {
            let mut frontends = port.frontends.iter();
            let at = frontends.find(|at| {
                at.addr.is_none_or(|addr| addr == self.flow.addr)
                    && at.port == self.flow.port
                    && port.id.proto == self.flow.proto
            })?;
            Some((&port.id, at.kind))
        })
    }
}

impl Args {
    fn flow(&self) -> Flow {
        Flow {
            addr: self.to.ip().into(),
            port: Port(self.to.port()),
            proto: self.protocol.into(),
            origin: self.client.origin(),
        }
    }
}

/// Packets from outside meet no program.
fn obstacle(origin: Origin) -> Option<Obstacle> {
    match origin {
        Origin::Node => None,
        Origin::Outside => Some(Obstacle::Outside),
    }
}

/// Reads the maps and asks them. They are read one after the other while an agent may be writing, and
/// then seem to contradict themselves, as they never do to a program.
fn read(maps: &BpfMaps, flow: &Flow, client: Option<Client>) -> Result<(Held, Answer)> {
    let mut tries = 0;
    loop {
        let held = Held::new(maps.dump()?, maps.affinity()?, boot_nanos());
        let answer = held.answer(flow, client);
        tries += 1;
        if tries == 3 || !answer.reasons.contains(&Reason::DropStale) {
            return Ok((held, answer));
        }
    }
}

/// The tables that a node would make of a model.
fn tables_of(model: &Model) -> TableSet {
    let mut desired = Desired::new();
    for name in model.services() {
        desired.replace(name, &model.service_ports(name), model.zone());
    }
    let _left_out = desired.set_service_cidrs(&model.service_cidrs());
    let mut tables = TableSet::new(desired.capacities());
    let mut programmed = Programmed::restore(&tables);
    for op in diff(&mut programmed, &mut desired).ops {
        tables.apply(&op);
    }
    tables
}
