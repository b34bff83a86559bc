//! A namespace of the cluster with what a walk-through puts into it, and what can be seen of it: by
//! clients in pods, on the nodes, and from outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use lb_tests::{
    Cluster, agent,
    kind::{Kind, Node, answers::Answers, config::POD_IMAGE, install},
    wait,
};
use serde_json::{Value, json};

/// Images are there already, but two processors may be everybody's.
const PATIENCE: Duration = Duration::from_secs(180);

/// Held by all who need nearhop on the nodes, and alone by who takes it away.
static INSTALLED: RwLock<()> = RwLock::new(());

pub(crate) fn exclusively() -> RwLockWriteGuard<'static, ()> {
    INSTALLED.write().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct World {
    pub(crate) kind: Kind,
    pub(crate) cluster: Cluster,
    namespace: Option<String>,
    _installed: Option<RwLockReadGuard<'static, ()>>,
}

impl World {
    /// A namespace of this name, which is removed at the end.
    pub(crate) fn new(namespace: &str) -> Self {
        let installed = INSTALLED.read().unwrap_or_else(PoisonError::into_inner);
        let mut world = Self::alone();
        world._installed = Some(installed);
        world.namespace = Some(namespace.to_owned());
        // What a test that was killed left.
        let stale = ["delete", "namespace", namespace, "--ignore-not-found"];
        world.cluster.kubectl(&stale);
        world.cluster.kubectl(&["create", "namespace", namespace]);
        world.until("the ServiceAccount", || {
            let output = world.try_kubectl(&["get", "serviceaccount", "default"]);
            output.map(drop)
        });
        world
    }

    /// Only what belongs to the cluster as a whole.
    pub(crate) fn alone() -> Self {
        let kind = Kind::of_environment().unwrap();
        let cluster = kind.cluster().unwrap();
        Self {
            kind,
            cluster,
            namespace: None,
            _installed: None,
        }
    }

    fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// `kubectl` in this namespace.
    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        self.try_kubectl(args).unwrap()
    }

    fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        let namespace = format!("--namespace={}", self.namespace());
        let output = self
            .cluster
            .try_kubectl(&[&[&*namespace], args].concat(), "");
        match output.status.success() {
            true => Ok(agent::text(&output.stdout)),
            false => Err(format!("{args:?}: {}", agent::text(&output.stderr).trim())),
        }
    }

    pub(crate) fn get(&self, args: &[&str]) -> Value {
        let said = self.kubectl(&[&["get", "--output=json"], args].concat());
        serde_json::from_str(&said).unwrap()
    }

    fn until<T>(&self, what: &str, look: impl FnMut() -> Result<T, String>) -> T {
        wait::until(what, PATIENCE, look).unwrap()
    }

    /// Applies objects, and waits until all Deployments among them are ready.
    pub(crate) fn apply(&self, objects: impl IntoIterator<Item = Value>) {
        let objects: Vec<Value> = objects
            .into_iter()
            .map(|mut object| {
                object["metadata"]["namespace"] = json!(self.namespace());
                object
            })
            .collect();
        self.cluster.apply(objects.iter().cloned());
        for object in objects
            .iter()
            .filter(|object| object["kind"] == "Deployment")
        {
            let name = format!(
                "deployment/{}",
                object["metadata"]["name"].as_str().unwrap()
            );
            self.kubectl(&["rollout", "status", &name, "--timeout=180s"]);
        }
    }

    pub(crate) fn patch(&self, what: &str, patch: &Value) {
        self.kubectl(&["patch", what, "--patch", &patch.to_string()]);
    }

    /// A pod that asks, once it is ready.
    pub(crate) fn client(&self, pod: Value) -> Client<'_> {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        self.apply([pod]);
        let what = format!("pod/{name}");
        self.kubectl(&["wait", "--for=condition=Ready", &what, "--timeout=180s"]);
        Client { world: self, name }
    }

    /// The names and addresses of a Deployment's pods that are to stay.
    pub(crate) fn pods_of(&self, deployment: &str) -> BTreeMap<String, String> {
        let pods = self.get(&["pods", &format!("--selector=deployment={deployment}")]);
        let pods = pods["items"].as_array().into_iter().flatten();
        pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(|pod| {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                (
                    text(&pod["metadata"]["name"]),
                    text(&pod["status"]["podIP"]),
                )
            })
            .collect()
    }

    pub(crate) fn addresses_of(&self, deployment: &str) -> Vec<String> {
        self.pods_of(deployment).into_values().collect()
    }

    pub(crate) fn address_of(&self, deployment: &str) -> String {
        let [address] = self.addresses_of(deployment).try_into().unwrap();
        address
    }

    pub(crate) fn cluster_ip(&self, service: &str) -> String {
        let service = self.get(&["service", service]);
        service["spec"]["clusterIP"].as_str().unwrap().to_owned()
    }

    /// The message of an event about a Service, with this in it.
    pub(crate) fn event(&self, service: &str, reason: &str, part: &str) -> String {
        let selector = format!("--field-selector=involvedObject.name={service},reason={reason}");
        self.until(&format!("an event {reason} {part}"), || {
            let events = self.get(&["events", &selector]);
            let messages = events["items"].as_array().into_iter().flatten();
            let mut messages = messages.filter_map(|event| event["message"].as_str());
            let found = messages.find(|message| message.contains(part));
            found.map(str::to_owned).ok_or(events.to_string())
        })
    }

    /// One request from a machine that is no node, and that the pods' network reaches.
    pub(crate) fn ask_from_outside(&self, to: &str) -> Answers {
        let program = Path::new(env!("CARGO_BIN_EXE_kind_pod"));
        let mut command = self.kind.beside(program).unwrap();
        command.args(["ask", to, "--patience=1000"]);
        serde_json::from_slice(&succeeded(command)).unwrap()
    }

    /// What nearhop serves on a node for a Service of this namespace, over IPv4.
    fn served(&self, node: Node, service: &str) -> Result<Value, String> {
        let said = self.nearhop(node, &["services", "--output=json"])?;
        self.find_service(&said, service)
    }

    fn find_service(&self, said: &str, service: &str) -> Result<Value, String> {
        let said: Value = serde_json::from_str(said).map_err(|error| error.to_string())?;
        let mut services = said["services"].as_array().into_iter().flatten();
        let found = services.find(|found| {
            found["namespace"] == self.namespace()
                && found["name"] == service
                && found["family"] == "IPv4"
        });
        found
            .cloned()
            .ok_or_else(|| format!("{service} is not in {said}"))
    }

    /// Why a node follows no hints for a Service of this namespace, as `lb-agent why` says once it is this
    /// one of the reasons; and who may be chosen.
    pub(crate) fn why_no_hints(&self, node: Node, service: &str, hints: &str) -> (String, usize) {
        let to = format!("{}:80", self.cluster_ip(service));
        self.until(&format!("why on {}", node.name), || {
            let said = self.nearhop(node, &["why", &to, "--output=json"])?;
            let answer: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
            if answer["hints"] != hints {
                return Err(said);
            }
            let why = answer["why_no_hints"].as_str().ok_or(said)?;
            let backends = answer["backends"].as_array().map_or(0, Vec::len);
            Ok((why.to_owned(), backends))
        })
    }

    /// `services --stats` of a node for a Service of this namespace, once it is as wanted.
    pub(crate) fn statistics(
        &self,
        node: Node,
        service: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        self.until(&format!("statistics of {service}"), || {
            let said = self.nearhop(node, &["services", "--stats", "--output=json"])?;
            let found = self.find_service(&said, service)?;
            match wanted(&found) {
                true => Ok(found),
                false => Err(found.to_string()),
            }
        })
    }

    /// A command of the agent in its own pod.
    fn nearhop(&self, node: Node, args: &[&str]) -> Result<String, String> {
        let pods = self.nearhop_pods_on(Some(node))?;
        let pod = pods
            .first()
            .ok_or_else(|| format!("no nearhop on {}", node.name))?;
        let exec = ["--namespace=kube-system", "exec", pod, "--", "/lb-agent"];
        let output = self.cluster.try_kubectl(&[&exec, args].concat(), "");
        match output.status.success() {
            true => Ok(agent::text(&output.stdout)),
            false => Err(agent::text(&output.stderr)),
        }
    }

    pub(crate) fn wait_for_service(
        &self,
        node: Node,
        service: &str,
        wanted: impl Fn(&Value) -> bool,
    ) {
        let what = format!("{} to serve {service} as wanted", node.name);
        self.until(&what, || {
            let served = self.served(node, service)?;
            if wanted(&served) {
                Ok(())
            } else {
                Err(served.to_string())
            }
        });
    }

    pub(crate) fn wait_for_backends(&self, node: Node, service: &str, wanted: usize) {
        self.wait_for_service(node, service, |served| {
            served["cluster"]["backends"]
                .as_array()
                .is_some_and(|list| list.len() == wanted)
        });
    }

    pub(crate) fn backends(&self, node: Node, service: &str) -> Vec<String> {
        let what = format!("{} to say what it serves", node.name);
        // Its agent may be about to be replaced by another test.
        let served = self.until(&what, || self.served(node, service));
        let backends = served["cluster"]["backends"].as_array().unwrap();
        let address = |backend: &Value| backend["address"].as_str().unwrap().to_owned();
        backends.iter().map(address).collect()
    }

    /// The names of nearhop's pods.
    pub(crate) fn nearhop_pods(&self) -> BTreeSet<String> {
        self.nearhop_pods_on(None).unwrap().into_iter().collect()
    }

    fn nearhop_pods_on(&self, node: Option<Node>) -> Result<Vec<String>, String> {
        let on = node.map(|node| format!("--field-selector=spec.nodeName={}", node.name));
        let get = [
            "--namespace=kube-system",
            "get",
            "pods",
            "--selector=app.kubernetes.io/name=nearhop",
            "--output=jsonpath={range .items[*]}{.metadata.name} {.metadata.deletionTimestamp}{'\\n'}{end}",
        ];
        let args: Vec<&str> = get.into_iter().chain(on.as_deref()).collect();
        let output = self.cluster.try_kubectl(&args, "");
        let said = agent::text(&output.stdout);
        // A line with a second word is one that is about to end.
        let names = said
            .lines()
            .map(str::trim)
            .filter(|line| !line.contains(' '));
        Ok(names.map(str::to_owned).collect())
    }

    /// Another name for an image that a node has.
    pub(crate) fn tag_image(&self, node: Node, from: &str, to: &str) {
        let mut ctr = self.kind.on_node(node, "ctr").unwrap();
        ctr.args(["--namespace=k8s.io", "images", "tag", "--force", from, to]);
        succeeded(ctr);
    }

    /// Updates the DaemonSet, pod by pod, and waits for the last.
    pub(crate) fn set_nearhop_image(&self, image: &str) {
        let image = format!("*={image}");
        let kube_system = "--namespace=kube-system";
        self.cluster
            .kubectl(&[kube_system, "set", "image", "daemonset/nearhop", &image]);
        install::wait_until_ready(&self.cluster).unwrap();
    }

    /// What the kernel says of a node's agent, file by file in its folder of /proc.
    pub(crate) fn agent_process(&self, node: Node, file: &str) -> String {
        self.until(&format!("one agent on {}", node.name), || {
            // Processes end while it looks, which it calls an error.
            let find = "grep -slx lb-agent /proc/[0-9]*/comm || true";
            let found = self.try_on_node(node, "sh", &["-c", find])?;
            let [comm] = found.lines().collect::<Vec<_>>()[..] else {
                return Err(format!("processes {found:?}"));
            };
            self.try_on_node(node, "cat", &[&comm.replace("comm", file)])
        })
    }

    fn try_on_node(&self, node: Node, program: &str, args: &[&str]) -> Result<String, String> {
        let mut command = self.kind.on_node(node, program).unwrap();
        let output = command.args(args).stdin(Stdio::null()).output();
        let output = output.map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(agent::text(&output.stdout)),
            false => Err(format!(
                "{}: {}",
                output.status,
                agent::text(&output.stderr)
            )),
        }
    }

    /// The programs that are attached to a node's cgroup, by `bpftool`.
    pub(crate) fn attached(&self, node: Node) -> Vec<Value> {
        let unified = self.unified(node);
        let said = self.bpftool(node, &["cgroup", "show", &unified]);
        said.as_array().cloned().unwrap_or_default()
    }

    /// How many links there are to a node's cgroup, pinned or held by a process.
    pub(crate) fn links_to(&self, node: Node) -> usize {
        let mut stat = self.kind.on_node(node, "stat").unwrap();
        stat.args(["--format=%i", &self.unified(node)]);
        let id: u64 = agent::text(&succeeded(stat)).trim().parse().unwrap();
        let links = self.bpftool(node, &["link", "show"]);
        let links = links.as_array().cloned().unwrap_or_default();
        links.iter().filter(|link| link["cgroup_id"] == id).count()
    }

    /// What lies on a node's BPF file system, less the kernel's own lists.
    pub(crate) fn pins(&self, node: Node) -> String {
        let mut find = self.kind.on_node(node, "find").unwrap();
        find.args(["/sys/fs/bpf", "-mindepth", "1", "!", "-name", "*.debug"]);
        agent::text(&succeeded(find))
    }

    /// Where a node has its cgroup v2.
    fn unified(&self, node: Node) -> String {
        let mut find = self.kind.on_node(node, "findmnt").unwrap();
        find.args(["--noheadings", "--types=cgroup2", "--output=TARGET"]);
        agent::text(&succeeded(find))
            .lines()
            .next()
            .unwrap()
            .trim()
            .to_owned()
    }

    /// The length of a Service's list in the map as `bpftool` prints it.
    pub(crate) fn ring_length(&self, node: Node, service: &str) -> u64 {
        let mut find = self.kind.on_node(node, "find").unwrap();
        find.args(["/sys/fs/bpf/nearhop", "-name", "NAMES", "-printf", "%h\n"]);
        let folders = agent::text(&succeeded(find));
        let folder = folders.lines().next().unwrap();
        let dump = |map: &str| {
            let path = format!("{folder}/{map}");
            self.bpftool(node, &["map", "dump", "pinned", &path])
        };
        let (names, services) = (dump("NAMES"), dump("SERVICES"));
        let cells = |dump: Value| dump.as_array().cloned().unwrap();
        let names = cells(names);
        let named = names.iter().find(|cell| cell.to_string().contains(service));
        let index = &named.unwrap()["formatted"]["key"];
        let services = cells(services);
        let cell = services
            .iter()
            .find(|cell| cell["formatted"]["key"] == *index);
        cell.unwrap()["formatted"]["value"]["cluster"]["len"]
            .as_u64()
            .unwrap()
    }

    fn bpftool(&self, node: Node, args: &[&str]) -> Value {
        let mut bpftool = self.kind.on_node(node, "bpftool").unwrap();
        bpftool.arg("--json").args(args);
        let said = succeeded(bpftool);
        serde_json::from_slice(&said).unwrap_or(Value::Null)
    }

    /// Counts the packets that a node forwards to an address.
    pub(crate) fn count_packets(&self, node: Node, to: &str) -> PacketCounter<'_> {
        let mut insert = self.kind.on_node(node, "iptables").unwrap();
        insert.args(["--wait", "--insert", "FORWARD", "--destination", to]);
        succeeded(insert);
        PacketCounter {
            world: self,
            node,
            to: to.to_owned(),
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let pods = ["get", "pods", "--all-namespaces", "--output=wide"];
            let pods = self.cluster.try_kubectl(&pods, "");
            let warnings = self.try_kubectl(&["get", "events", "--field-selector=type=Warning"]);
            let warnings = warnings.unwrap_or_else(|error| error);
            eprintln!("{}{warnings}", agent::text(&pods.stdout));
            eprintln!("logs of the nodes: {}", self.kind.dir().display());
        } else if let Some(namespace) = &self.namespace {
            let delete = ["delete", "namespace", namespace, "--wait=false"];
            let _ = self.cluster.try_kubectl(&delete, "");
        }
    }
}

