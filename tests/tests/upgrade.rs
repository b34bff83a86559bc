//! Agents whose maps have different layouts follow each other, and maps grow, while clients connect
//! without a pause: no connect fails, none goes astray, and sockets that live across it know what they
//! asked for. Whatever an agent is killed at, each version carries it on.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]
#![expect(
    clippy::print_stdout,
    reason = "what chance brought, shown with --show-output"
)]

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use lb_tests::{
    Agent, Node, Objects, Pod, Serve,
    agent::{self, Version},
    objects::{service, slice},
    protocol::{Family, Tally},
    scene::{self, NODE, Scene, TCP_PORT, ZONE},
    traffic::{RunningLoad, Socket, address},
    wait,
};
use serde_json::Value;

#[test]
fn upgrades_and_rollbacks_under_load_lose_no_connect_and_mislead_none() {
    let scene = Scene::new(2);
    let crowd = Crowd::new(&scene);
    let loads = crowd.start(&scene);
    let sockets = Sockets::open(&scene);
    let mut agent = Arc::clone(&scene.agent);
    let mut version = Version::This;

    for number in 1..=6 {
        agent.kill().unwrap();
        version = version.other();
        agent = scene.node.start_agent_of(version, &scene.objects);
        agent.wait_ready().unwrap();

        sockets.still_know_what_they_asked_for();
        is_single(&scene.node, version, number);
        let takeovers = scene.node.cli_of(version).number("takeovers").unwrap();
        assert_eq!(takeovers, 1);
        loads.go_on(&scene);
    }

    loads.were_all_answered_by_their_own();
}

#[test]
fn an_upgrade_killed_anywhere_is_carried_on_by_either_version() {
    let scene = Scene::new(2);
    let crowd = Crowd::new(&scene);
    let loads = crowd.start(&scene);
    let sockets = Sockets::open(&scene);
    scene.agent.kill().unwrap();
    let mut random = Random::new();
    let whole = time_of_a_switch(&scene);

    let mut version = Version::Next;
    for number in 0..20 {
        let before = pinned(&scene.node);
        version = match number % 2 {
            0 => version.other(),
            _ => random.version(),
        };
        let agent = scene.node.start_agent_of(version, &scene.objects);
        match number % 2 {
            // In the middle of the switch, which is short beside the start before it.
            0 => until_pins_change(&scene.node, &before),
            _ => wait::let_run(random.part_of(whole)),
        }
        agent.kill().unwrap();
        println!("{version:?} left {:?}", pinned(&scene.node));
    }

    let last = random.version();
    let agent = scene.node.start_agent_of(last, &scene.objects);
    agent.wait_ready().unwrap();
    sockets.still_know_what_they_asked_for();
    eventually_single(&scene.node, last);
    loads.go_on(&scene);
    loads.were_all_answered_by_their_own();
}

#[test]
fn cleanup_removes_what_a_killed_upgrade_has_left() {
    let scene = Scene::new(1);
    scene.agent.kill().unwrap();
    let mut random = Random::new();
    let whole = time_of_a_switch(&scene);

    for _ in 0..5 {
        let (first, second) = (random.version(), random.version());
        for version in [first, second] {
            let agent = scene.node.start_agent_of(version, &scene.objects);
            wait::let_run(random.part_of(whole));
            agent.kill().unwrap();
        }
        let cleanup = scene.node.cli_of(first).on_pins(&["cleanup"]);

        assert!(cleanup.status.success(), "{}", agent::text(&cleanup.stderr));
        assert!(!scene.node.pin_path().exists());
    }
}

