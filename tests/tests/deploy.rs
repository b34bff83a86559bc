//! What is in deploy/, as it is there: accepted by a real API server, and run from the image with the
//! rights, files and flags that it says, and no others.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::PathBuf,
    thread,
};

use lb_agent::datapath::capability;
use lb_tests::{
    Cluster, Lab, Node, Pod, Serve, agent,
    container::{Machine, PodOn, Running},
    objects::{self, service, slice},
    scene::{NODE, TCP, TCP_PORT, ZONE},
    wait,
};
use rustix::thread::CapabilitySet;
use serde_json::{Value, json};

/// Who the agent is to the API server.
const ACCOUNT: &str = "system:serviceaccount:kube-system:nearhop";

/// A name that the API server's certificate has. Nobody but the node's resolver knows it.
const API_NAME: &str = "kubernetes.default.svc";

#[test]
fn the_manifests_are_accepted_as_they_are_and_again() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab);

    for round in ["made", "made again"] {
        for folder in ["", "cleanup"] {
            let said = apply(&cluster, folder);
            assert!(!said.contains("Warning"), "{round}: {said}");
        }
    }

    for (kind, name) in [
        ("daemonset", "nearhop"),
        ("configmap", "nearhop"),
        ("serviceaccount", "nearhop"),
        ("daemonset", "nearhop-cleanup"),
    ] {
        let made = cluster.get(&[kind, name, "--namespace=kube-system"]);
        assert_eq!(made["metadata"]["name"], name);
    }
}

#[test]
fn the_pod_serves_with_what_its_manifest_gives_it_and_asks_for_no_more() {
    let scene = Scene::new();
    let pod = scene.pod("nearhop");

    let mounted = pod.run("mount-bpffs");
    assert!(mounted.status.success(), "{}", agent::text(&mounted.stderr));
    let agent = pod.start("lb-agent");
    scene.wait_for_ready(&agent);

    scene.serves();
    let status = agent.proc("status").unwrap();
    let given: Vec<_> = capability::NEEDED
        .map(|(_, name, _)| name.to_owned())
        .into();
    assert_eq!(sorted(pod.capabilities("lb-agent").unwrap()), sorted(given));
    assert_eq!(
        bounding(&status),
        pod.capabilities("lb-agent").unwrap().into_iter().collect()
    );
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    let mounts = agent.proc("mountinfo").unwrap();
    assert!(is_read_only(&mounts, "/"), "{mounts}");
    assert!(is_read_only(&mounts, "/host/sys/fs/cgroup"), "{mounts}");
    scene.wait_for_every_right_to_be_used();
    assert!(agent.stop().success());
    scene.serves();
}

#[test]
fn where_there_is_no_bpf_file_system_the_pod_mounts_one_for_the_node_once() {
    let scene = Scene::new();
    let pod = scene.pod("nearhop");
    let place = "/sys/fs/bpf";
    assert_eq!(scene.machine.mounted(place), [""; 0]);

    let without = pod.run("lb-agent");
    assert_eq!(without.status.code(), Some(1));
    let said = agent::text(&without.stderr);
    assert!(said.contains("mount -t bpf bpf /sys/fs/bpf"), "{said}");

    for said in ["mounted a BPF file system", "there is a BPF file system"] {
        let output = pod.run("mount-bpffs");
        assert!(output.status.success(), "{}", agent::text(&output.stderr));
        assert!(agent::text(&output.stdout).starts_with(said), "{output:?}");
        assert_eq!(scene.machine.mounted(place), ["bpf"]);
    }
}

#[test]
fn the_cleanup_pod_leaves_nothing_and_stays_until_it_is_told_to_end() {
    let scene = Scene::new();
    let pod = scene.pod("nearhop");
    assert!(pod.run("mount-bpffs").status.success());
    let agent = pod.start("lb-agent");
    scene.wait_for_ready(&agent);
    assert!(agent.stop().success());
    let cleanup = scene.pod("nearhop-cleanup");
    assert!(cleanup.capabilities("cleanup").unwrap().is_empty());

    let output = cleanup.run("cleanup");

    assert!(output.status.success(), "{}", agent::text(&output.stderr));
    let removed = agent::text(&output.stdout);
    assert!(
        removed.contains("removed /sys/fs/bpf/nearhop\n"),
        "{removed}"
    );
    scene.is_not_served();
    let mut hold = cleanup.start("hold");
    wait::until("the second container to look", wait::PATIENCE, || {
        let log = hold.log();
        log.contains("nothing to remove").then_some(()).ok_or(log)
    })
    .unwrap();
    assert!(hold.is_running().unwrap());
    assert!(hold.stop().success());
}