/// A rule without a verdict: it counts and does nothing.
pub(crate) struct PacketCounter<'w> {
    world: &'w World,
    node: Node,
    to: String,
}

impl PacketCounter<'_> {
    pub(crate) fn packets(&self) -> u64 {
        let mut list = self.world.kind.on_node(self.node, "iptables").unwrap();
        list.args([
            "--wait",
            "--verbose",
            "--exact",
            "--numeric",
            "--list",
            "FORWARD",
        ]);
        let said = agent::text(&succeeded(list));
        let mut rules = said.lines().map(str::split_whitespace);
        let mut rule = rules
            .find(|rule| rule.clone().any(|word| word == self.to))
            .unwrap();
        rule.next().unwrap().parse().unwrap()
    }

    /// Once none has come for a second: a connection that has ended may still owe an acknowledgement, or
    /// repeat one.
    pub(crate) fn settled(&self) -> u64 {
        let mut last = (self.packets(), Instant::now());
        self.world.until("no packet for a second", || {
            let packets = self.packets();
            if packets != last.0 {
                last = (packets, Instant::now());
            }
            match last.1.elapsed() >= Duration::from_secs(1) {
                true => Ok(packets),
                false => Err(format!("{packets} packets")),
            }
        })
    }
}

impl Drop for PacketCounter<'_> {
    fn drop(&mut self) {
        let delete = ["--wait", "--delete", "FORWARD", "--destination", &self.to];
        let _ = self.world.try_on_node(self.node, "iptables", &delete);
    }
}

