//! A real cluster in a lab: etcd, kube-apiserver and kube-controller-manager on a node of their own,
//! whose API server every other node of the lab can reach. There are no kubelets: a test writes the
//! status of Nodes and Pods itself, with the addresses of the lab's pods.

pub mod control_plane;
pub mod faults;
pub mod objects;
pub mod scene;

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use self::{
    control_plane::{API_SERVER, ControlPlane, ETCD, Nodes},
    faults::FaultyProxy,
};
use crate::{
    Agent, Lab, Node, Objects,
    agent::{self, text},
    must, wait,
    worker::{Place, lock},
};

const API_PORT: u16 = 6443;

/// What `dir` agents read: all that kube-proxy watches.
const WATCHED: &str = "nodes,services,endpointslices,servicecidrs";

/// The rights that the agent asks for, as they are installed.
const RBAC: &str = include_str!("../../deploy/rbac.yaml");

/// A cluster, which ends when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    plane: Mutex<ControlPlane>,
    at: SocketAddr,
    /// Where in a lab it runs.
    place: Option<Place>,
    proxies: AtomicU16,
    // Dropped last: the lab removes the namespace that the parts run in.
    _lab: Option<Lab>,
}

impl Cluster {
    /// Starts a control plane on a node `control-plane` of this lab.
    #[must_use]
    pub fn start(lab: &Lab) -> Self {
        let node = lab.node("control-plane");
        let (place, at) = (node.host().place().clone(), node.host().at(API_PORT));
        let dir = lab.dir().join("cluster");
        Self {
            plane: Mutex::new(must(ControlPlane::start(
                &dir,
                at,
                Some(place.clone()),
                Nodes::Written,
            ))),
            at,
            place: Some(place),
            proxies: AtomicU16::new(0),
            _lab: Some(lab.clone()),
        }
    }

    /// One that runs outside of every lab, and goes on when this is dropped.
    #[must_use]
    pub fn running(plane: ControlPlane, at: SocketAddr) -> Self {
        Self {
            plane: Mutex::new(plane),
            at,
            place: None,
            proxies: AtomicU16::new(0),
            _lab: None,
        }
    }

    /// Where the API server listens, for agents on the lab's nodes.
    #[must_use]
    pub fn api(&self) -> SocketAddr {
        self.at
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        lock(&self.plane).kubeconfig()
    }

    /// Grants what deploy/rbac.yaml grants, and returns a kubeconfig of that ServiceAccount.
    #[must_use]
    pub fn account(&self) -> PathBuf {
        self.grant();
        let token = self.kubectl(&["create", "token", "nearhop", "--namespace=kube-system"]);
        let admin = must(fs::read_to_string(self.kubeconfig()).context("read the kubeconfig"));
        let mut config: Value = must(serde_json::from_str(&admin));
        config["users"][0]["user"]["token"] = json!(token.trim());
        let path = self.kubeconfig().with_file_name("nearhop.kubeconfig");
        must(fs::write(&path, config.to_string()).context("write a kubeconfig"));
        path
    }

    /// Makes the rights what deploy/rbac.yaml says.
    pub fn grant(&self) {
        let apply = ["apply", "--filename=-"];
        must(succeeded(&apply, self.try_kubectl(&apply, RBAC)));
    }

    /// SIGKILL for the API server.
    pub fn kill_api(&self) {
        must(lock(&self.plane).kill_part(API_SERVER));
    }

    /// Starts the API server again; [`Cluster::wait_ready`] waits until it answers.
    pub fn start_api(&self) {
        must(lock(&self.plane).start_again(API_SERVER));
    }

    /// SIGKILL for etcd. Its data stay.
    pub fn kill_etcd(&self) {
        must(lock(&self.plane).kill_part(ETCD));
    }

    pub fn start_etcd(&self) {
        must(lock(&self.plane).start_again(ETCD));
    }

    /// What the loss of etcd's disk does, while it is killed.
    pub fn lose_etcd_data(&self) {
        must(lock(&self.plane).lose_etcd_data());
    }

    /// A proxy to the API server for one agent, who is then the ServiceAccount of this kubeconfig; with it,
    /// the kubeconfig to give to the agent.
    #[must_use]
    pub fn faulty_proxy(&self, account: &Path) -> (FaultyProxy, PathBuf) {
        let number = self.proxies.fetch_add(1, Ordering::Relaxed);
        let at = |first: u16| SocketAddr::new(self.at.ip(), first + number);
        let mut kubectl = must(lock(&self.plane).kubectl());
        kubectl.env("KUBECONFIG", account);
        let place = must(self.place.as_ref().context("no lab has this cluster"));
        let proxy = FaultyProxy::start(place, at(7000), at(8000), kubectl);
        let proxy = must(proxy);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": proxy.url()}}],
            "users": [{"name": "nobody", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
            "current-context": "proxy",
        });
        let path = self
            .kubeconfig()
            .with_file_name(format!("proxy-{number}.kubeconfig"));
        must(fs::write(&path, config.to_string()).context("write a kubeconfig"));
        (proxy, path)
    }

