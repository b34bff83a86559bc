//! Cross-zone traffic before and after hints, on real sockets: two simulated nodes in two zones, one
//! agent on each, and the files of `examples/cross-zone`. Started by `cargo xtask demo`. With `--cluster`
//! the agents follow a real control plane, whose own controller writes the EndpointSlices and the hints.

use std::{
    collections::BTreeMap,
    fmt::Write,
    io::{self, IsTerminal},
    net::Ipv4Addr,
    panic,
    path::Path,
    process::{self, Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, ensure};
use clap::Parser;
use lb_tests::{
    Agent, Cluster, Lab, Node, Objects, Pod, Serve, agent,
    cluster::{control_plane, objects},
    lab::Undo,
    wait,
};
use serde::Serialize;
use serde_json::{Value, json};

const NODES: &str = include_str!("../../../examples/cross-zone/nodes.yaml");
const SERVICE: &str = include_str!("../../../examples/cross-zone/service.yaml");
const SLICE: &str = include_str!("../../../examples/cross-zone/endpointslice.yaml");
const SLICE_WITH_HINTS: &str =
    include_str!("../../../examples/cross-zone/endpointslice-hints.yaml");

/// What the files above say.
const FRONTEND: &str = "10.100.200.50:80";
const ENDPOINTS: [(&str, &str); 3] = [
    ("192.168.2.141", "a"),
    ("192.168.2.83", "a"),
    ("192.168.2.43", "c"),
];
const ENDPOINT_PORT: u16 = 8080;
const SERVICE_NAME: &str = "msu-control";
/// Where the Service has its address from.
const RANGE: &str = "10.100.0.0/16";
const CLIENTS: [(&str, &str); 2] = [("192.168.2.10", "a"), ("192.168.2.20", "c")];

const REQUESTS: u32 = 100;

/// Shows how topology hints keep traffic inside its zone, with real agents and real connections
#[derive(Parser)]
struct Args {
    /// Print only the counts, as JSON: {"before":{ZONE:{ENDPOINT:COUNT}},"after":{…}}
    #[arg(long)]
    json: bool,
    /// On a real control plane: etcd, kube-apiserver and kube-controller-manager
    #[arg(long)]
    cluster: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // The lab reports its own failures by panics; here they are errors like any other.
    panic::set_hook(Box::new(|panic| {
        complain(panic.payload_as_str().unwrap_or("the demo broke"));
    }));
    match run(&args) {
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
    if args.cluster {
        control_plane::program()?;
    }
    let lab = Lab::create(undo_on_signal)?;
    eprintln!("making two nodes, three servers and two clients");
    let stage = Stage::build(&lab, args.cluster)?;
    let before = stage.measure()?;
    stage.add_hints()?;
    let after = stage.measure()?;
    let excerpt = stage.maps()?;
    drop(stage);
    lab.undo();
    let outcome = Outcome { before, after };
    print(args, &outcome, &excerpt)?;
    let crossed = crossed(&outcome.after);
    ensure!(
        crossed == 0,
        "{crossed} answers crossed zones in spite of the hints"
    );
    Ok(())
}

/// Ctrl-C and SIGTERM end the demo as if it had come to its end.
fn undo_on_signal(lab: Undo) -> anyhow::Result<()> {
    ctrlc::set_handler(move || {
        INTERRUPTED.store(true, Ordering::Relaxed);
        eprintln!("interrupted: cleaning up");
        lab.undo();
        process::exit(130);
    })
    .context("catch Ctrl-C")
}

/// Everything that takes part.
struct Stage {
    clients: Vec<(&'static str, Pod)>,
    agents: Vec<Arc<Agent>>,
    nodes: BTreeMap<&'static str, Node>,
    source: Source,
}

/// What the agents follow.
enum Source {
    Folder(Objects),
    Cluster(Box<Cluster>),
}

impl Stage {
    fn build(lab: &Lab, on_cluster: bool) -> anyhow::Result<Self> {
        let nodes =
            BTreeMap::from(["a", "c"].map(|zone| (zone, lab.node(&format!("node-{zone}")))));
        let servers = ENDPOINTS.map(|(endpoint, zone)| {
            let server = nodes[zone].pod(endpoint);
            server.serve(Serve::Http, ENDPOINT_PORT);
            (&nodes[zone], server)
        });
        let clients = CLIENTS
            .map(|(addr, zone)| (zone, nodes[zone].pod(addr)))
            .into();
        let (source, agents) = match on_cluster {
            true => follow_cluster(lab, &nodes, &servers)?,
            false => follow_folder(lab, &nodes),
        };
        Ok(Self {
            clients,
            agents,
            nodes,
            source,
        })
    }

    /// Sends the requests from each zone, and counts who answered.
    fn measure(&self) -> anyhow::Result<Counts> {
        let mut counts = Counts::new();
        for (zone, client) in &self.clients {
            eprintln!("{REQUESTS} requests to {FRONTEND} from a pod in zone {zone}");
            let tally = client.load(Serve::Http, FRONTEND, REQUESTS);
            ensure!(
                tally.errors.is_empty(),
                "requests from zone {zone} failed: {:?}",
                tally.errors
            );
            let answers = ENDPOINTS.map(|(endpoint, _)| {
                let addr: Ipv4Addr = endpoint.parse().expect("a literal address");
                (endpoint, tally.of((addr, ENDPOINT_PORT).into()))
            });
            counts.insert(zone, answers.into());
        }
        Ok(counts)
    }

    /// Brings hints about, and waits until every agent has programmed them.
    fn add_hints(&self) -> anyhow::Result<()> {
        match &self.source {
            Source::Folder(objects) => {
                eprintln!("adding hints to the EndpointSlice");
                let agents: Vec<_> = self.agents.iter().map(Arc::as_ref).collect();
                agent::all_program(&agents, || {
                    objects.write("endpointslice.yaml", SLICE_WITH_HINTS);
                });
                Ok(())
            }
            Source::Cluster(cluster) => {
                eprintln!("setting trafficDistribution: PreferSameZone on the Service");
                let patch = r#"{"spec":{"trafficDistribution":"PreferSameZone"}}"#;
                cluster.kubectl(&["patch", "service", SERVICE_NAME, "--patch", patch]);
                until_each_serves(&self.nodes, "with hints", |service| {
                    service["hints"] == "zone"
                })
            }
        }
    }

    /// What `bpftool` shows of one node's maps.
    fn maps(&self) -> anyhow::Result<String> {
        let dir = self.nodes["a"].pin_path().join("v1");
        let mut excerpt = String::new();
        for map in ["NAMES", "SERVICES", "BACKENDS"] {
            let pin = dir.join(map);
            writeln!(excerpt, "$ bpftool map dump pinned {}", pin.display())?;
            for cell in used_cells(&pin)? {
                writeln!(excerpt, "  {cell}")?;
            }
        }
        Ok(excerpt)
    }
}

/// Agents that follow the files of the example.
fn follow_folder(lab: &Lab, nodes: &BTreeMap<&str, Node>) -> (Source, Vec<Arc<Agent>>) {
    let objects = lab.objects();
    objects.write("nodes.yaml", NODES);
    objects.write("service.yaml", SERVICE);
    objects.write("endpointslice.yaml", SLICE);
    eprintln!("starting an agent on each node");
    let agents = nodes.values().map(|node| node.agent(&objects)).collect();
    (Source::Folder(objects), agents)
}

/// Agents that follow a cluster with the example's Nodes and Service, where the servers are Pods.
fn follow_cluster(
    lab: &Lab,
    nodes: &BTreeMap<&str, Node>,
    servers: &[(&Node, Pod)],
) -> anyhow::Result<(Source, Vec<Arc<Agent>>)> {
    eprintln!("starting etcd, kube-apiserver and kube-controller-manager");
    let cluster = Cluster::start(lab);
    let pods = servers.iter().map(|(node, server)| {
        let name = format!("server-{}", server.addr());
        objects::pod(&name, SERVICE_NAME, node.name(), server)
    });
    let range = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "example"},
        "spec": {"cidrs": [RANGE]},
    });
    cluster.apply(pods.chain([range]));
    let apply = ["apply", "--filename=-"];
    wait::until("the example's objects", wait::PATIENCE, || {
        // The address is refused until the range is known.
        let output = cluster.try_kubectl(&apply, &[NODES, SERVICE].join("---\n"));
        let said = agent::text(&output.stderr);
        output.status.success().then_some(()).ok_or(said)
    })?;
    let selector = json!({"spec": {"selector": {"app": SERVICE_NAME}}}).to_string();
    cluster.kubectl(&["patch", "service", SERVICE_NAME, "--patch", &selector]);

    eprintln!("starting an agent on each node");
    let kubeconfig = cluster.account();
    let agents: Vec<_> = nodes
        .values()
        .map(|node| node.agent_of(&kubeconfig))
        .collect();
    for agent in &agents {
        agent.wait_ready()?;
    }
    until_each_serves(nodes, "with all endpoints", |service| {
        let backends = service["cluster"]["backends"].as_array();
        backends.is_some_and(|backends| backends.len() == ENDPOINTS.len())
    })?;
    Ok((Source::Cluster(Box::new(cluster)), agents))
}

