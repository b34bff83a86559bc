//! Session affinity at the socket: all that one pod asks of a Service port goes to one backend, until it
//! has not asked for the time-out. The time is the kernel's, so the test measures it and never assumes
//! that a step was quick.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use lb_common::tables::{AFFINITY_MAX, names};
use lb_tests::{
    Pod, Serve,
    scene::{self, Scene, TCP_PORT, web, web_slice},
    wait,
};

/// kube-proxy's default.
const HOURS: u32 = 10_800;

/// What the project's e2e tests call sticky.
const STICKY: u32 = 15;

#[test]
fn a_pod_stays_with_one_backend_and_pods_spread() {
    let scene = affine(3, HOURS);

    for to in [scene::tcp_addresses(), scene::udp_addresses()].concat() {
        let proto = if scene::tcp_addresses().contains(&to) {
            Serve::Tcp
        } else {
            Serve::Udp
        };
        assert_eq!(servers(&scene.client, proto, to, STICKY).len(), 1, "{to}");
    }

    let others: Vec<_> = (100..130)
        .map(|number| scene.node.pod(&format!("10.0.1.{number}")))
        .collect();
    let used: BTreeSet<_> = others
        .iter()
        .flat_map(|pod| servers(pod, Serve::Tcp, scene::tcp_addresses()[0], 2))
        .collect();
    // Thirty pods leave one of three backends out once in 60,000 runs.
    assert_eq!(used.len(), 3, "{used:?}");
}

#[test]
fn affinity_is_switched_on_and_off_while_it_serves() {
    let scene = Scene::new(3);
    let [to, ..] = scene::tcp_addresses();

    assert_eq!(servers(&scene.client, Serve::Tcp, to, 60).len(), 3);
    scene
        .agent
        .programs(|| scene.objects.apply(web().client_affinity(HOURS)));
    assert_eq!(servers(&scene.client, Serve::Tcp, to, 60).len(), 1);
    scene.agent.programs(|| scene.objects.apply(web()));
    assert_eq!(servers(&scene.client, Serve::Tcp, to, 60).len(), 3);
}

#[test]
fn a_backend_that_leaves_the_list_is_replaced_for_good() {
    let scene = affine(3, HOURS);
    let [to, ..] = scene::tcp_addresses();
    let first = only(servers(&scene.client, Serve::Tcp, to, STICKY));

    let rest: Vec<_> = scene
        .backends
        .iter()
        .filter(|pod| pod.at(TCP_PORT) != first)
        .cloned()
        .collect();
    scene
        .agent
        .programs(|| scene.objects.apply(web_slice(&rest)));
    let second = only(servers(&scene.client, Serve::Tcp, to, STICKY));
    assert_ne!(second, first);

    scene
        .agent
        .programs(|| scene.objects.apply(web_slice(&scene.backends)));
    let third = only(servers(&scene.client, Serve::Tcp, to, STICKY));
    assert_eq!(third, second, "the first one is back, and not asked for");
}

#[test]
fn a_new_flow_starts_the_time_out_anew_and_its_end_frees_the_client() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let scene = affine(3, 2);
    let [to, ..] = scene::tcp_addresses();
    let ask = || {
        let begun = Instant::now();
        (begun, only(servers(&scene.client, Serve::Tcp, to, 1)))
    };

    let (mut last, first) = ask();
    let mut proven = Duration::ZERO;
    let deadline = Instant::now() + Duration::from_secs(30);
    let start = last;
    while proven < 2 * TIMEOUT && Instant::now() < deadline {
        wait::let_run(TIMEOUT / 4);
        let (begun, server) = ask();
        if last.elapsed() >= TIMEOUT {
            // A slow machine: the client may have been free by now.
            return expires(&ask);
        }
        assert_eq!(server, first, "after {:?}", start.elapsed());
        (last, proven) = (begun, start.elapsed());
    }
    expires(&ask);
}

/// Waits the time-out out until another backend answers: once in 3^20 runs it never does.
fn expires(ask: &impl Fn() -> (Instant, SocketAddr)) {
    let (_, first) = ask();
    let other = (0..20).find(|_| {
        wait::let_run(Duration::from_millis(2050));
        ask().1 != first
    });
    assert!(other.is_some(), "always {first}");
}

#[test]
fn with_a_full_table_the_clients_hash_decides_and_it_is_counted() {
    let scene = affine(3, HOURS);
    let [to, ..] = scene::tcp_addresses();
    only(servers(&scene.client, Serve::Tcp, to, 1));
    fill(&scene);

    let other = scene.node.pod("10.0.1.201");
    let before = scene.node.cli().counter("affinity-full").unwrap();
    let server = only(servers(&other, Serve::Tcp, to, STICKY));
    let counted = scene.node.cli().counter("affinity-full").unwrap() - before;

    assert!(scene.has_backend(server), "{server}");
    assert_eq!(counted, u64::from(STICKY));
}

/// Puts clients that do not exist beside the one that does.
fn fill(scene: &Scene) {
    let pin = scene.node.pin_path().join("v1").join(names::AFFINITY);
    let map = MapData::from_pin(pin).unwrap();
    let mut map = HashMap::<_, [u8; 16], [u8; 16]>::try_from(Map::HashMap(map)).unwrap();
    let (key, given) = map.iter().next().unwrap().unwrap();
    for number in 0..u64::from(AFFINITY_MAX) - 1 {
        let mut client = key;
        client[..8].copy_from_slice(&(u64::MAX - number).to_ne_bytes());
        map.insert(client, given, 0).unwrap();
    }
}

fn affine(backends: u8, timeout_secs: u32) -> Scene {
    let scene = Scene::new(backends);
    let service = web().client_affinity(timeout_secs);
    scene.agent.programs(|| scene.objects.apply(service));
    scene
}

/// Who answered so many flows, each of a socket of its own.
fn servers(pod: &Pod, serve: Serve, to: SocketAddr, flows: u32) -> BTreeSet<SocketAddr> {
    let tally = pod.load(serve, to, flows);
    assert_eq!(tally.answers.values().sum::<u32>(), flows, "{tally:?}");
    tally.answers.into_keys().collect()
}

fn only(servers: BTreeSet<SocketAddr>) -> SocketAddr {
    assert_eq!(servers.len(), 1, "{servers:?}");
    servers.into_iter().next().unwrap()
}