    pub fn wait_ready(&self) {
        must(lock(&self.plane).wait_ready());
    }

    /// What ServiceAccounts of nearhop asked, a JSON object a line.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        lock(&self.plane).audit_log()
    }

    /// Adds or replaces objects. A status is written as kubelets do, to its own subresource.
    pub fn apply(&self, objects: impl IntoIterator<Item = Value>) {
        let objects: Vec<Value> = objects.into_iter().collect();
        let with_status = objects
            .iter()
            .filter(|object| object.get("status").is_some());
        let with_status: Vec<Value> = with_status.cloned().collect();
        self.server_side_apply(&objects, &[]);
        if !with_status.is_empty() {
            self.server_side_apply(&with_status, &["--subresource=status"]);
        }
    }

    fn server_side_apply(&self, objects: &[Value], options: &[&str]) {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let apply = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--filename=-",
        ];
        let output = self.try_kubectl(&[&apply, options].concat(), &list.to_string());
        must(succeeded(&apply, output));
    }

    /// What `kubectl` prints. That it fails is a failed test.
    pub fn kubectl(&self, args: &[&str]) -> String {
        must(succeeded(args, self.try_kubectl(args, "")))
    }

    /// The same where failure is an answer, with something on its standard input.
    #[must_use]
    pub fn try_kubectl(&self, args: &[&str], input: &str) -> Output {
        must(self.run_kubectl(args, input).with_context(|| shown(args)))
    }

    fn run_kubectl(&self, args: &[&str], input: &str) -> anyhow::Result<Output> {
        let mut child = lock(&self.plane)
            .kubectl()?
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        // One that gave up early closes its end; its message, not the broken pipe, says why.
        let _ = stdin.map(|mut stdin| stdin.write_all(input.as_bytes()));
        Ok(child.wait_with_output()?)
    }

    /// `kubectl get … -o json`
    #[must_use]
    pub fn get(&self, args: &[&str]) -> Value {
        let said = self.kubectl(&[&["get", "--output=json"], args].concat());
        must(serde_json::from_str(&said))
    }

    /// Waits until the endpoints that the controllers wrote for a Service of `default` are as wanted,
    /// and returns them: one list, over all slices of this family.
    #[must_use]
    pub fn endpoints(
        &self,
        service: &str,
        family: &str,
        wanted: impl Fn(&[Value]) -> bool,
    ) -> Vec<Value> {
        let what = format!("the {family} endpoints of {service}");
        must(wait::until(&what, wait::PATIENCE, || {
            let endpoints = self.endpoints_now(service, family);
            let as_wanted = wanted(&endpoints);
            if as_wanted {
                Ok(endpoints)
            } else {
                Err(Value::Array(endpoints))
            }
        }))
    }

    fn endpoints_now(&self, service: &str, family: &str) -> Vec<Value> {
        let label = format!("--selector=kubernetes.io/service-name={service}");
        let mut slices = self.get(&["endpointslices", &label]);
        let slices = slices["items"].as_array_mut().into_iter().flatten();
        let of_family = slices.filter(|slice| slice["addressType"] == family);
        let endpoints = of_family.filter_map(|slice| slice["endpoints"].as_array_mut());
        endpoints.flat_map(std::mem::take).collect()
    }

    /// Writes what is in the cluster into a folder, as a person would with `kubectl get -o yaml`.
    pub fn dump(&self, into: &Objects) {
        let yaml = self.kubectl(&["get", WATCHED, "--all-namespaces", "--output=yaml"]);
        into.write("cluster.yaml", &yaml);
    }
}

impl Node {
    /// Starts `lb-agent run` with this kubeconfig. It is ready once it has heard everything.
    #[must_use]
    pub fn agent_of(&self, kubeconfig: &Path) -> Arc<Agent> {
        let mut command = must(self.host().place().command(&must(agent::program()), &[]));
        command.args(["run", "--node", self.name()]);
        command.arg("--kubeconfig").arg(kubeconfig);
        command.arg("--cgroup").arg(self.cgroup());
        command.arg("--pin-path").arg(self.pin_path());
        self.start_agent(command)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", lock(&self.plane).last_words());
        }
        if let Err(error) = lock(&self.plane).kill() {
            eprintln!("ending the control plane: {error:#}");
        }
    }
}

fn succeeded(args: &[&str], output: Output) -> anyhow::Result<String> {
    ensure!(
        output.status.success(),
        "{}: {}",
        shown(args),
        text(&output.stderr).trim()
    );
    Ok(text(&output.stdout))
}

fn shown(args: &[&str]) -> String {
    format!("kubectl {}", args.join(" "))
}