/// Waits until what every node serves of the Service is as wanted.
fn until_each_serves(
    nodes: &BTreeMap<&str, Node>,
    what: &str,
    wanted: impl Fn(&Value) -> bool,
) -> anyhow::Result<()> {
    for node in nodes.values() {
        let what = format!("{} to serve {SERVICE_NAME} {what}", node.name());
        wait::until(&what, wait::PATIENCE, || {
            let output = node.cli().on_pins(&["services", "-o", "json"]);
            let services: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let all = services["services"].as_array();
            let served = all.is_some_and(|all| {
                all.iter()
                    .any(|service| service["name"] == SERVICE_NAME && wanted(service))
            });
            served.then_some(()).ok_or(services)
        })?;
    }
    Ok(())
}

/// The cells of a map that hold something, with the names of their fields.
fn used_cells(pin: &Path) -> anyhow::Result<Vec<Value>> {
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["--json", "map", "dump", "pinned"]).arg(pin);
    let output = bpftool
        .output()
        .context("run bpftool: apt-get install bpftool")?;
    let cells: Vec<Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("dump {}: {}", pin.display(), agent::text(&output.stderr)))?;
    let formatted = cells.into_iter().map(|mut cell| cell["formatted"].take());
    Ok(formatted.filter(|cell| !is_zero(&cell["value"])).collect())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.iter().all(is_zero),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

