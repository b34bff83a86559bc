//! `lb-agent why` on the kernel's own maps: it says what the programs then do, which of the cases of
//! missing hints it is, and what a client keeps by session affinity; and it changes nothing by asking.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Output,
    sync::Arc,
};

use aya::maps::{HashMap, Map, MapData};
use lb_common::tables::names;
use lb_tests::{
    Agent, Lab, Node, Objects, Serve, agent,
    objects::{service, slice},
    scene::{self, NODE, Scene, TCP, web},
};
use serde_json::{Value, json};

#[test]
fn what_it_says_may_be_chosen_is_what_answers() {
    let scene = Scene::new(3);
    let answer = why(&scene.node, 0, &[TCP]);
    let tally = scene.client.load(Serve::Tcp, scene::tcp_addresses()[0], 60);

    let answered: BTreeSet<_> = tally.answers.keys().map(ToString::to_string).collect();
    assert_eq!(addresses(&answer), answered);
    assert_eq!(answer["service"]["name"], "web");
    assert_eq!(answer["backends"][0]["locality"], "node");
    assert_eq!(answer["reasons"], json!(["forward-node"]));
}

#[test]
fn what_is_not_forwarded_is_what_the_programs_count() {
    let scene = Scene::new(1);
    let elsewhere = slice("default/local", "IPv4")
        .tcp("http", scene::TCP_PORT)
        .endpoint("10.0.9.9", "node-b", "zone-b");
    scene.agent.programs(|| {
        scene.objects.apply_together(
            "local.json",
            [
                service("default/local", &["10.96.0.20"])
                    .tcp("http", 80)
                    .internal_traffic_policy("Local")
                    .into(),
                elsewhere.into(),
                service("default/empty", &["10.96.0.30"])
                    .tcp("http", 80)
                    .into(),
            ],
        );
    });

    for (to, verdict, reason) in [
        ("10.96.0.20:80", "drop", "drop-no-local-endpoint"),
        ("10.96.0.30:80", "reject", "reject-no-endpoints"),
        ("10.96.0.30:81", "reject", "reject-unowned-port"),
        ("10.96.0.40:80", "drop", "drop-unallocated"),
        ("10.0.1.1:81", "pass", "pass-not-a-service"),
    ] {
        let answer = why(&scene.node, 4, &[to]);
        assert_eq!(answer["verdict"], verdict, "{to}: {answer}");
        assert_eq!(answer["reasons"], json!([reason]), "{to}: {answer}");

        let counted = || scene.node.cli().counter(reason).unwrap();
        let before = counted();
        let _ = scene.client.tcp(to);
        assert!(counted() > before, "{to} is counted as {reason}");
    }
}

#[test]
fn each_case_of_missing_hints_is_told_from_the_maps() {
    let (lab, node, objects, agent) = alone();
    let spread = [("a", None), ("a", None), ("a", None), ("c", None)];
    for (own_zone, auto, endpoints, expected) in [
        (Some("a"), true, &spread[..], "too uneven"),
        (
            Some("a"),
            true,
            &spread[..1],
            "fewer endpoints (1) than zones (2: a, c",
        ),
        (
            None,
            false,
            &[("a", Some("a")), ("c", Some("c"))],
            "this node has no zone",
        ),
        (
            Some("b"),
            false,
            &[("a", Some("a")), ("c", Some("c"))],
            "no ready endpoint is hinted for this zone",
        ),
        (
            Some("a"),
            false,
            &[("a", Some("a")), ("c", None)],
            "a ready endpoint has none",
        ),
        (
            Some("a"),
            false,
            &[("a", Some("a")), ("c", Some("c"))],
            "followed",
        ),
    ] {
        agent.programs(|| objects.apply_together("all.json", cluster(own_zone, auto, endpoints)));

        let output = node.cli().on_pins(&["why", "10.96.0.10:80"]);
        let table = agent::text(&output.stdout);
        let hints = table.lines().find(|line| line.starts_with("hints "));
        let hints = hints.unwrap_or_else(|| panic!("no hints in {table}"));
        assert!(hints.contains(expected), "{expected}: {table}");
    }
    drop(lab);
}

