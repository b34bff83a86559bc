//! One test for each walk-through, and for what befalls nearhop itself. What does not work yet says so and
//! is counted as not run.

use std::collections::BTreeMap;

use lb_tests::{
    kind::{answers::Answers, install},
    skip,
};
use serde_json::{Value, json};

use crate::world::{
    World, client, deployment, exclusively, in_zone, on_nodes_of_their_own, service,
};

#[test]
fn a_pod_reaches_the_api_server_by_its_name() {
    let world = World::new("api");
    let client = world.client(client("client", "zone-b"));

    let version = client.run(&["api", "https://kubernetes.default"]);

    assert!(version.starts_with("v1."), "{version}");
}

#[test]
fn w1_traffic_stays_in_its_zone_once_there_are_hints() {
    let world = World::new("w1");
    let [a, b, c] = world.kind.nodes();
    world.apply([
        in_zone(deployment("near", "msu-control", 2), "zone-a"),
        in_zone(deployment("far", "msu-control", 1), "zone-c"),
        service("msu-control", 80),
    ]);
    let (in_a, in_c) = (
        world.client(client("in-a", "zone-a")),
        world.client(client("in-c", "zone-c")),
    );
    let far = world.address_of("far");
    for node in [a, c] {
        world.wait_for_backends(node, "msu-control", 3);
    }
    for client in [&in_a, &in_c] {
        client.wait_for_name("msu-control:80");
    }
    let counter = world.count_packets(a, &far);

    let before = in_a.ask("msu-control:80", 100);
    assert_eq!(before.failed(), 0, "{before:?}");
    assert_shares(&before, 3);
    let packets = counter.settled();
    assert!(packets > 0, "the packets to another zone were counted");

    world.patch(
        "service/msu-control",
        &json!({"spec": {"trafficDistribution": "PreferSameZone"}}),
    );
    for (node, wanted) in [(a, 2), (c, 1)] {
        world.wait_for_backends(node, "msu-control", wanted);
    }
    let packets = counter.settled();
    let after = in_a.ask("msu-control:80", 100);
    assert_eq!((after.of("near"), after.failed()), (100, 0), "{after:?}");
    assert_shares(&after, 2);
    assert_eq!(counter.settled(), packets, "no packet left for zone c");
    let from_c = in_c.ask("msu-control:80", 100);
    assert_eq!(from_c.of("far"), 100, "{from_c:?}");

    // What people compared `iptables-save` for.
    let lists = [a, c].map(|node| world.backends(node, "msu-control"));
    assert!(!lists[0].contains(&format!("{far}:80")), "{lists:?}");
    assert_eq!(lists[1], [format!("{far}:80")]);
    // There is no pod in zone b, and somebody there asks why.
    let (why, backends) = world.why_no_hints(b, "msu-control", "ignored-no-endpoint-for-zone");
    assert_eq!(backends, 3, "{why}");
    if world.kind.is_of_containers() {
        skip("w1: the lists by bpftool", "kind's nodes have no bpftool");
        return;
    }
    let dumps = [a, c].map(|node| world.ring_length(node, "w1/msu-control"));
    assert_eq!(dumps, [2, 1], "bpftool shows the same");
}

