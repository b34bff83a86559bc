//! The cluster that the scenarios share, with an agent and a client on each node; and the part of it
//! that one scenario has for itself: a namespace with a Service `web`, and its pods.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU8, Ordering},
    },
    thread,
};

use lb_tests::{
    Cluster, Lab, Node, Pod, Serve, agent,
    cluster::objects::{self, namespace, within},
    protocol::Tally,
    traffic, wait,
};
use serde_json::{Value, json};

/// What clients name, and what pods listen on.
pub(crate) const PORT: u16 = 80;
pub(crate) const TARGET: u16 = 8080;

/// The nodes, by number: two in zone a, so that a node and its zone are not the same.
pub(crate) const A: usize = 0;
pub(crate) const A2: usize = 1;
pub(crate) const B: usize = 2;
pub(crate) const C: usize = 3;
const NODES: [(&str, &str); 4] = [
    ("node-a", "a"),
    ("node-a2", "a"),
    ("node-b", "b"),
    ("node-c", "c"),
];
/// Connects whose answers are looked at. One of two backends is missed once in 10⁹ times.
const CONNECTS: u32 = 30;

/// The whole cluster. It ends with the last scenario that uses it.
pub(crate) struct Stage {
    pub clients: Vec<Pod>,
    pub nodes: Vec<Node>,
    pub cluster: Cluster,
    labels: Mutex<()>,
    pods_made: AtomicU8,
}

static STAGE: Mutex<Weak<Stage>> = Mutex::new(Weak::new());

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    fn shared() -> Arc<Self> {
        let mut shared = unpoisoned(&STAGE);
        if let Some(stage) = shared.upgrade() {
            return stage;
        }
        let stage = Arc::new(Self::build());
        *shared = Arc::downgrade(&stage);
        stage
    }

    fn build() -> Self {
        let lab = Lab::new();
        let cluster = Cluster::start(&lab);
        cluster.apply(NODES.map(|(name, zone)| objects::node(name, zone, 2)));
        let kubeconfig = cluster.account();
        let nodes: Vec<_> = NODES.iter().map(|(name, _)| lab.node(name)).collect();
        let agents: Vec<_> = nodes
            .iter()
            .map(|node| node.agent_of(&kubeconfig))
            .collect();
        let clients = (1..).zip(&nodes);
        let clients = clients
            .map(|(number, node)| node.pod(&format!("10.0.{number}.250")))
            .collect();
        for agent in &agents {
            agent.wait_ready().unwrap();
        }
        Self {
            clients,
            nodes,
            cluster,
            labels: Mutex::new(()),
            pods_made: AtomicU8::new(0),
        }
    }

    /// `services -o json` of a node.
    fn services(&self, node: usize) -> Result<Value, String> {
        let output = self.nodes[node].cli().on_pins(&["services", "-o", "json"]);
        serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error}: {}", agent::text(&output.stderr)))
    }
}

/// One scenario's part of the stage.
pub(crate) struct World {
    pub stage: Arc<Stage>,
    namespace: &'static str,
}

impl World {
    /// A namespace with nothing in it.
    pub(crate) fn empty(name: &'static str) -> Self {
        let stage = Stage::shared();
        stage.cluster.apply(namespace(name));
        Self {
            stage,
            namespace: name,
        }
    }

    /// A namespace with a Service `web`, and pods on these nodes that are ready and serve.
    pub(crate) fn new<const PODS: usize>(
        name: &'static str,
        service: Value,
        pods: [(&str, usize); PODS],
    ) -> (Self, [Pod; PODS]) {
        let world = Self::empty(name);
        world.apply([service]);
        let pods = world.run(pods);
        (world, pods)
    }

    pub(crate) fn apply(&self, objects: impl IntoIterator<Item = Value>) {
        let objects = objects.into_iter();
        self.stage
            .cluster
            .apply(objects.map(|object| within(self.namespace, object)));
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let namespace = ["--namespace", self.namespace];
        self.stage.cluster.kubectl(&[args, &namespace].concat())
    }

    pub(crate) fn get(&self, args: &[&str]) -> Value {
        let namespace = ["--namespace", self.namespace];
        self.stage.cluster.get(&[args, &namespace].concat())
    }

    /// Merges this into the Service; `null` removes.
    pub(crate) fn patch(&self, patch: &Value) {
        let patch = patch.to_string();
        self.kubectl(&["patch", "service", "web", "--type=merge", "--patch", &patch]);
    }

    /// Pods of the app `web` that serve and are ready.
    pub(crate) fn run<const PODS: usize>(&self, pods: [(&str, usize); PODS]) -> [Pod; PODS] {
        let running = pods.map(|(_, node)| {
            let number = 1 + self.stage.pods_made.fetch_add(1, Ordering::Relaxed);
            let pod = self.stage.nodes[node].pod(&format!("10.0.{}.{number}", node + 1));
            pod.serve(Serve::Tcp, TARGET);
            pod
        });
        let named = pods.iter().zip(&running);
        self.apply(named.map(|((name, node), pod)| objects::pod(name, "web", NODES[*node].0, pod)));
        running
    }