#[test]
fn a_client_is_told_what_it_keeps_and_asking_changes_nothing() {
    const HOURS: u32 = 10_800;
    let scene = Scene::new(3);
    let sticky = web().client_affinity(HOURS);
    scene.agent.programs(|| scene.objects.apply(sticky));
    let cli = scene.node.cli().within(&scene.client);
    let here = || json_of(0, &cli.on_pins(&["why", "here", TCP, "-o", "json"]));

    let before = here();
    assert_eq!(before["affinity"]["timeout_secs"], HOURS);
    assert_eq!(before["affinity"]["client"]["state"], "new", "{before}");

    let tally = scene.client.load(Serve::Tcp, TCP, 5);
    let [kept] = tally.answers.keys().collect::<Vec<_>>()[..] else {
        panic!("one backend: {tally:?}")
    };
    let kept = kept.to_string();
    let (maps, counters) = (affinity(&scene), counters(&scene));
    let after = here();
    let client = &after["affinity"]["client"];
    assert_eq!(client["state"], "keeps", "{after}");
    assert_eq!(client["backend"], kept, "{after}");
    assert_eq!(after["reasons"], json!(["forward-affine"]));
    let keeping = after["backends"].as_array().unwrap().iter();
    let keeping: Vec<_> = keeping.filter(|backend| backend["clients"] == 1).collect();
    assert_eq!(keeping.len(), 1, "{after}");
    assert_eq!(keeping[0]["address"], kept);
    let cookie = client["netns_cookie"].to_string();
    assert_eq!(
        why(&scene.node, 0, &[&cookie, TCP])["affinity"],
        after["affinity"]
    );
    assert_eq!((affinity(&scene), self::counters(&scene)), (maps, counters));

    let others: Vec<_> = scene
        .backends
        .iter()
        .filter(|pod| pod.at(scene::TCP_PORT).to_string() != kept)
        .cloned()
        .collect();
    scene
        .agent
        .programs(|| scene.objects.apply(scene::web_slice(&others)));
    assert_eq!(here()["affinity"]["client"]["state"], "backend-left");
}

#[test]
fn without_nearhop_it_is_told_so_and_without_its_programs_nothing_is_forwarded() {
    let scene = Scene::new(1);
    scene.agent.kill().unwrap();
    assert_eq!(
        why(&scene.node, 0, &[TCP])["verdict"],
        "forward",
        "the kernel serves on"
    );

    fs::remove_file(scene.node.pin_path().join("links/nh_connect4")).unwrap();
    let answer = why(&scene.node, 4, &[TCP]);
    assert_eq!(
        (&answer["verdict"], &answer["reasons"]),
        (&json!("pass"), &json!([]))
    );
    assert_eq!(answer["next"][0], "lb-agent status");

    assert!(scene.node.cli().on_pins(&["cleanup"]).status.success());
    let output = scene.node.cli().on_pins(&["why", TCP]);
    assert_eq!(output.status.code(), Some(3));
}

/// `why -o json` on a node, which ends with this code.
fn why(node: &Node, code: i32, args: &[&str]) -> Value {
    json_of(
        code,
        &node.cli().on_pins(&[&["why", "-o", "json"], args].concat()),
    )
}

fn json_of(code: i32, output: &Output) -> Value {
    let error = agent::text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn addresses(answer: &Value) -> BTreeSet<String> {
    let backends = answer["backends"].as_array().unwrap().iter();
    let address = |backend: &Value| backend["address"].as_str().unwrap().to_owned();
    backends.map(address).collect()
}

/// All that the kernel remembers of clients.
fn affinity(scene: &Scene) -> BTreeMap<[u8; 16], [u8; 16]> {
    let pin = scene.node.pin_path().join("v1").join(names::AFFINITY);
    let map = MapData::from_pin(pin).unwrap();
    let map = HashMap::<_, [u8; 16], [u8; 16]>::try_from(Map::HashMap(map)).unwrap();
    map.iter().map(Result::unwrap).collect()
}

fn counters(scene: &Scene) -> Value {
    scene.node.cli().status().unwrap()["counters"].clone()
}

/// A node with an agent and nothing else, for what only the maps have to say.
fn alone() -> (Lab, Node, Objects, Arc<Agent>) {
    let lab = Lab::new();
    let (objects, node) = (lab.objects(), lab.node(NODE));
    objects.apply_together("all.json", cluster(None, false, &[]));
    let agent = node.agent(&objects);
    (lab, node, objects, agent)
}

/// This node in a zone, and a Service whose endpoints are in zones and have hints; there is one more
/// Service with an endpoint in zone c, so that the node knows of that zone.
fn cluster(own_zone: Option<&str>, auto: bool, endpoints: &[(&str, Option<&str>)]) -> Vec<Value> {
    let mut node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}});
    if let Some(zone) = own_zone {
        node["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": zone});
    }
    let mut web = Value::from(service("default/web", &["10.96.0.10"]).tcp("http", 80));
    if auto {
        web["metadata"]["annotations"] = json!({"service.kubernetes.io/topology-mode": "Auto"});
    }
    let mut slices = Value::from(slice("default/web", "IPv4").tcp("http", 8080));
    slices["endpoints"] = (1..)
        .zip(endpoints)
        .map(|(last, (zone, hint))| {
            let hint = hint.map(|zone| json!({"forZones": [{"name": zone}]}));
            json!({"addresses": [format!("10.0.9.{last}")], "zone": zone, "hints": hint})
        })
        .collect();
    let other = slice("default/other", "IPv4")
        .tcp("http", 8080)
        .endpoint("10.0.8.1", "node-c", "c");
    let owner = service("default/other", &["10.96.0.20"]).tcp("http", 80);
    vec![node, web, slices, owner.into(), other.into()]
}
