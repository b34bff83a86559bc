//! What is measured: a control plane whose Services all lead to the same three servers, and for each
//! number of Services the ways to reach them. Each way has a client; the clients of nearhop and of no
//! proxy share a network namespace and differ in their cgroup only, the others have a namespace for the
//! rules of their kube-proxy.

use std::{
    fmt::Display,
    fs::File,
    net::{IpAddr, SocketAddr},
    ops::Range,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use lb_tests::{
    Cluster, Lab, Node, Pod, Serve, agent,
    cluster::{self, control_plane},
    protocol::{Request, Tally, Target, Timed},
    wait,
    worker::{Place, Worker},
};
use serde::Serialize;
use serde_json::json;

use crate::{Step, fill};

const PORT: u16 = 8080;
const NODE: &str = "bench";
const ZONE: &str = "zone-a";

/// Addresses that one round of connects goes to, in turn: the first, the last and some in between, since
/// a list of rules is searched from its beginning.
const TARGETS: u32 = 16;

/// kube-proxy's iptables mode needs minutes for its first sync at ten thousand Services.
const PATIENCE: Duration = Duration::from_secs(900);

/// How a client reaches a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    /// The pod's own address, and no proxy.
    Direct,
    /// The pod's own address where nearhop serves: the miss path.
    Miss,
    Nearhop,
    Nftables,
    Iptables,
}

impl Way {
    pub(crate) const ALL: [Self; 5] = [
        Self::Direct,
        Self::Miss,
        Self::Nearhop,
        Self::Nftables,
        Self::Iptables,
    ];

    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Direct => "the pod's own address, no proxy",
            Self::Miss => "the pod's own address, nearhop attached",
            Self::Nearhop => "a Service by nearhop, with statistics",
            Self::Nftables => "a Service by kube-proxy's nftables rules",
            Self::Iptables => "a Service by kube-proxy's iptables rules",
        }
    }

    /// The ratio to a direct connect that design.md asks for.
    pub(crate) fn target(self) -> Option<f64> {
        match self {
            Self::Miss => Some(1.05),
            Self::Nearhop => Some(1.10),
            Self::Direct | Self::Nftables | Self::Iptables => None,
        }
    }
}

/// What serves all beds.
pub(crate) struct Stage {
    lab: Lab,
    cluster: Cluster,
    control_plane: Place,
    servers: [Pod; 3],
}

impl Stage {
    pub(crate) fn build(lab: &Lab) -> Self {
        let node = lab.node("servers");
        let servers = [1, 2, 3].map(|last| node.pod(&format!("10.0.1.{last}")));
        for server in &servers {
            server.serve(Serve::Discard, PORT);
        }
        let cluster = Cluster::start(lab);
        let mut bench = cluster::objects::node(NODE, ZONE, 2);
        let address = json!([{"type": "InternalIP", "address": "172.18.0.250"}]);
        bench["status"]["addresses"] = address;
        cluster.apply([bench]);
        // Which node's network reaches the API server does not matter, as long as it is one of the lab.
        let control_plane = node.host().place().clone();
        Self {
            lab: lab.clone(),
            cluster,
            control_plane,
            servers,
        }
    }

    /// Makes these Services.
    pub(crate) fn fill(&self, numbers: Range<u32>, step: &Step) -> anyhow::Result<()> {
        let endpoints = self.servers.each_ref().map(Pod::addr);
        let kubeconfig = self.cluster.kubeconfig();
        let inside = &self.control_plane.netns;
        inside.run(|| fill::services(&kubeconfig, numbers, &endpoints, PORT, step))
    }

    fn direct(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(|pod| pod.at(PORT)).collect()
    }
}

/// The clients at one number of Services.
pub(crate) struct Bed {
    direct: Vec<SocketAddr>,
    services: Vec<SocketAddr>,
    plain: Worker,
    near: Worker,
    nftables: Pod,
    iptables: Pod,
    pub(crate) node: Node,
}

impl Bed {
    /// The bed of this number in the run, at so many Services.
    pub(crate) fn build(
        stage: &Stage,
        number: u8,
        services: u32,
        step: &Step,
    ) -> anyhow::Result<Self> {
        let outside = stage.lab.node(&format!("plain-{services}"));
        let node = stage.lab.node(&format!("near-{services}"));
        let pod = |last: u8| outside.pod(&format!("10.0.{}.{last}", 10 + number));
        let (client, nftables, iptables) = (pod(1), pod(2), pod(3));
        let plain = Worker::start(client.place())?;
        let near = Worker::start(&Place {
            netns: client.place().netns.clone(),
            cgroup: node.cgroup().to_owned(),
        })?;
        let bed = Self {
            direct: stage.direct(),
            services: targets(services),
            plain,
            near,
            nftables,
            iptables,
            node,
        };
        bed.program(stage, services, step)?;
        Ok(bed)
    }

