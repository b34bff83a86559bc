//! What an agent tells kubelets, load balancers, Prometheus and kubectl of itself.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener},
    process::Command,
    sync::Arc,
};

use lb_agent::datapath::Pins;
use lb_tests::{
    Agent, Cluster, Lab, Node, Serve, agent,
    cluster::objects as cluster_objects,
    http::Answer,
    objects::{self, service},
    scene::{NODE, Scene, TCP, TCP_PORT, ZONE},
    wait,
};
use serde_json::{Value, json};

const HEALTH: u16 = 10256;
const METRICS: u16 = 10249;
const REASONS: &str = "nearhop_decisions_total";

#[test]
fn probes_are_answered_to_everybody_and_metrics_on_the_node() {
    let scene = Scene::new(1);
    let outside = scene.node.host().at(HEALTH);

    for (path, eligible) in [("/livez", Value::Null), ("/healthz", json!(true))] {
        let answer = scene.client.get(outside, path).unwrap();
        let report = answer.json();

        assert_eq!(answer.code, 200, "{answer:?}");
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
        ] {
            assert!(answer.head.contains(header), "{answer:?}");
        }
        assert_eq!(report["nodeEligible"], eligible, "{report}");
        assert_eq!(report["healthy"], true, "{report}");
        assert_eq!(report["lastUpdated"], report["currentTime"], "{report}");
        for family in ["IPv4", "IPv6"] {
            let last_sync = report["status"][family]["lastUpdated"].as_str().unwrap();
            assert!(
                last_sync < report["lastUpdated"].as_str().unwrap(),
                "{report}"
            );
        }
    }
    assert_eq!(scene.client.get(outside, "/metrics").unwrap().code, 404);

    for (path, body) in [("/healthz", "ok"), ("/proxyMode", "nearhop")] {
        let answer = on_node(&scene.node, METRICS, path).unwrap();
        assert_eq!((answer.code, answer.body.as_str()), (200, body));
    }
    let refused = scene.client.get(scene.node.host().at(METRICS), "/metrics");
    assert!(
        refused.as_ref().unwrap_err().contains("refused"),
        "{refused:?}"
    );
}

#[test]
fn a_node_that_is_about_to_go_is_not_eligible_and_its_agent_is_alive() {
    let scene = Scene::new(1);
    let taint = |key: &str| {
        let mut node = objects::node(NODE, ZONE);
        node["spec"]["taints"] = json!([{"key": key, "effect": "NoSchedule"}]);
        scene.objects.apply(node);
    };

    taint("ToBeDeletedByClusterAutoscaler");
    let refused = eventually(&scene.node, "/healthz", 503);
    assert_eq!(refused["nodeEligible"], false, "{refused}");
    assert_eq!(refused["healthy"], true, "{refused}");
    assert_eq!(on_node(&scene.node, HEALTH, "/livez").unwrap().code, 200);

    taint("node.kubernetes.io/unschedulable");
    eventually(&scene.node, "/healthz", 200);

    scene.objects.remove(&format!("node-default-{NODE}.json"));
    eventually(&scene.node, "/healthz", 503);

    let metrics = on_node(&scene.node, METRICS, "/metrics").unwrap();
    let counted = |series: &str| metrics.metric(series).unwrap();
    assert!(counted("kubeproxy_proxy_healthz_total{code=\"503\"}") >= 2.0);
    assert_eq!(counted("kubeproxy_proxy_livez_total{code=\"200\"}"), 1.0);
    assert_eq!(counted("kubeproxy_proxy_livez_total{code=\"503\"}"), 0.0);
}

#[test]
fn an_agent_that_cannot_program_a_change_is_unhealthy_after_two_sync_periods() {
    let scene = Scene::with_flags(1, &["--sync-period", "1s"]);
    assert_eq!(on_node(&scene.node, HEALTH, "/livez").unwrap().code, 200);
    freeze(&scene, "FRONTENDS");

    scene
        .objects
        .apply(service("default/more", &["10.96.0.11"]).tcp("http", 80));

    let report = eventually(&scene.node, "/livez", 503);
    assert_eq!(report["healthy"], false, "{report}");
    assert_eq!(report["status"]["IPv6"]["healthy"], false, "{report}");
    assert!(
        report["lastUpdated"].as_str() < report["currentTime"].as_str(),
        "{report}"
    );
    let metrics = on_node(&scene.node, METRICS, "/metrics").unwrap();
    let pending = "kubeproxy_sync_proxy_rules_service_changes_pending";
    assert_eq!(metrics.metric(pending), Some(1.0));
    assert!(
        metrics
            .metric("nearhop_syncs_total{result=\"failure\"}")
            .unwrap()
            >= 1.0
    );
    assert!(metrics.metric("nearhop_problems").unwrap() >= 1.0);
}