#[test]
fn the_other_version_says_that_it_cannot_read_what_serves() {
    let scene = Scene::new(1);
    scene.agent.kill().unwrap();
    let next = scene.node.start_agent_of(Version::Next, &scene.objects);
    next.wait_ready().unwrap();

    let error = scene.node.cli().status().unwrap_err();

    assert!(
        error.contains("v2-1") && error.contains("cannot read"),
        "{error}"
    );
    let second = scene
        .node
        .start_agent(scene.node.run_command(&scene.objects, &[], &[]));
    assert!(!second.wait_exit().success());
    let log = second.log();
    assert!(
        log.contains(&format!("another agent (pid {})", next.id())),
        "{log}"
    );
    let cleanup = scene.node.cli().on_pins(&["cleanup"]);
    let warning = format!("the agent with pid {} still runs", next.id());
    assert!(agent::text(&cleanup.stderr).contains(&warning));
}

#[test]
fn maps_grow_under_load_and_sockets_keep_their_backends() {
    let scene = Scene::new(2);
    let crowd = Crowd::new(&scene);
    let loads = crowd.start(&scene);
    let sockets = Sockets::open(&scene);
    let before = sockets.servers();

    for (number, endpoints) in [(1, 200), (2, 600), (3, 1500)] {
        scene
            .agent
            .programs(|| crowd.grow(&scene.objects, endpoints));

        let status = scene.node.cli().status().unwrap();
        assert_eq!(status["growths"], number, "{status}");
        assert_eq!(status["full"], 0, "{status}");
        sockets.still_know_what_they_asked_for();
        assert_eq!(
            sockets.servers(),
            before,
            "indices and generations are the same"
        );
        is_single(&scene.node, Version::This, number);
        loads.go_on(&scene);
    }

    let answered = loads.were_all_answered_by_their_own();
    let connects = u64::from(answered[2]);
    wait::until(
        "every connect of one Service to be counted, once",
        wait::PATIENCE,
        || match figures_of_other(&scene.node)? {
            (connections, 0) if connections == connects => Ok(()),
            figures => Err(format!("{figures:?} of {connects} connects")),
        },
    )
    .unwrap();
}

#[test]
fn a_growth_killed_anywhere_is_carried_on_by_the_next_agent() {
    let scene = Scene::new(2);
    let crowd = Crowd::new(&scene);
    let loads = crowd.start(&scene);
    let sockets = Sockets::open(&scene);
    scene.agent.kill().unwrap();
    let mut random = Random::new();
    crowd.grow(&scene.objects, 130);
    let whole = time_of_a_start(&scene);

    for number in 1..=10 {
        crowd.grow(&scene.objects, 130 + 100 * number);
        let agent = scene.node.start_agent_of(Version::This, &scene.objects);
        wait::let_run(random.part_of(whole));
        agent.kill().unwrap();
        println!("left {:?}", pinned(&scene.node));
    }

    let last = scene.node.agent(&scene.objects);
    wait::until("all of the crowd to find room", wait::PATIENCE, || {
        let status = scene.node.cli().status()?;
        match status["full"] == 0 && status["backends"].as_u64() > Some(1000) {
            true => Ok(()),
            false => Err(status.to_string()),
        }
    })
    .unwrap();
    sockets.still_know_what_they_asked_for();
    eventually_single(&scene.node, Version::This);
    loads.go_on(&scene);
    loads.were_all_answered_by_their_own();
    drop(last);
}

#[test]
fn adopted_maps_grow_to_a_given_capacity_and_never_shrink() {
    let scene = Scene::new(1);
    let backends = || {
        let status = scene.node.cli().status().unwrap();
        status["maps"]["BACKENDS"]["capacity"].as_u64()
    };
    assert_eq!(backends(), Some(256));
    scene.agent.kill().unwrap();

    let flags = ["--capacity-backends", "1000"];
    let larger = scene.node.agent_with(&scene.objects, &flags);
    assert_eq!(backends(), Some(1000));
    larger.kill().unwrap();

    let flags = ["--capacity-backends", "300"];
    let smaller = scene.node.agent_with(&scene.objects, &flags);
    assert_eq!(backends(), Some(1000));
    let log = smaller.log();
    assert!(
        log.contains("--capacity-backends 300 (it has 1000)"),
        "{log}"
    );
}

/// A second Service, whose one real endpoint must never be taken for one of `default/web`, and a third,
/// with as many endpoints as it takes to fill the maps, on addresses of nobody.
struct Crowd {
    server: Pod,
    clients: [Pod; 2],
}

