//! A real control plane: what its controllers write, and what agents do with that.

use std::{collections::BTreeSet, sync::Arc};

use lb_tests::{
    Agent, Cluster, Lab, Node, Pod, Serve, agent,
    cluster::objects::{node, pod, service},
    traffic, wait,
};
use serde_json::{Value, json};

const PORT: u16 = 8080;

#[test]
fn the_control_plane_is_ready_and_a_service_account_may_do_what_rbac_gives_it() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab);
    let token = cluster.kubectl(&["create", "token", "default"]);
    let as_account = ["get", "services", "--token", token.trim()];

    let before = cluster.try_kubectl(&as_account, "");
    let grant = ["create", "clusterrolebinding", "see", "--clusterrole=view"];
    cluster.kubectl(&[&grant[..], &["--serviceaccount=default:default"]].concat());

    assert_eq!(cluster.kubectl(&["get", "--raw", "/readyz"]), "ok");
    let refusal = agent::text(&before.stderr);
    assert!(
        !before.status.success() && refusal.contains("Forbidden"),
        "{refusal}"
    );
    wait::until("the ServiceAccount's right", wait::PATIENCE, || {
        let output = cluster.try_kubectl(&as_account, "");
        output
            .status
            .success()
            .then_some(())
            .ok_or(agent::text(&output.stderr))
    })
    .expect("the role was given");
}

#[test]
fn the_controller_writes_the_slices_of_a_selector_and_hints_when_asked() {
    let lab = Lab::new();
    let stage = Stage::build(&lab, [2, 2, 2]);
    let (first, second, third) = stage.three_pods();

    for (family, addresses) in [
        (
            "IPv4",
            [&first, &second, &third].map(|pod| pod.addr().to_string()),
        ),
        (
            "IPv6",
            [&first, &second, &third].map(|pod| pod.addr6().to_string()),
        ),
    ] {
        let endpoints = stage
            .cluster
            .endpoints("web", family, |all| ready(all) == 3);
        let written: BTreeSet<_> = endpoints.iter().map(place).collect();
        let wanted = [("node-a", "a"), ("node-a", "a"), ("node-c", "c")];
        let wanted = addresses.iter().zip(wanted);
        let wanted: BTreeSet<_> = wanted
            .map(|(addr, (node, zone))| [addr.as_str(), node, zone].map(str::to_owned))
            .collect();
        assert_eq!(written, wanted, "{family}");
        assert!(
            endpoints.iter().all(|endpoint| endpoint["hints"].is_null()),
            "{endpoints:?}"
        );
    }

    stage.prefer_same_zone();

    for family in ["IPv4", "IPv6"] {
        let endpoints = stage
            .cluster
            .endpoints("web", family, |all| hinted(all) == 3);
        for endpoint in endpoints {
            assert_eq!(
                endpoint["hints"]["forZones"],
                json!([{"name": endpoint["zone"]}])
            );
        }
    }
}

/// Six endpoints in proportion to 4, 2 and 2 processors are 3, 1½ and 1½; rounded up they are seven.
#[test]
fn topology_mode_auto_writes_no_hints_for_five_pods_and_one_and_says_why() {
    let lab = Lab::new();
    let stage = Stage::build(&lab, [4, 2, 2]);
    let annotation = "service.kubernetes.io/topology-mode=Auto";
    stage
        .cluster
        .kubectl(&["annotate", "service", "web", annotation]);

    let near = (1..=5).map(|last| (&stage.a, format!("10.0.1.{last}")));
    let far = [(&stage.c, "10.0.3.1".to_owned())];
    stage.run_pods(near.chain(far));
    let endpoints = stage
        .cluster
        .endpoints("web", "IPv4", |all| ready(all) == 6);
    let why = stage.event("TopologyAwareHintsDisabled", "(6 endpoints, 3 zones)");

    assert_eq!(hinted(&endpoints), 0, "{endpoints:?}");
    assert!(why.contains("overload threshold"), "{why}");
}