#[test]
fn w2_five_pods_and_one_get_no_hints_and_the_traffic_stays_random() {
    let world = World::new("w2");
    if world.kind.is_of_containers() {
        skip(
            "w2",
            "kind's nodes have equal processors, with which five and one get hints",
        );
        return;
    }
    let mut uneven = service("uneven", 80);
    uneven["metadata"]["annotations"] = json!({"service.kubernetes.io/topology-mode": "Auto"});
    world.apply([
        in_zone(deployment("near", "uneven", 5), "zone-a"),
        in_zone(deployment("far", "uneven", 1), "zone-c"),
        uneven,
    ]);
    let client = world.client(client("client", "zone-a"));

    let why = world.event(
        "uneven",
        "TopologyAwareHintsDisabled",
        "(6 endpoints, 3 zones)",
    );
    for node in world.kind.nodes() {
        world.wait_for_backends(node, "uneven", 6);
    }
    client.wait_for_name("uneven:80");
    let answers = client.ask("uneven:80", 180);

    assert!(why.contains("overload threshold"), "{why}");
    assert_eq!(answers.failed(), 0, "{answers:?}");
    assert_shares(&answers, 6);
    for node in world.kind.nodes() {
        world.wait_for_service(node, "uneven", |service| {
            let why = service["why_no_hints"].as_str().unwrap_or_default();
            service["hints"] == "missing-too-few-or-uneven" && why.starts_with("no hints: ")
        });
    }
    for node in world.kind.nodes() {
        let (why, backends) = world.why_no_hints(node, "uneven", "missing-too-few-or-uneven");
        assert!(why.contains("too uneven"), "{why}");
        assert!(why.contains("(zone zone-a: 5, zone zone-c: 1)"), "{why}");
        assert_eq!(backends, 6, "{why}");
    }
}

#[test]
fn w3_a_cluster_ip_spreads_over_three_pods_and_answers_in_the_cluster_only() {
    let world = World::new("w3");
    let mut service = service("svc-clusterip", 9000);
    service["spec"]["ports"][0]["targetPort"] = json!(80);
    world.apply([
        on_nodes_of_their_own(deployment("webpod", "svc-clusterip", 3)),
        service,
    ]);
    let net_pod = world.client(client("net-pod", "zone-b"));

    let pods = world
        .addresses_of("webpod")
        .into_iter()
        .map(|address| format!("{address}:80"));
    let pods: Vec<String> = pods.collect();
    for pod in &pods {
        let answers = net_pod.ask(pod, 1);
        assert_eq!(answers.answered(), 1, "{answers:?}");
    }
    let [_, b, _] = world.kind.nodes();
    world.wait_for_backends(b, "svc-clusterip", 3);
    let cluster_ip = format!("{}:9000", world.cluster_ip("svc-clusterip"));
    assert_shares(&net_pod.ask(&cluster_ip, 100), 3);

    if world.kind.is_of_containers() {
        skip(
            "w3: from outside",
            "the engine's network has no machine beside the nodes",
        );
        return;
    }
    for pod in &pods {
        let outside = world.ask_from_outside(pod);
        assert_eq!(outside.answered(), 1, "the network is there: {outside:?}");
    }
    let outside = world.ask_from_outside(&cluster_ip);
    assert_eq!(
        (outside.answered(), outside.failed()),
        (0, 1),
        "{outside:?}"
    );
}

#[test]
fn w4_session_affinity_is_switched_on_and_off_live() {
    let world = World::new("w4");
    let [a, ..] = world.kind.nodes();
    world.apply([deployment("web", "sticky", 3), service("sticky", 80)]);
    let client = world.client(client("client", "zone-a"));
    world.wait_for_backends(a, "sticky", 3);
    client.wait_for_name("sticky:80");
    assert_shares(&client.ask("sticky:80", 100), 3);

    // The time-out is 10800 s unless the Service sets one.
    for (affinity, seconds, pods) in [("ClientIP", 10_800, 1), ("None", 0, 3)] {
        world.patch(
            "service/sticky",
            &json!({"spec": {"sessionAffinity": affinity}}),
        );
        world.wait_for_service(a, "sticky", |service| service["affinity_secs"] == seconds);
        let answers = client.ask("sticky:80", 100);
        assert_eq!(answers.failed(), 0, "{answers:?}");
        assert_shares(&answers, pods);
    }
}