/// Client zone → endpoint → answers.
type Counts = BTreeMap<&'static str, BTreeMap<&'static str, u32>>;

#[derive(Serialize)]
struct Outcome {
    before: Counts,
    after: Counts,
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn print(args: &Args, outcome: &Outcome, excerpt: &str) -> anyhow::Result<()> {
    if args.json {
        println!("{}", serde_json::to_string(outcome)?);
    } else {
        println!(
            "\n{}\n{excerpt}",
            table(outcome, &Paint::for_stdout())?.trim_end()
        );
    }
    Ok(())
}

fn table(outcome: &Outcome, paint: &Paint) -> anyhow::Result<String> {
    let mut out = String::new();
    writeln!(out, "{:26}{:28}after hints", "", "before hints")?;
    for (_, zone) in CLIENTS {
        writeln!(
            out,
            "{REQUESTS} requests to {FRONTEND} from a pod in zone {zone}"
        )?;
        for (endpoint, endpoint_zone) in ENDPOINTS {
            let bar = |counts: &Counts| paint.bar(counts[zone][endpoint], zone == endpoint_zone);
            let (before, after) = (bar(&outcome.before), bar(&outcome.after));
            let row = format!("  {endpoint:14} zone {endpoint_zone}   {before}   {after}");
            writeln!(out, "{}", row.trim_end())?;
        }
        writeln!(out)?;
    }
    let share = |counts| {
        let (crossed, total) = (crossed(counts), REQUESTS * 2);
        format!("{crossed:>4} of {total} ({} %)", crossed * 100 / total)
    };
    let (before, after) = (share(&outcome.before), share(&outcome.after));
    writeln!(out, "{:26}{before:28}{after}", "crossed zones")?;
    Ok(out)
}

/// Answers from another zone than the client's.
fn crossed(counts: &Counts) -> u32 {
    let crossed = |zone: &str| -> u32 {
        let elsewhere = ENDPOINTS
            .iter()
            .filter(|(_, endpoint_zone)| *endpoint_zone != zone);
        elsewhere.map(|(endpoint, _)| counts[zone][endpoint]).sum()
    };
    CLIENTS.iter().map(|(_, zone)| crossed(zone)).sum()
}

/// Bars, coloured on a terminal: green stays in its zone, red leaves it.
struct Paint {
    colours: bool,
}

impl Paint {
    fn for_stdout() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            colours: wanted && io::stdout().is_terminal(),
        }
    }

    /// A count and its bar, 25 columns wide.
    fn bar(&self, count: u32, same_zone: bool) -> String {
        const WIDTH: usize = 20;
        let filled = (count as usize * WIDTH).div_ceil(REQUESTS as usize);
        let (bar, rest) = ("█".repeat(filled), " ".repeat(WIDTH - filled));
        let colour = if same_zone { 32 } else { 31 };
        match self.colours {
            true => format!("{count:>4} \x1b[{colour}m{bar}\x1b[0m{rest}"),
            false => format!("{count:>4} {bar}{rest}"),
        }
    }
}