    /// Lets each proxy write its rules and then ends it: what is measured is the kernel's work.
    fn program(&self, stage: &Stage, services: u32, step: &Step) -> anyhow::Result<()> {
        for (mode, pod) in [("nftables", &self.nftables), ("iptables", &self.iptables)] {
            step.begin(
                1,
                &format!("{services} Services: kube-proxy writes its {mode} rules"),
            );
            let proxy = KubeProxy::start(stage, mode, pod)?;
            self.wait_for(mode, pod)?;
            drop(proxy);
        }
        step.begin(1, &format!("{services} Services: nearhop fills its maps"));
        let agent = self.node.start_agent(self.agent_command(stage)?);
        agent.wait_ready().or_else(|_| agent.wait_ready())?;
        agent.kill()
    }

    fn agent_command(&self, stage: &Stage) -> anyhow::Result<std::process::Command> {
        let mut command = self.node.host().place().command(&agent::program()?, &[])?;
        command.args(["run", "--node", NODE]);
        command.arg("--kubeconfig").arg(stage.cluster.kubeconfig());
        command.arg("--cgroup").arg(self.node.cgroup());
        command.arg("--pin-path").arg(self.node.pin_path());
        Ok(command)
    }

    /// A first sync is written at once, so the last Service answers when all do.
    fn wait_for(&self, mode: &str, pod: &Pod) -> anyhow::Result<()> {
        let last = *self.services.last().context("there is a Service")?;
        let what = format!("kube-proxy's {mode} rules to lead {last} somewhere");
        wait::until(&what, PATIENCE, || pod.tcp(last).map(drop))
    }

    /// Each way leads to a server, and a client without a proxy reaches no Service: else the figures
    /// would be of something else.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        for way in Way::ALL {
            let tally = self.load(way, self.targets(way).len())?;
            ensure!(
                tally.errors.is_empty(),
                "{}: {:?}",
                way.text(),
                tally.errors
            );
        }
        let last = self.services[self.services.len() - 1];
        let unserved = time(&self.plain, vec![last], 1);
        ensure!(
            unserved.is_err(),
            "a client without a proxy reaches the Service {last}"
        );
        Ok(())
    }

    fn load(&self, way: Way, count: usize) -> anyhow::Result<Tally> {
        let mut total = Tally::default();
        for to in self.targets(way).iter().take(count) {
            let target = Target {
                to: *to,
                serve: Serve::Discard,
            };
            let tally = match way {
                Way::Nftables => self.nftables.load(target.serve, target.to, 1),
                Way::Iptables => self.iptables.load(target.serve, target.to, 1),
                Way::Direct => once(&self.plain, target)?,
                Way::Miss | Way::Nearhop => once(&self.near, target)?,
            };
            total.merge(tally);
        }
        Ok(total)
    }

    /// So many connects by one way.
    pub(crate) fn time(&self, way: Way, count: u32) -> anyhow::Result<Vec<Timed>> {
        let to = self.targets(way).to_vec();
        match way {
            Way::Direct => time(&self.plain, to, count),
            Way::Miss | Way::Nearhop => time(&self.near, to, count),
            Way::Nftables => self.nftables.time_connects(to, count).map_err(failed),
            Way::Iptables => self.iptables.time_connects(to, count).map_err(failed),
        }
    }

    fn targets(&self, way: Way) -> &[SocketAddr] {
        match way {
            Way::Direct | Way::Miss => &self.direct,
            Way::Nearhop | Way::Nftables | Way::Iptables => &self.services,
        }
    }
}

fn once(worker: &Worker, target: Target) -> anyhow::Result<Tally> {
    let tally = worker.ask(&Request::Load { target, count: 1 })?;
    tally.map_err(|errno| anyhow!("a load is refused: {errno}"))
}

fn time(worker: &Worker, to: Vec<SocketAddr>, count: u32) -> anyhow::Result<Vec<Timed>> {
    let timed = worker.ask(&Request::TimeConnects { to, count })?;
    timed.map_err(failed)
}

fn failed(errno: impl Display) -> anyhow::Error {
    anyhow!("a connect failed: {errno}")
}

/// Evenly over all Services, the first and the last among them.
fn targets(services: u32) -> Vec<SocketAddr> {
    let count = services.min(TARGETS);
    let number = |at: u32| match count {
        1 => 0,
        _ => at * (services - 1) / (count - 1),
    };
    let at = (0..count).map(|at| (IpAddr::from(fill::cluster_ip(number(at))), fill::PORT).into());
    at.collect()
}

/// The real one, in a pod's network namespace.
struct KubeProxy(Child);

impl KubeProxy {
    fn start(stage: &Stage, mode: &str, pod: &Pod) -> anyhow::Result<Self> {
        let path = stage.lab.dir().join(format!("kube-proxy-{mode}.log"));
        let log = File::create(&path).with_context(|| path.display().to_string())?;
        let mut command = pod.place().command(&control_plane::program()?, &[])?;
        command
            .args(["kube-proxy", "--hostname-override", NODE])
            .arg("--kubeconfig")
            .arg(stage.cluster.kubeconfig())
            .args(["--proxy-mode", mode])
            // Those of the host's own namespace, which are not the benchmark's to set.
            .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
            .args([
                "--conntrack-tcp-timeout-established=0",
                "--conntrack-tcp-timeout-close-wait=0",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self(command.spawn().context("start kube-proxy")?))
    }
}

impl Drop for KubeProxy {
    /// Its rules stay.
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        debug_assert!(ended.is_ok(), "{ended:?}");
    }
}