#[test]
fn w6_two_three_and_four_replicas_have_equal_shares() {
    let world = World::new("w6");
    let [a, ..] = world.kind.nodes();
    let mut shares = service("shares", 80);
    shares["spec"]["type"] = json!("NodePort");
    world.apply([deployment("pod", "shares", 2), shares]);
    let client = world.client(client("client", "zone-a"));
    client.wait_for_name("shares:80");

    for replicas in [2, 3, 4] {
        let scale = format!("--replicas={replicas}");
        world.kubectl(&["scale", "deployment/pod", &scale]);
        world.wait_for_backends(a, "shares", replicas);
        let answers = client.ask("shares:80", 400);
        assert_eq!(answers.failed(), 0, "{answers:?}");
        assert_shares(&answers, replicas);
    }

    skip(
        "w6: a NodePort of every node",
        "NodePorts are not served yet",
    );
}

#[test]
fn w7_requests_by_name_show_several_servers() {
    let world = World::new("w7");
    world.apply([deployment("demo", "demo-svc", 3), service("demo-svc", 80)]);
    let client = world.client(client("client", "zone-c"));
    let [.., c] = world.kind.nodes();
    world.wait_for_backends(c, "demo-svc", 3);
    client.wait_for_name("demo-svc:80");
    let figures = |stats: &Value| -> BTreeMap<String, u64> {
        let backends = stats["backends"].as_array().into_iter().flatten();
        let figure = |backend: &Value| {
            let address = backend["address"].as_str().unwrap().to_owned();
            (address, backend["connections"].as_u64().unwrap())
        };
        backends.map(figure).collect()
    };
    let before = figures(&world.statistics(c, "demo-svc", |_| true));
    let mut total = Answers::default();

    for name in [
        "demo-svc:80",
        "demo-svc.w7:80",
        "demo-svc.w7.svc.cluster.local:80",
    ] {
        let answers = client.ask(name, 12);
        assert_eq!(
            (answers.answered(), answers.failed()),
            (12, 0),
            "{answers:?}"
        );
        assert!(answers.by.len() > 1, "{answers:?}");
        total.merge(answers);
    }

    // What `ipvsadm -Ln --stats` showed. A connection has ended when its last packet is acknowledged.
    let stats = world.statistics(c, "demo-svc", |stats| stats["active"] == 0);
    let after = figures(&stats);
    for (name, address) in world.pods_of("demo") {
        let at = format!("{address}:80");
        assert_eq!(
            after[&at] - before[&at],
            u64::from(total.of(&name)),
            "{total:?} {stats}"
        );
    }
    assert_eq!(stats["failures"], 0, "{stats}");
    assert_ne!(stats["bytes_in"], 0, "{stats}");

    skip("w7: `ipvsadm -Lcn`", "`lb-agent flows` is not built yet");
    skip(
        "w7: rr and lc on the same Service",
        "schedulers are not built yet",
    );
}

/// What the DaemonSet asks for is what the kernel enforces: no more, and the rest is closed.
#[test]
fn the_agents_run_with_the_daemon_sets_privileges_and_no_others() {
    // The agents' processes stay the same ones.
    let _alone = exclusively();
    let world = World::alone();
    let daemon_set = world.get(&["--namespace=kube-system", "daemonset", "nearhop"]);
    let granted = &daemon_set["spec"]["template"]["spec"]["containers"][0]["securityContext"];
    let added = granted["capabilities"]["add"].as_array().unwrap().iter();
    let wanted = added.fold(0_u64, |set, name| {
        set | 1 << capability(name.as_str().unwrap())
    });
    assert_eq!(granted["capabilities"]["drop"], json!(["ALL"]));

    for node in world.kind.nodes() {
        let status = world.agent_process(node, "status");
        let field = |name: &str| {
            let mut lines = status.lines().filter_map(|line| line.split_once(":\t"));
            let found = lines.find(|(field, _)| *field == name);
            found.unwrap_or_else(|| panic!("no {name} in {status}")).1
        };
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let has = u64::from_str_radix(field(set), 16).unwrap();
            assert_eq!(
                has, wanted,
                "{}: {set} is {has:#x}, not {wanted:#x}",
                node.name
            );
        }
        assert_eq!(field("NoNewPrivs"), "1", "{}", node.name);
        // SECCOMP_MODE_FILTER
        assert_eq!(field("Seccomp"), "2", "{}", node.name);

        let mounts = world.agent_process(node, "mountinfo");
        let mut mounts = mounts
            .lines()
            .map(|mount| mount.split(' ').collect::<Vec<_>>());
        let root = mounts.find(|mount| mount[4] == "/").unwrap();
        let options: Vec<_> = root[5].split(',').collect();
        assert!(options.contains(&"ro"), "{}: {root:?}", node.name);
    }
}