/// A pod that asks.
pub(crate) struct Client<'w> {
    world: &'w World,
    name: String,
}

impl Client<'_> {
    /// Runs the pod's own program again, in the pod.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        let exec = ["exec", &self.name, "--", "/kind-pod"];
        self.world.kubectl(&[&exec, args].concat())
    }

    pub(crate) fn ask(&self, to: &str, count: u32) -> Answers {
        let said = self.run(&["ask", to, "--count", &count.to_string()]);
        serde_json::from_str(&said).unwrap()
    }

    /// Waits until the name has reached the cluster's resolver, and what that says this pod.
    pub(crate) fn wait_for_name(&self, to: &str) {
        self.world.until(&format!("{to} to be resolved"), || {
            let answers = self.ask(to, 1);
            match answers
                .failures
                .keys()
                .find(|why| why.starts_with("resolve "))
            {
                Some(why) => Err(why.clone()),
                None => Ok(()),
            }
        });
    }

    /// Connects all the time until it is finished.
    pub(crate) fn start_load(&self, to: &str) -> Load {
        let mut kubectl = self.world.kind.kubectl().unwrap();
        kubectl.args([
            "--namespace",
            self.world.namespace(),
            "exec",
            "--stdin",
            &self.name,
        ]);
        kubectl.args(["--", "/kind-pod", "load", to]);
        let mut child = kubectl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Load {
            stdin: child.stdin.take(),
            child,
        }
    }
}