#[test]
fn without_the_address_of_the_api_server_the_pod_ends_and_says_what_is_missing() {
    let scene = Scene::new();
    scene.set_api_server("");
    let pod = scene.pod("nearhop");
    assert!(pod.run("mount-bpffs").status.success());

    let output = pod.run("lb-agent");

    assert_eq!(output.status.code(), Some(1));
    let said = agent::text(&output.stderr);
    assert!(said.contains("--api-server"), "{said}");
    assert!(said.contains("https://HOST:PORT"), "{said}");
}

/// A node whose machine has what the manifests ask for, a Service, and a client. What holds a namespace
/// is dropped before what makes it.
struct Scene {
    machine: Machine,
    client: Pod,
    backend: Pod,
    cluster: Cluster,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let cluster = Cluster::start(&lab);
        let node = lab.node(NODE);
        let backend = node.pod("10.0.1.1");
        backend.serve(Serve::Tcp, TCP_PORT);
        let slice =
            slice("default/web", "IPv4")
                .tcp("http", TCP_PORT)
                .endpoint(backend.addr(), NODE, ZONE);
        let web = service("default/web", &["10.96.0.10"]).tcp("http", 80);
        cluster.apply([objects::node(NODE, ZONE), web.into(), slice.into()]);
        apply(&cluster, "");
        apply(&cluster, "cleanup");
        resolve(&node, cluster.api().ip());
        let scene = Self {
            machine: Machine::boot(&node),
            client: node.pod("10.0.1.200"),
            backend,
            cluster,
        };
        let port = scene.cluster.api().port();
        scene.set_api_server(&format!("https://{API_NAME}:{port}"));
        scene
    }

    fn set_api_server(&self, address: &str) {
        let patch = json!({"data": {"api-server": address}}).to_string();
        self.cluster.kubectl(&[
            "patch",
            "configmap",
            "nearhop",
            "--namespace=kube-system",
            "--patch",
            &patch,
        ]);
    }

    /// The Pod that the DaemonSet would make for this node.
    fn pod(&self, daemon_set: &str) -> PodOn<'_> {
        let namespace = "kube-system";
        let set = [daemon_set, "--namespace=kube-system"];
        let mut template =
            self.cluster.get(&[&["daemonset"], &set[..]].concat())["spec"]["template"].take();
        template["apiVersion"] = json!("v1");
        template["kind"] = json!("Pod");
        template["metadata"]["name"] = json!(daemon_set);
        template["metadata"]["namespace"] = json!(namespace);
        template["spec"]["nodeName"] = json!(NODE);
        self.cluster.apply([template]);
        PodOn::prepare(&self.machine, &self.cluster, namespace, daemon_set)
    }

    /// By the Pod's own readiness probe.
    fn wait_for_ready(&self, agent: &Running<'_>) {
        let set = self
            .cluster
            .get(&["daemonset", "nearhop", "--namespace=kube-system"]);
        let probe = &set["spec"]["template"]["spec"]["containers"][0]["readinessProbe"];
        let command: Vec<String> =
            serde_json::from_value(probe["exec"]["command"].clone()).unwrap();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        wait::until("the readiness probe", wait::PATIENCE * 3, || {
            let output = agent.exec(&command);
            if output.status.success() {
                Ok(())
            } else {
                Err(format!("{output:?}\n{}", agent.log()))
            }
        })
        .unwrap();
    }

    fn serves(&self) {
        let tally = self.client.load(Serve::Tcp, TCP, 20);
        assert_eq!(tally.of(self.backend.at(TCP_PORT)), 20, "{tally:?}");
    }

    fn is_not_served(&self) {
        let tally = self.client.load(Serve::Tcp, TCP, 1);
        assert_eq!(tally.answered(), 0, "{tally:?}");
    }

    /// Every one, and no other. What it writes there, it writes when it finds time.
    fn wait_for_every_right_to_be_used(&self) {
        let granted = self.granted();
        wait::until("every right to be used", wait::PATIENCE, || {
            let requested = self.requested();
            if requested == granted {
                Ok(())
            } else {
                Err(format!("asked for {requested:?}, may {granted:?}"))
            }
        })
        .unwrap();
    }

    /// What the agent asked of the API server.
    fn requested(&self) -> BTreeSet<String> {
        let log = fs::read_to_string(self.cluster.audit_log()).unwrap();
        let events = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        events
            .filter(|event| event["user"]["username"] == ACCOUNT)
            .map(|event| {
                let object = &event["objectRef"];
                right(&event["verb"], &object["apiGroup"], &object["resource"])
            })
            .collect()
    }

    /// What it may ask.
    fn granted(&self) -> BTreeSet<String> {
        let role = self.cluster.get(&["clusterrole", "nearhop"]);
        let mut granted = BTreeSet::new();
        for rule in list(&role["rules"]) {
            for (group, resource, verb) in combinations(rule) {
                granted.insert(right(verb, group, resource));
            }
        }
        granted
    }
}

