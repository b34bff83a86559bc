//! The agent fed by a real API server, with no more rights than deploy/rbac.yaml gives it.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    fs::{self, File},
    iter,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::Arc,
};

use lb_tests::{
    Agent, Cluster, Lab, Node, Pod, Serve, agent,
    netns::Netns,
    objects::{self, service, slice},
    protocol::Tally,
    scene::{NODE, TCP, TCP_PORT, ZONE},
    wait,
    worker::Place,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const RBAC: &str = include_str!("../../deploy/rbac.yaml");
const OTHER_ZONE: &str = "zone-b";

#[test]
fn what_the_cluster_says_is_served_and_followed() {
    let scene = Scene::new();
    let [near, far] = &scene.backends;
    scene.wait_for_answers("both backends", |tally| tally.answers.len() == 2);

    scene.apply_slice(&scene.slice().hinted().into());
    scene.wait_for_answers("the hints", |tally| tally.of(near.at(TCP_PORT)) == 20);

    scene.cluster.apply([objects::node(NODE, OTHER_ZONE)]);
    scene.wait_for_answers("the node's new zone", |tally| {
        tally.of(far.at(TCP_PORT)) == 20
    });

    scene.cluster.kubectl(&["delete", "service", "web"]);
    wait::until("the Service to be forgotten", wait::PATIENCE, || {
        let services = scene.services();
        if services.contains("default/web") {
            Err(services)
        } else {
            Ok(())
        }
    })
    .unwrap();
    assert!(scene.services().contains("default/kubernetes"));
}

#[test]
fn an_api_server_that_is_away_stops_no_traffic_and_is_caught_up_with() {
    let scene = Scene::new();
    let mut server = ApiServer::of(&scene.node);
    let load = scene.client.start_load(Serve::Tcp, TCP, 4);

    server.kill();
    scene.wait_for_status("the problem", |status| {
        let problem = status["problem"].as_str().unwrap_or_default();
        problem.contains("cannot watch") && problem.contains("since")
    });
    server.start();
    wait::until("the API server", wait::PATIENCE * 3, || {
        let ready = scene.cluster.try_kubectl(&["get", "--raw", "/readyz"], "");
        if ready.status.success() {
            Ok(())
        } else {
            Err(agent::text(&ready.stderr))
        }
    })
    .unwrap();
    let tally = load.finish(1_000);
    assert!(tally.errors.is_empty(), "{:?}", tally.errors);

    scene.wait_for_status("no problem", |status| status["problem"].is_null());
    scene.apply_slice(&scene.slice().hinted().into());
    let near = scene.backends[0].at(TCP_PORT);
    scene.wait_for_answers("a later change", |tally| tally.of(near) == 20);
}

#[test]
fn a_restarted_agent_changes_nothing() {
    let scene = Scene::new();
    assert!(scene.node.cli().number("first_sync_ops").unwrap() > 0);
    scene.agent.kill().unwrap();
    assert_eq!(scene.client.load(Serve::Tcp, TCP, 20).answered(), 20);

    let agent = start_agent(&scene.node, &scene.kubeconfig);
    agent.wait_ready().unwrap();

    assert_eq!(scene.node.cli().number("first_sync_ops").unwrap(), 0);
}

#[test]
fn what_was_deleted_while_no_agent_ran_is_removed_by_the_next() {
    let scene = Scene::new();
    scene.agent.kill().unwrap();
    scene.cluster.kubectl(&["delete", "service", "web"]);

    let agent = start_agent(&scene.node, &scene.kubeconfig);
    agent.wait_ready().unwrap();

    let services = scene.services();
    assert!(!services.contains("default/web"), "{services}");
    assert!(services.contains("default/kubernetes"), "{services}");
}

#[test]
fn a_right_that_is_missing_is_named_and_nothing_is_programmed() {
    let lab = Lab::new();
    let cluster = Cluster::start(&lab);
    let node = lab.node(NODE);
    let kubeconfig = account(&lab, &cluster);
    for (rule, resource, kind) in [
        (0, json!(["nodes"]), "Services"),
        (0, json!(["services"]), "Nodes"),
        (1, json!([]), "EndpointSlices"),
        (2, json!([]), "ServiceCIDRs"),
    ] {
        let mut role = cluster.get(&["clusterrole", "nearhop"]);
        role["metadata"]["managedFields"].take();
        role["rules"][rule]["resources"] = match resource.as_array() {
            Some(kept) if kept.is_empty() => json!(["events"]),
            _ => resource,
        };
        cluster.apply([role]);
        let agent = start_agent(&node, &kubeconfig);
        let expected = format!("grant list and watch of {kind}");
        wait::until(&expected, wait::PATIENCE, || {
            let log = agent.log();
            if log.contains(&expected) {
                Ok(())
            } else {
                Err(log)
            }
        })
        .unwrap();
        assert!(agent.exit_status().is_none());
        assert!(node.cli().status().is_err(), "nothing is installed");
        agent.kill().unwrap();
        grant(&cluster);
    }
}

/// Two backends in two zones behind `default/web`, and an agent that has programmed them.
struct Scene {
    agent: Arc<Agent>,
    client: Pod,
    backends: [Pod; 2],
    node: Node,
    kubeconfig: PathBuf,
    cluster: Cluster,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let cluster = Cluster::start(&lab);
        let node = lab.node(NODE);
        let backends = ["10.0.1.1", "10.0.1.2"].map(|addr| node.pod(addr));
        for pod in &backends {
            pod.serve(Serve::Tcp, TCP_PORT);
        }
        let client = node.pod("10.0.1.200");
        let kubeconfig = account(&lab, &cluster);
        cluster.apply([objects::node(NODE, ZONE), web().into()]);
        let agent = start_agent(&node, &kubeconfig);
        let scene = Self {
            agent,
            client,
            backends,
            node,
            kubeconfig,
            cluster,
        };
        scene.apply_slice(&scene.slice().into());
        scene.agent.wait_ready().unwrap();
        scene.wait_for_answers("both backends", |tally| tally.answers.len() == 2);
        scene
    }

    fn slice(&self) -> objects::Slice {
        let [near, far] = &self.backends;
        slice("default/web", "IPv4")
            .tcp("http", TCP_PORT)
            .endpoint(near.addr(), NODE, ZONE)
            .endpoint(far.addr(), NODE, OTHER_ZONE)
    }

    fn apply_slice(&self, slice: &Value) {
        self.cluster.apply([slice.clone()]);
    }

    fn services(&self) -> String {
        agent::text(&self.node.cli().on_pins(&["services"]).stdout)
    }

    fn wait_for_answers(&self, what: &str, wanted: impl Fn(&Tally) -> bool) {
        wait::until(what, wait::PATIENCE, || {
            let tally = self.client.load(Serve::Tcp, TCP, 20);
            if wanted(&tally) {
                Ok(())
            } else {
                Err(format!("{tally:?}"))
            }
        })
        .unwrap();
    }

    fn wait_for_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        // A watch waits up to 30 s, and as long again at random, between two tries.
        wait::until(what, wait::PATIENCE * 4, || {
            let status = self.node.cli().status()?;
            if wanted(&status) {
                Ok(())
            } else {
                Err(status.to_string())
            }
        })
        .unwrap();
    }
}