#[test]
fn agents_that_read_a_dump_of_the_cluster_follow_its_hints() {
    let lab = Lab::new();
    let stage = Stage::build(&lab, [2, 2, 2]);
    let (first, second, third) = stage.three_pods();
    for pod in [&first, &second, &third] {
        pod.serve(Serve::Tcp, PORT);
    }
    stage.prefer_same_zone();
    for family in ["IPv4", "IPv6"] {
        let _ = stage
            .cluster
            .endpoints("web", family, |all| hinted(all) == 3);
    }
    let objects = lab.objects();
    stage.cluster.dump(&objects);
    let _agents: [Arc<Agent>; 2] = [&stage.a, &stage.c].map(|node| node.agent(&objects));

    let (in_a, in_c) = (stage.a.pod("10.0.1.200"), stage.c.pod("10.0.3.200"));
    for to in stage.addresses() {
        let (near, far) = (in_a.load(Serve::Tcp, to, 40), in_c.load(Serve::Tcp, to, 40));
        let of = |pod: &Pod| match to.is_ipv4() {
            true => pod.at(PORT),
            false => pod.at6(PORT),
        };

        // One of two is never chosen in forty once in 10¹² runs.
        assert!(
            near.of(of(&first)) > 0 && near.of(of(&second)) > 0,
            "{to}: {near:?}"
        );
        assert_eq!(
            near.of(of(&first)) + near.of(of(&second)),
            40,
            "{to}: {near:?}"
        );
        assert_eq!(far.of(of(&third)), 40, "{to}: {far:?}");
    }
}

/// A cluster of three nodes in three zones with a Service `web`; two of the nodes have pods.
struct Stage {
    cluster: Cluster,
    a: Node,
    c: Node,
}

impl Stage {
    /// With so many processors in the zones a, b and c.
    fn build(lab: &Lab, cpus: [u32; 3]) -> Self {
        let cluster = Cluster::start(lab);
        let nodes = ["a", "b", "c"].iter().zip(cpus);
        cluster.apply(nodes.map(|(zone, cpus)| node(&format!("node-{zone}"), zone, cpus)));
        cluster.apply([service("web", 80, PORT)]);
        Self {
            cluster,
            a: lab.node("node-a"),
            c: lab.node("node-c"),
        }
    }

    /// Two in zone a, one in zone c.
    fn three_pods(&self) -> (Pod, Pod, Pod) {
        let places = [
            (&self.a, "10.0.1.1"),
            (&self.a, "10.0.1.2"),
            (&self.c, "10.0.3.1"),
        ];
        let pods = self.run_pods(places.map(|(node, addr)| (node, addr.to_owned())));
        let [first, second, third] = pods.try_into().expect("three were asked for");
        (first, second, third)
    }

    fn run_pods<'a>(&self, places: impl IntoIterator<Item = (&'a Node, String)>) -> Vec<Pod> {
        let running = places
            .into_iter()
            .map(|(node, addr)| (node, node.pod(&addr)));
        let running: Vec<_> = running.collect();
        self.cluster
            .apply(running.iter().enumerate().map(|(number, (node, running))| {
                pod(&format!("web-{number}"), "web", node.name(), running)
            }));
        running.into_iter().map(|(_, pod)| pod).collect()
    }

    fn prefer_same_zone(&self) {
        let patch = r#"{"spec":{"trafficDistribution":"PreferSameZone"}}"#;
        self.cluster
            .kubectl(&["patch", "service", "web", "--patch", patch]);
    }

    /// The Service as clients name it, over both families.
    fn addresses(&self) -> [std::net::SocketAddr; 2] {
        let service = self.cluster.get(&["service", "web"]);
        [0, 1].map(|family| {
            let ip = service["spec"]["clusterIPs"][family].as_str();
            let ip = ip.expect("the Service is dual-stack");
            traffic::address((ip, 80))
        })
    }

    /// The message of an event about the Service, with this in it.
    fn event(&self, reason: &str, part: &str) -> String {
        let selector = format!("--field-selector=involvedObject.name=web,reason={reason}");
        wait::until(&format!("an event {reason} {part}"), wait::PATIENCE, || {
            let events = self.cluster.get(&["events", &selector]);
            let messages = events["items"].as_array().into_iter().flatten();
            let mut messages = messages.filter_map(|event| event["message"].as_str());
            let found = messages.find(|message| message.contains(part));
            found.map(str::to_owned).ok_or(events.to_string())
        })
        .expect("the controller says why")
    }
}

/// `[address, node, zone]` of an endpoint.
fn place(endpoint: &Value) -> [String; 3] {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [
        &endpoint["addresses"][0],
        &endpoint["nodeName"],
        &endpoint["zone"],
    ]
    .map(text)
}

fn ready(endpoints: &[Value]) -> usize {
    let ready = |endpoint: &&Value| endpoint["conditions"]["ready"] == true;
    endpoints.iter().filter(ready).count()
}

fn hinted(endpoints: &[Value]) -> usize {
    let hinted = |endpoint: &&Value| endpoint["hints"]["forZones"].is_array();
    endpoints.iter().filter(hinted).count()
}