    /// Writes a Pod's condition `Ready`, as its kubelet does after a probe.
    pub(crate) fn set_ready(&self, pod: &str, ready: bool) {
        let status = if ready { "True" } else { "False" };
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        self.kubectl(&[
            "patch",
            "pod",
            pod,
            "--subresource=status",
            "--patch",
            &patch.to_string(),
        ]);
    }

    /// Asks for a pod's end; as no kubelet carries that out, it is terminating from then on.
    pub(crate) fn terminate(&self, pod: &str) {
        self.kubectl(&["delete", "pod", pod, "--wait=false"]);
    }

    /// Takes a pod away, whatever state it is in.
    pub(crate) fn remove(&self, pod: &str) {
        self.kubectl(&["delete", "pod", pod, "--force", "--grace-period=0"]);
    }

    /// The Service as clients name it.
    pub(crate) fn address(&self, family: &str) -> SocketAddr {
        let service = self.get(&["service", "web"]);
        let ips = service["spec"]["clusterIPs"].as_array().unwrap();
        let ips = ips.iter().map(|ip| ip.as_str().unwrap());
        let mut ips = ips.filter(|ip| ip.contains(':') == (family == "IPv6"));
        let ip = ips
            .next()
            .unwrap_or_else(|| panic!("no {family} in {service}"));
        traffic::address((ip, PORT))
    }

    /// Waits until connects from a client on this node end where they should.
    pub(crate) fn until(
        &self,
        what: &str,
        from: usize,
        to: SocketAddr,
        wanted: impl Fn(&Tally) -> bool,
    ) {
        wait::until(what, wait::PATIENCE * 2, || {
            let tally = self.stage.clients[from].load(Serve::Tcp, to, CONNECTS);
            if wanted(&tally) {
                Ok(())
            } else {
                Err(format!("{:?} {:?}", tally.answers, tally.errors))
            }
        })
        .unwrap();
    }

    /// Waits until connects from this node reach all of these pods and nobody else, and none fails.
    pub(crate) fn until_spread(&self, from: usize, to: SocketAddr, over: &[&Pod]) {
        let wanted: Vec<_> = over.iter().map(|pod| at(pod, to)).collect();
        self.until(&format!("connects to {wanted:?}"), from, to, |tally| {
            tally.errors.is_empty()
                && wanted.iter().all(|pod| tally.of(*pod) > 0)
                && tally.answers.len() == wanted.len()
        });
    }

    /// Waits until connects from this node are refused at once.
    pub(crate) fn until_refused(&self, from: usize, to: SocketAddr) {
        self.until("connects to be refused", from, to, |tally| {
            tally.answered() == 0 && tally.errors.keys().all(|said| said.contains("refused"))
        });
    }

    /// What `services` shows of the Service on a node; `null` if it does not.
    pub(crate) fn served(&self, node: usize) -> Value {
        let services = self.stage.services(node).unwrap_or_default();
        let mut served = services["services"].as_array().into_iter().flatten();
        let found = served
            .find(|service| service["namespace"] == self.namespace && service["name"] == "web");
        found.cloned().unwrap_or_default()
    }

    /// The addresses of the cluster list on a node.
    pub(crate) fn backends(&self, node: usize) -> Vec<String> {
        let served = self.served(node);
        let backends = served["cluster"]["backends"]
            .as_array()
            .into_iter()
            .flatten();
        backends
            .filter_map(|backend| backend["address"].as_str().map(str::to_owned))
            .collect()
    }

    /// Waits until `services` on this node tells this of the Service's hints.
    pub(crate) fn until_told(&self, node: usize, hints: &str) {
        wait::until(&format!("hints {hints}"), wait::PATIENCE * 2, || {
            let served = self.served(node);
            if served["hints"] == hints {
                Ok(())
            } else {
                Err(served.to_string())
            }
        })
        .unwrap();
    }

    /// Nobody else changes the Nodes, or needs them as they are, while this is held.
    pub(crate) fn hold_nodes(&self) -> MutexGuard<'_, ()> {
        unpoisoned(&self.stage.labels)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- {} ----", self.namespace);
            let get = [
                "get",
                "service,pods,endpointslices",
                "-o=wide",
                "--namespace",
            ];
            let said = self
                .stage
                .cluster
                .try_kubectl(&[&get[..], &[self.namespace]].concat(), "");
            eprintln!("{}", agent::text(&said.stdout));
            for node in [A, B, C] {
                eprintln!("{}: {:#}", NODES[node].0, self.served(node));
            }
        }
    }
}

/// Where a pod answers those that come by this address.
pub(crate) fn at(pod: &Pod, by: SocketAddr) -> SocketAddr {
    match by.is_ipv4() {
        true => pod.at(TARGET),
        false => pod.at6(TARGET),
    }
}

/// The Service `web` over IPv4; whatever else it has is to be patched in.
pub(crate) fn web() -> Value {
    let mut service = objects::service("web", PORT, TARGET);
    service["spec"]["ipFamilyPolicy"] = json!("SingleStack");
    service["spec"]["ipFamilies"] = json!(["IPv4"]);
    service
}

/// The same with more in its `spec`.
pub(crate) fn web_with(field: &str, value: Value) -> Value {
    let mut service = web();
    service["spec"][field] = value;
    service
}