fn combinations(rule: &Value) -> impl Iterator<Item = (&Value, &Value, &Value)> {
    list(&rule["apiGroups"]).flat_map(move |group| {
        list(&rule["resources"])
            .flat_map(move |resource| list(&rule["verbs"]).map(move |verb| (group, resource, verb)))
    })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// As in `watch services` and `list endpointslices.discovery.k8s.io`.
fn right(verb: &Value, group: &Value, resource: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let dotted = [word(resource), word(group)].join(".");
    format!("{} {}", word(verb), dotted.trim_end_matches('.'))
}

/// `kubectl apply -k` of a folder in deploy/. A field that the server does not know is an error.
fn apply(cluster: &Cluster, folder: &str) -> String {
    let deploy = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let folder = deploy.join(folder);
    let output = cluster.try_kubectl(
        &[
            "apply",
            "--server-side",
            "--validate=strict",
            "--kustomize",
            folder.to_str().unwrap(),
        ],
        "",
    );
    let said = agent::text(&output.stdout) + &agent::text(&output.stderr);
    assert!(output.status.success(), "{said}");
    said
}

/// The node's resolver, which answers every question for an IPv4 address with this one. It ends with
/// the test's process.
fn resolve(node: &Node, to: IpAddr) {
    let IpAddr::V4(to) = to else {
        panic!("the lab's API server has an IPv4 address");
    };
    let netns = node.host().place().netns.clone();
    let socket = netns
        .run(|| Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 53))?))
        .unwrap();
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(&answer(&question[..len], to), from);
        }
    });
}

/// RFC 1035: the question again, with its answer, if it was for an A record.
fn answer(question: &[u8], to: Ipv4Addr) -> Vec<u8> {
    const A: [u8; 2] = [0, 1];
    let name = question[12..].iter().position(|len| *len == 0).unwrap();
    // After the name: its type and class.
    let end = 12 + name + 1 + 4;
    let is_for_a = question[end - 4..end - 2] == A;
    let mut answer = question[..end].to_vec();
    // A response, recursion available; one question, and an answer or none.
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_for_a), 0, 0, 0, 0]);
    if is_for_a {
        // The name of the question, A, IN, for a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(to.octets());
    }
    answer
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// The names in the line `CapBnd:` of /proc/PID/status.
fn bounding(status: &str) -> BTreeSet<String> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bits = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
    let set = CapabilitySet::from_bits_retain(bits);
    set.iter_names()
        .map(|(name, _)| format!("CAP_{name}"))
        .collect()
}

fn is_read_only(mountinfo: &str, at: &str) -> bool {
    let words = mountinfo
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mut mounts = words.filter(|words| words[4] == at);
    mounts.any(|words| words[5].split(',').any(|option| option == "ro"))
}