#[test]
fn every_call_moves_the_counter_of_its_reason_by_one_and_no_other() {
    let scene = Scene::new(1);
    let before = decisions(&scene.node);

    assert_eq!(scene.client.load(Serve::Tcp, TCP, 25).answered(), 25);
    for _ in 0..3 {
        assert!(scene.client.tcp("10.96.0.10:81").is_err());
    }

    let after = decisions(&scene.node);
    // Answering servers of the lab ask who their peers are.
    let asked = |reason: &str| reason == "pass-not-a-peer";
    let moved = after
        .iter()
        .filter(|(reason, count)| !asked(reason) && before[*reason] != **count);
    let moved: BTreeMap<_, _> = moved
        .map(|(reason, count)| (reason.as_str(), count - before[reason]))
        .collect();
    assert_eq!(
        moved,
        BTreeMap::from([("forward-node", 25), ("reject-unowned-port", 3)])
    );
}

#[test]
fn what_is_programmed_shows_in_the_metrics() {
    let scene = Scene::new(2);
    let metrics = on_node(&scene.node, METRICS, "/metrics").unwrap();
    let kind = "content-type: text/plain; version=0.0.4; charset=utf-8";
    assert!(metrics.head.contains(kind), "{}", metrics.head);

    let status = scene.node.cli().status().unwrap();
    for (series, expected) in [
        ("nearhop_ready", json!(1)),
        ("nearhop_service_ports", status["services"].clone()),
        (
            "nearhop_sync_operations_total",
            status["first_sync_ops"].clone(),
        ),
        (
            "nearhop_map_entries{map=\"FRONTENDS\"}",
            status["maps"]["FRONTENDS"]["used"].clone(),
        ),
        (
            "nearhop_map_entries{map=\"BACKENDS\"}",
            status["maps"]["BACKENDS"]["used"].clone(),
        ),
        (
            "nearhop_map_entries{map=\"SLOTS\"}",
            status["maps"]["SLOTS"]["used"].clone(),
        ),
        (
            "nearhop_map_capacity{map=\"SLOTS\"}",
            status["maps"]["SLOTS"]["capacity"].clone(),
        ),
        ("nearhop_problems", json!(0)),
        ("kubeproxy_sync_proxy_rules_service_changes_total", json!(1)),
        (
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            json!(2),
        ),
    ] {
        assert_eq!(metrics.metric(series), expected.as_f64(), "{series}");
    }
    let watches = metrics.body.contains("nearhop_watch_");
    assert!(!watches, "a folder has no watches:\n{}", metrics.body);
}

#[test]
fn an_address_that_is_taken_is_tried_again_or_ends_the_agent_as_told() {
    let lab = Lab::new();
    let (node, objects) = (lab.node("a"), lab.objects());
    objects.apply(service("default/web", &["10.96.0.10"]).tcp("http", 80));
    let taken = || {
        let place = node.host().place();
        place
            .netns
            .run(|| Ok(TcpListener::bind(("127.0.0.1", METRICS))?))
            .unwrap()
    };
    let holder = taken();

    let strict = node.start_agent(node.run_command(&objects, &["--bind-address-hard-fail"], &[]));
    assert_eq!(strict.wait_exit().code(), Some(1));
    let log = strict.log();
    assert!(
        log.contains("cannot serve /metrics on 127.0.0.1:10249"),
        "{log}"
    );
    assert!(log.contains("--metrics-bind-address"), "no remedy: {log}");

    let patient = node.agent(&objects);
    assert_eq!(on_node(&node, HEALTH, "/livez").unwrap().code, 200);
    assert!(
        patient.log().contains("trying again every 5 seconds"),
        "{}",
        patient.log()
    );
    drop(holder);
    wait::until("the metrics", wait::PATIENCE, || {
        on_node(&node, METRICS, "/metrics")
    })
    .unwrap();
}

#[test]
fn no_address_is_no_server() {
    let flags = ["--healthz-bind-address=", "--metrics-bind-address="];
    let scene = Scene::with_flags(1, &flags);

    for port in [HEALTH, METRICS] {
        let answer = on_node(&scene.node, port, "/healthz");
        assert!(
            answer.as_ref().unwrap_err().contains("refused"),
            "{answer:?}"
        );
    }
}