/// Its bit, as in capabilities(7).
fn capability(name: &str) -> u32 {
    match name {
        "NET_ADMIN" => 12,
        "PERFMON" => 38,
        "BPF" => 39,
        other => panic!("the DaemonSet asks for {other}: say here which bit it is"),
    }
}

#[test]
fn a_rolling_update_of_nearhop_under_load_loses_nothing() {
    let world = World::new("update");
    world.apply([
        on_nodes_of_their_own(deployment("web", "web", 3)),
        service("web", 80),
    ]);
    let clients = world
        .kind
        .nodes()
        .map(|node| world.client(client(&format!("load-{}", node.zone), node.zone)));
    for node in world.kind.nodes() {
        world.wait_for_backends(node, "web", 3);
    }
    for client in &clients {
        client.wait_for_name("web:80");
    }
    let loads = clients.each_ref().map(|client| client.start_load("web:80"));
    let before = world.nearhop_pods();

    for node in world.kind.nodes() {
        world.tag_image(node, install::IMAGE, "docker.io/nearhop/lb-agent:next");
    }
    for image in ["docker.io/nearhop/lb-agent:next", install::IMAGE] {
        world.set_nearhop_image(image);
    }

    let after = world.nearhop_pods();
    let total = loads.map(|load| load.finish());
    for answers in &total {
        assert_eq!(answers.failed(), 0, "{answers:?}");
        assert!(answers.answered() > 1000, "{answers:?}");
    }
    assert!(
        before.is_disjoint(&after),
        "{before:?} were replaced by {after:?}"
    );
    let all: u32 = total.iter().map(Answers::answered).sum();
    eprintln!("{all} connects over two rolling updates, none failed");
}

#[test]
fn uninstalling_leaves_nothing_in_the_kernel() {
    let _alone = exclusively();
    let world = World::alone();
    let nodes = world.kind.nodes();
    // kind's nodes have no bpftool.
    let has_bpftool = !world.kind.is_of_containers();
    for node in nodes {
        assert!(world.pins(node).contains("/links/"), "the test sees pins");
        if has_bpftool {
            assert!(!world.attached(node).is_empty(), "the test sees programs");
            assert_ne!(world.links_to(node), 0, "the test sees links");
        }
    }

    world.kind.uninstall(&world.cluster).unwrap();
    let left = nodes.map(|node| {
        let (programs, links) = match has_bpftool {
            true => (world.attached(node), world.links_to(node)),
            false => (Vec::new(), 0),
        };
        (world.pins(node), programs, links)
    });
    // The other tests need it.
    world.kind.install(&world.cluster).unwrap();

    for (node, left) in nodes.iter().zip(left) {
        assert_eq!(left, (String::new(), Vec::new(), 0), "{}", node.name);
    }
}

/// That each of so many pods has its share. Five standard deviations: once in 1.7 million runs it is
/// chance.
fn assert_shares(answers: &Answers, pods: usize) {
    assert_eq!(answers.by.len(), pods, "{answers:?}");
    let (count, pods) = (f64::from(answers.answered()), pods as f64);
    let (mean, deviation) = (
        count / pods,
        (count * (1.0 / pods) * (1.0 - 1.0 / pods)).sqrt(),
    );
    for share in answers.by.values() {
        let distance = (f64::from(*share) - mean).abs();
        assert!(
            distance <= 5.0 * deviation,
            "{mean} ± {deviation}: {answers:?}"
        );
    }
}