const OTHER: &str = "10.96.0.20:80";

impl Crowd {
    fn new(scene: &Scene) -> Self {
        let server = scene.node.pod("10.0.2.1");
        server.serve(Serve::Tcp, TCP_PORT);
        let other = service("default/other", &["10.96.0.20"]).tcp("http", 80);
        let slice = slice("default/other", "IPv4").tcp("http", TCP_PORT);
        let slice = slice.endpoint(server.addr(), NODE, ZONE);
        scene.agent.programs(|| {
            let items = [other.into(), slice.into()];
            scene.objects.apply_together("other.json", items);
        });
        Self {
            server,
            clients: ["10.0.1.201", "10.0.1.202"].map(|addr| scene.node.pod(addr)),
        }
    }

    fn grow(&self, objects: &Objects, endpoints: u16) {
        let crowd = service("default/crowd", &["10.96.0.30"]).tcp("http", 80);
        let slice = slice("default/crowd", "IPv4").tcp("http", TCP_PORT);
        let slice = (0..endpoints).fold(slice, |slice, number| {
            let [high, low] = number.to_be_bytes();
            slice.endpoint(format!("10.9.{high}.{low}"), NODE, ZONE)
        });
        objects.apply_together("crowd.json", [crowd.into(), slice.into()]);
    }

    fn start<'a>(&'a self, scene: &'a Scene) -> Loads<'a> {
        let [tcp, udp] = &self.clients;
        let web = |port| scene.backends.iter().map(|pod| pod.at(port)).collect();
        Loads {
            running: vec![
                (
                    scene.client.start_load(Serve::Tcp, scene::TCP, 2),
                    web(TCP_PORT),
                ),
                (
                    udp.start_load(Serve::Udp, scene::UDP, 1),
                    web(scene::UDP_PORT),
                ),
                (
                    tcp.start_load(Serve::Tcp, OTHER, 2),
                    BTreeSet::from([self.server.at(TCP_PORT)]),
                ),
            ],
            other: &self.server,
        }
    }
}

/// Loads, and who may answer each.
struct Loads<'a> {
    running: Vec<(RunningLoad<'a>, BTreeSet<SocketAddr>)>,
    other: &'a Pod,
}

impl Loads<'_> {
    /// Waits until both Services have answered some more.
    fn go_on(&self, scene: &Scene) {
        let answered = || {
            let web: u32 = scene
                .backends
                .iter()
                .map(|pod| pod.answered(Serve::Tcp, TCP_PORT))
                .sum();
            (web, self.other.answered(Serve::Tcp, TCP_PORT))
        };
        let before = answered();
        wait::until(
            "50 more answers of each",
            wait::PATIENCE,
            || match answered() {
                (web, other) if web >= before.0 + 50 && other >= before.1 + 50 => Ok(()),
                now => Err(format!("{before:?} became {now:?}")),
            },
        )
        .unwrap();
    }

    /// Returns how many answers each load had.
    fn were_all_answered_by_their_own(self) -> Vec<u32> {
        let mut answers = Vec::new();
        for (load, own) in self.running {
            let tally: Tally = load.finish(100);
            println!("{} answers", tally.answered());
            answers.push(tally.answered());
            assert!(
                tally.errors.is_empty(),
                "{:?} of {}",
                tally.errors,
                tally.answered()
            );
            let answered: BTreeSet<_> = tally.answers.keys().copied().collect();
            assert_eq!(answered, own, "{:?}", tally.answers);
        }
        answers
    }
}

/// Sockets that live longer than an agent.
struct Sockets<'a> {
    tcp: Socket<'a>,
    connected: Socket<'a>,
    unconnected: Socket<'a>,
}

impl<'a> Sockets<'a> {
    fn open(scene: &'a Scene) -> Self {
        Self {
            tcp: scene.client.tcp(scene::TCP).unwrap(),
            connected: scene.client.udp(scene::UDP).unwrap(),
            unconnected: scene.client.udp_socket(Family::Inet),
        }
    }