#[test]
fn a_cluster_sees_its_agents_start_its_watches_its_nodes_health_and_how_long_a_pod_took() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab);
    let node = lab.node(NODE);
    let kubeconfig = cluster.account();
    cluster.apply([cluster_objects::node(NODE, ZONE, 2)]);
    cluster.apply([cluster_objects::service("web", 80, TCP_PORT)]);
    let agent = start_agent(&node, &kubeconfig);
    agent.wait_ready().unwrap();
    let metrics = || on_node(&node, METRICS, "/metrics");

    let timed = "kubeproxy_network_programming_duration_seconds";
    let count = |metrics: &Answer, family| {
        let series = format!("{timed}_count{{ip_family=\"{family}\"}}");
        metrics.metric(&series).unwrap_or_default()
    };
    assert_eq!(count(&metrics().unwrap(), "IPv4"), 0.0);
    let pod = node.pod("10.0.1.1");
    let mut ready = cluster_objects::pod("web-0", "web", NODE, &pod);
    ready["status"]["conditions"][0]["lastTransitionTime"] = json!(next_second());
    cluster.apply([ready]);
    let seen = wait::until("the pod's slices to be timed", wait::PATIENCE, || {
        let metrics = metrics()?;
        let both = ["IPv4", "IPv6"]
            .iter()
            .all(|family| count(&metrics, family) >= 1.0);
        both.then_some(metrics.clone()).ok_or(metrics.body)
    });
    let seen = seen.unwrap();
    let sum = seen
        .metric(&format!("{timed}_sum{{ip_family=\"IPv4\"}}"))
        .unwrap();
    assert!((0.0..60.0).contains(&sum), "{sum}");

    for kind in ["Service", "EndpointSlice", "Node", "ServiceCIDR"] {
        let of = |name: &str| seen.metric(&format!("nearhop_watch_{name}{{kind=\"{kind}\"}}"));
        assert_eq!(of("answering"), Some(1.0), "{kind}");
        assert_eq!(of("lists_total"), Some(1.0), "{kind}");
        assert_eq!(of("failures_total"), Some(0.0), "{kind}");
    }

    eventually(&node, "/healthz", 200);
    cluster.kubectl(&[
        "taint",
        "node",
        NODE,
        "ToBeDeletedByClusterAutoscaler=1:NoSchedule",
    ]);
    eventually(&node, "/healthz", 503);
    cluster.kubectl(&["taint", "node", NODE, "ToBeDeletedByClusterAutoscaler-"]);
    eventually(&node, "/healthz", 200);

    let events = wait::until("the Event Starting", wait::PATIENCE, || {
        let events = cluster.get(&["events.events.k8s.io"]);
        let items = events["items"].as_array().into_iter().flatten();
        let mut starts = items.filter(|event| event["reason"] == "Starting");
        starts.next().cloned().ok_or(events.to_string())
    });
    let event = events.unwrap();
    assert_eq!(event["regarding"]["kind"], "Node", "{event}");
    assert_eq!(event["regarding"]["name"], NODE, "{event}");
    assert_eq!(event["reportingController"], "nearhop", "{event}");
    assert_eq!(event["type"], "Normal", "{event}");
    assert!(
        !agent.log().contains("cannot write an Event"),
        "{}",
        agent.log()
    );
}

/// As a kubelet writes times: in whole seconds. The next one is after the agent's start, as it must be to
/// be counted.
fn next_second() -> String {
    let now = Command::new("date")
        .args(["--utc", "--date=1 second", "+%FT%TZ"])
        .output();
    agent::text(&now.unwrap().stdout).trim().to_owned()
}

fn on_node(node: &Node, port: u16, path: &str) -> Result<Answer, String> {
    node.host()
        .get(SocketAddr::from(([127, 0, 0, 1], port)), path)
}

/// The report that comes with this code.
fn eventually(node: &Node, path: &str, code: u16) -> Value {
    let answer = wait::until(&format!("{path} to say {code}"), wait::PATIENCE, || {
        let answer = on_node(node, HEALTH, path)?;
        match answer.code == code {
            true => Ok(answer),
            false => Err(format!("{answer:?}")),
        }
    });
    answer.unwrap().json()
}

/// Each reason and its count.
fn decisions(node: &Node) -> BTreeMap<String, u64> {
    let metrics = on_node(node, METRICS, "/metrics").unwrap();
    let lines = metrics.body.lines().filter_map(|line| {
        let (reason, count) = line.strip_prefix(REASONS)?.rsplit_once(' ')?;
        let reason = reason.strip_prefix("{reason=\"")?.strip_suffix("\"}")?;
        Some((reason.to_owned(), count.parse().unwrap()))
    });
    lines.collect()
}

/// From then on no process can write to the map by system calls.
fn freeze(scene: &Scene, map: &str) {
    let sets = Pins::new(scene.node.pin_path()).sets().unwrap();
    let path = sets.last().unwrap().map(map);
    let mut bpftool = Command::new("bpftool");
    let output = bpftool
        .args(["map", "freeze", "pinned"])
        .arg(&path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", agent::text(&output.stderr));
}

fn start_agent(node: &Node, kubeconfig: &std::path::Path) -> Arc<Agent> {
    let mut command = node
        .host()
        .place()
        .command(&agent::program().unwrap(), &[])
        .unwrap();
    command.args(["run", "--node", node.name()]);
    command.arg("--kubeconfig").arg(kubeconfig);
    command.arg("--cgroup").arg(node.cgroup());
    command.arg("--pin-path").arg(node.pin_path());
    node.start_agent(command)
}
