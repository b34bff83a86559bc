//! Acceptance: whatever is killed, in whatever order, no client notices.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{fmt, sync::Arc};

use lb_tests::{
    Agent, Cluster, Lab, Node, Pod, Serve,
    cluster::objects::{node, pod, service},
    protocol::Tally,
    traffic, wait,
};
use serde_json::json;

const KILLS: u32 = 24;
const CONNECTS: u32 = 100_000;
const PORT: u16 = 8080;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Agent,
    ApiServer,
    Etcd,
}

#[test]
fn kill_9_of_agents_api_server_and_etcd_in_random_order_fails_no_connect() {
    let mut scene = Scene::build();
    let order = random_order();
    eprintln!("killing {order:?}");
    let (tcp, udp) = (scene.address(80), scene.address(53));
    let (clients, udp_client) = (scene.clients.clone(), scene.udp_client.clone());
    let loads = [
        clients[0].start_load(Serve::Tcp, tcp, 2),
        clients[1].start_load(Serve::Tcp, tcp, 2),
        udp_client.start_load(Serve::Udp, udp, 1),
    ];

    for victim in &order {
        scene.kill(*victim);
        scene.more_answers(CONNECTS / KILLS / 2);
        scene.start(*victim);
        scene.more_answers(CONNECTS / KILLS / 2);
    }
    let mut total = Tally::default();
    for load in loads {
        total.merge(load.finish(0));
    }

    assert!(
        total.errors.is_empty(),
        "{:?} after {order:?}",
        total.errors
    );
    assert!(
        total.answered() >= CONNECTS,
        "{} connects",
        total.answered()
    );
    assert_eq!(order.len(), KILLS as usize);
    eprintln!(
        "{} connects over {} kills, none failed",
        total.answered(),
        order.len()
    );
    scene.follows_the_cluster();
}

/// Each a third of the times, shuffled.
fn random_order() -> Vec<Victim> {
    let victims = [Victim::Agent, Victim::ApiServer, Victim::Etcd];
    let mut order: Vec<_> = victims.into_iter().cycle().take(KILLS as usize).collect();
    fastrand::shuffle(&mut order);
    order
}

/// Two nodes with an agent, a backend and a client each, and a client that speaks UDP.
struct Scene {
    agents: Vec<Arc<Agent>>,
    clients: Vec<Pod>,
    udp_client: Pod,
    backends: Vec<Pod>,
    nodes: Vec<Node>,
    kubeconfig: std::path::PathBuf,
    cluster: Cluster,
    /// Whose turn it is.
    agents_killed: usize,
}

impl Scene {
    fn build() -> Self {
        let lab = Lab::new();
        let cluster = Cluster::start(&lab);
        let kubeconfig = cluster.account();
        let nodes = ["node-a", "node-b"].map(|name| lab.node(name)).to_vec();
        cluster.apply([node("node-a", "a", 2), node("node-b", "b", 2)]);
        let mut web = service("web", 80, PORT);
        let dns = json!({"name": "dns", "protocol": "UDP", "port": 53, "targetPort": PORT});
        web["spec"]["ports"].as_array_mut().unwrap().push(dns);
        let backends: Vec<_> = (1..)
            .zip(&nodes)
            .map(|(n, on)| on.pod(&format!("10.0.{n}.1")))
            .collect();
        for pod in &backends {
            pod.serve(Serve::Tcp, PORT);
            pod.serve(Serve::Udp, PORT);
        }
        let pods = backends
            .iter()
            .zip(&nodes)
            .map(|(running, on)| pod(on.name(), "web", on.name(), running));
        cluster.apply(pods.chain([web]));
        let agents: Vec<_> = nodes
            .iter()
            .map(|node| node.agent_of(&kubeconfig))
            .collect();
        let clients = (1..)
            .zip(&nodes)
            .map(|(n, on)| on.pod(&format!("10.0.{n}.200")))
            .collect();
        let scene = Self {
            agents,
            clients,
            udp_client: nodes[0].pod("10.0.1.201"),
            backends,
            nodes,
            kubeconfig,
            cluster,
            agents_killed: 0,
        };
        scene.until_all_answer();
        scene
    }

    fn address(&self, port: u16) -> std::net::SocketAddr {
        let service = self.cluster.get(&["service", "web"]);
        let ip = service["spec"]["clusterIP"].as_str().unwrap();
        traffic::address((ip, port))
    }

    fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Agent => {
                self.agents_killed += 1;
                self.turn().1.kill().unwrap();
            }
            Victim::ApiServer => self.cluster.kill_api(),
            Victim::Etcd => self.cluster.kill_etcd(),
        }
    }

    /// Started, and not waited for: the next one may be killed before this one is ready.
    fn start(&mut self, victim: Victim) {
        match victim {
            Victim::Agent => {
                let number = self.turn().0;
                self.agents[number] = self.nodes[number].agent_of(&self.kubeconfig);
            }
            Victim::ApiServer => self.cluster.start_api(),
            Victim::Etcd => self.cluster.start_etcd(),
        }
    }

    fn turn(&self) -> (usize, &Agent) {
        let number = self.agents_killed % self.agents.len();
        (number, &self.agents[number])
    }

    fn answered(&self) -> u32 {
        let of = |pod: &Pod| pod.answered(Serve::Tcp, PORT) + pod.answered(Serve::Udp, PORT);
        self.backends.iter().map(of).sum()
    }

    fn more_answers(&self, wanted: u32) {
        let before = self.answered();
        let what = format!("{wanted} more answers");
        until(&what, || match self.answered() - before {
            more if more >= wanted => Ok(()),
            more => Err(format!("{more} more answers")),
        });
    }

    /// Every client reaches every backend by both protocols.
    fn until_all_answer(&self) {
        for agent in &self.agents {
            agent.wait_ready().unwrap();
        }
        let ports = [(Serve::Tcp, 80), (Serve::Udp, 53)];
        let ports = ports.map(|(serve, port)| (serve, self.address(port)));
        for (client, (serve, to)) in self
            .clients
            .iter()
            .flat_map(|pod| ports.map(|to| (pod, to)))
        {
            until("every backend to answer", || {
                let tally = client.load(serve, to, 30);
                let all = tally.errors.is_empty() && tally.answers.len() == self.backends.len();
                if all {
                    Ok(())
                } else {
                    Err(format!("{tally:?}"))
                }
            });
        }
    }

    /// After all that, the cluster works and a change is followed.
    fn follows_the_cluster(&self) {
        self.cluster.wait_ready();
        for agent in &self.agents {
            agent.wait_ready().unwrap();
        }
        self.cluster
            .kubectl(&["delete", "pod", "node-b", "--force", "--grace-period=0"]);
        let (to, left) = (self.address(80), self.backends[0].at(PORT));
        for client in &self.clients {
            until("the backend that is left", || {
                let tally = client.load(Serve::Tcp, to, 30);
                if tally.of(left) == 30 {
                    Ok(())
                } else {
                    Err(format!("{tally:?}"))
                }
            });
        }
    }
}

fn until<Seen: fmt::Display>(what: &str, look: impl FnMut() -> Result<(), Seen>) {
    // Long enough for a watch that waits before it tries again.
    wait::until(what, wait::PATIENCE * 6, look).unwrap();
}