    fn still_know_what_they_asked_for(&self) {
        assert_eq!(self.tcp.peer_name(), Ok(address(scene::TCP)));
        assert_eq!(self.connected.peer_name(), Ok(address(scene::UDP)));
        self.servers();
    }

    /// Who answers each, with the Service's address as the source.
    fn servers(&self) -> [SocketAddr; 3] {
        let service = Some(address(scene::UDP));
        self.connected.send("hi").unwrap();
        let connected = self.connected.receive().unwrap();
        assert_eq!(connected.from, service);
        self.unconnected.send_to(scene::UDP, "hi").unwrap();
        let unconnected = self.unconnected.receive().unwrap();
        assert_eq!(unconnected.from, service);
        [
            self.tcp.ask("hi").unwrap().server,
            connected.answer.server,
            unconnected.answer.server,
        ]
    }
}

/// The connections to `default/other` and how many of them are active.
fn figures_of_other(node: &Node) -> Result<(u64, u64), String> {
    let output = node.cli().on_pins(&["services", "--stats", "-o", "json"]);
    let document: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    let mut services = document["services"].as_array().into_iter().flatten();
    let other = services.find(|service| service["name"] == "other");
    let figure = |name: &str| other.and_then(|other| other[name].as_u64());
    let figures = figure("connections").zip(figure("active"));
    figures.ok_or_else(|| document.to_string())
}

/// One set of maps, of this number, and one link for each program.
fn is_single(node: &Node, version: Version, number: u32) {
    let schema = match version {
        Version::This => 1,
        Version::Next => 2,
    };
    assert_eq!(
        pinned(node).unwrap(),
        ["links".to_owned(), format!("v{schema}-{number}")]
    );
    let status = node.cli_of(version).status().unwrap();
    assert_eq!(status["unfinished"], serde_json::json!([]), "{status}");
    assert_eq!(status["ready"], true, "{status}");
}

/// What the agent still removes after it is ready is soon gone.
fn eventually_single(node: &Node, version: Version) {
    wait::until("one set of maps", wait::PATIENCE, || {
        let status = node.cli_of(version).status()?;
        let pinned = pinned(node)?;
        match pinned.len() {
            2 if status["ready"] == true => Ok(()),
            _ => Err(format!("{pinned:?}, {status}")),
        }
    })
    .unwrap();
}

/// Looks without a pause: what is waited for is over in milliseconds. Bounded, as the version that serves
/// changes nothing.
fn until_pins_change(node: &Node, before: &Result<Vec<String>, String>) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while pinned(node) == *before && Instant::now() < deadline {}
}

fn pinned(node: &Node) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(node.pin_path()).map_err(|error| error.to_string())?;
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    Ok(names)
}

/// How long a version takes to take over from the other.
fn time_of_a_switch(scene: &Scene) -> Duration {
    let begun = Instant::now();
    let next = scene.node.start_agent_of(Version::Next, &scene.objects);
    next.wait_ready().unwrap();
    next.kill().unwrap();
    begun.elapsed()
}

fn time_of_a_start(scene: &Scene) -> Duration {
    let begun = Instant::now();
    let agent: Arc<Agent> = scene.node.agent(&scene.objects);
    agent.kill().unwrap();
    begun.elapsed()
}

/// Other points in each run; a failed test prints the seed.
struct Random(fastrand::Rng);

impl Random {
    fn new() -> Self {
        let numbers = fastrand::Rng::new();
        println!("seed {}", numbers.get_seed());
        Self(numbers)
    }

    fn next(&mut self) -> u32 {
        self.0.u32(..)
    }

    fn version(&mut self) -> Version {
        match self.next() % 2 {
            0 => Version::This,
            _ => Version::Next,
        }
    }

    fn part_of(&mut self, whole: Duration) -> Duration {
        whole.mul_f64(f64::from(self.next()) / f64::from(u32::MAX))
    }
}