fn web() -> objects::Service {
    service("default/web", &["10.96.0.10"]).tcp("http", 80)
}

/// The running API server, to be killed and started again as it was.
struct ApiServer {
    place: Place,
    dir: PathBuf,
    /// The program and its arguments.
    command_line: Vec<String>,
    pid: Pid,
    restarted: Option<Child>,
}

impl ApiServer {
    fn of(node: &Node) -> Self {
        let lab = node.lab();
        let dir = lab.dir().join("cluster");
        let pid = fs::read_to_string(dir.join("kube-apiserver.pid")).unwrap();
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
        let arguments = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        let arguments = arguments.split_terminator('\0').skip(1).map(str::to_owned);
        Self {
            place: Place {
                netns: Netns {
                    name: format!("{}-control-plane", lab.name()),
                },
                cgroup: node.cgroup().with_file_name("control-plane"),
            },
            dir,
            command_line: iter::once(program.display().to_string())
                .chain(arguments)
                .collect(),
            pid: Pid::from_raw(pid.parse().unwrap()).unwrap(),
            restarted: None,
        }
    }

    fn kill(&self) {
        kill_process(self.pid, Signal::KILL).unwrap();
    }

    fn start(&mut self) {
        let (program, arguments) = self.command_line.split_first().unwrap();
        let mut command = self.place.command(Path::new(program), &[]).unwrap();
        let log = File::create(self.dir.join("kube-apiserver-again.log")).unwrap();
        command
            .args(arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        self.restarted = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(mut server) = self.restarted.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }
}

/// The ServiceAccount of deploy/, and a kubeconfig with its token.
fn account(lab: &Lab, cluster: &Cluster) -> PathBuf {
    grant(cluster);
    let token = cluster.kubectl(&["create", "token", "nearhop", "--namespace=kube-system"]);
    let admin = fs::read_to_string(cluster.kubeconfig()).unwrap();
    let mut config: Value = serde_json::from_str(&admin).unwrap();
    config["users"][0]["user"]["token"] = json!(token.trim());
    let path = lab.dir().join("nearhop.kubeconfig");
    fs::write(&path, config.to_string()).unwrap();
    path
}

fn grant(cluster: &Cluster) {
    let apply = ["apply", "--filename=-"];
    let output = cluster.try_kubectl(&apply, RBAC);
    assert!(output.status.success(), "{}", agent::text(&output.stderr));
}

fn start_agent(node: &Node, kubeconfig: &Path) -> Arc<Agent> {
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