pub(crate) struct Load {
    stdin: Option<ChildStdin>,
    child: Child,
}

impl Load {
    pub(crate) fn finish(mut self) -> Answers {
        drop(self.stdin.take());
        let output = self.child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "the load ended with {}",
            output.status
        );
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn succeeded(mut command: Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let why = agent::text(&output.stderr);
    assert!(output.status.success(), "{command:?}: {why}");
    output.stdout
}

/// So many pods that say who they are, behind the Services that select this app.
pub(crate) fn deployment(name: &str, app: &str, replicas: u32) -> Value {
    let labels = json!({"app": app, "deployment": name});
    let mut spec = pod_spec(&["serve"]);
    // Else it is ready as soon as it runs, and may be asked before it listens.
    spec["containers"][0]["readinessProbe"] =
        json!({"tcpSocket": {"port": 80}, "periodSeconds": 1});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": spec,
            },
        },
    })
}

pub(crate) fn in_zone(mut deployment: Value, zone: &str) -> Value {
    let spec = &mut deployment["spec"]["template"]["spec"];
    spec["nodeSelector"] = json!({"topology.kubernetes.io/zone": zone});
    deployment
}

pub(crate) fn on_nodes_of_their_own(mut deployment: Value) -> Value {
    let labels = deployment["spec"]["selector"].clone();
    deployment["spec"]["template"]["spec"]["affinity"] = json!({"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": labels},
        ],
    }});
    deployment
}

/// A pod that does nothing until it is told to ask.
pub(crate) fn client(name: &str, zone: &str) -> Value {
    let mut spec = pod_spec(&["pause"]);
    spec["nodeSelector"] = json!({"topology.kubernetes.io/zone": zone});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn pod_spec(args: &[&str]) -> Value {
    json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "pod",
            "image": POD_IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "args": args,
        }],
    })
}

/// A Service that selects the app of its name, whose pods serve at port 80.
pub(crate) fn service(app: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": app},
        "spec": {
            "selector": {"app": app},
            "ports": [{"port": port, "targetPort": 80}],
        },
    })
}
