//! Endpoints change while clients connect as fast as they can: not one of them may notice.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{net::SocketAddr, sync::Arc};

use lb_tests::{
    Agent, Lab, Objects, Pod, Serve,
    objects::node,
    protocol::Tally,
    scene::{self, Scene, TCP_PORT, web, web_slice},
    wait,
};
use rustix::io::Errno;

const CLIENTS: u32 = 4;

/// How many answers the load has before and after each change.
const SOME: u32 = 500;

#[test]
fn hints_take_effect_under_load_without_a_failure() {
    let zones = Zones::new();
    let servers = zones.servers.each_ref().map(|pod| pod.at(TCP_PORT));
    let load = zones.client.start_load(Serve::Tcp, scene::TCP, CLIENTS);
    more_answers(&zones.servers);

    zones
        .agent
        .programs(|| zones.objects.apply(zones.slice().hinted()));
    let far_at_change = zones.far().answered(Serve::Tcp, TCP_PORT);
    more_answers(&zones.servers);
    let far_later = zones.far().answered(Serve::Tcp, TCP_PORT);
    let tally = load.finish(0);

    no_failures(&tally);
    assert!(
        servers.iter().all(|server| tally.of(*server) > 0),
        "{tally:?}"
    );
    // A connect that had chosen before the change may be answered after it.
    assert!(
        far_later - far_at_change <= CLIENTS,
        "{far_at_change} answers became {far_later}"
    );
    let hinted = zones.client.load(Serve::Tcp, scene::TCP, 200);
    assert_eq!(
        hinted.of(zones.far().at(TCP_PORT)),
        0,
        "{:?}",
        hinted.answers
    );
}

#[test]
fn a_removed_endpoint_gets_no_new_connects_and_none_fails() {
    let scene = Scene::new(3);
    let (gone, rest) = scene.backends.split_first().unwrap();
    let load = scene.client.start_load(Serve::Tcp, scene::TCP, CLIENTS);
    more_answers(&scene.backends);

    scene
        .agent
        .programs(|| scene.objects.apply(web_slice(rest)));
    let at_change = gone.answered(Serve::Tcp, TCP_PORT);
    more_answers(&scene.backends);
    let later = gone.answered(Serve::Tcp, TCP_PORT);

    no_failures(&load.finish(0));
    assert!(
        later - at_change <= CLIENTS,
        "{at_change} answers became {later}"
    );
}

#[test]
fn many_replacements_of_the_whole_list_lose_no_connect() {
    let scene = Scene::new(4);
    let (left, right) = scene.backends.split_at(2);
    let load = scene.client.start_load(Serve::Tcp, scene::TCP, CLIENTS);

    for _ in 0..10 {
        for half in [left, right] {
            scene
                .agent
                .programs(|| scene.objects.apply(web_slice(half)));
        }
    }

    no_failures(&load.finish(SOME));
}

#[test]
fn an_established_connection_outlives_its_endpoint() {
    let scene = Scene::new(1);
    let socket = scene.client.tcp(scene::TCP).unwrap();

    scene.agent.programs(|| scene.objects.apply(web_slice(&[])));

    assert_eq!(socket.ask("still there?").unwrap().server, server(&scene));
    assert_eq!(socket.peer_name().unwrap().to_string(), scene::TCP);
}

#[test]
fn the_address_of_a_deleted_service_is_known_to_be_nobodys() {
    let scene = Scene::new(1);

    scene.agent.programs(|| scene.objects.delete(web()));

    assert_eq!(scene.client.tcp(scene::TCP).unwrap_err(), Errno::INPROGRESS);
    assert_eq!(scene.node.cli().counter("drop-unallocated").unwrap(), 1);
}

fn server(scene: &Scene) -> SocketAddr {
    scene.backends[0].at(TCP_PORT)
}

/// Two servers in the client's zone, one in another.
struct Zones {
    agent: Arc<Agent>,
    objects: Objects,
    servers: [Pod; 3],
    client: Pod,
}

impl Zones {
    fn new() -> Self {
        let lab = Lab::new();
        let (near, elsewhere) = (lab.node("node-a"), lab.node("node-c"));
        let servers = [
            near.pod("10.0.1.1"),
            near.pod("10.0.1.2"),
            elsewhere.pod("10.0.3.1"),
        ];
        for server in &servers {
            server.serve(Serve::Tcp, TCP_PORT);
        }
        let (client, objects) = (near.pod("10.0.1.200"), lab.objects());
        objects.apply(node("node-a", "zone-a"));
        objects.apply(web());
        objects.apply(slice_of(&servers));
        let agent = near.agent(&objects);
        Self {
            agent,
            objects,
            servers,
            client,
        }
    }

    fn slice(&self) -> lb_tests::objects::Slice {
        slice_of(&self.servers)
    }

    fn far(&self) -> &Pod {
        &self.servers[2]
    }
}

fn slice_of(servers: &[Pod; 3]) -> lb_tests::objects::Slice {
    let [near1, near2, far] = servers;
    lb_tests::objects::slice("default/web", "IPv4")
        .tcp("http", TCP_PORT)
        .endpoint(near1.addr(), "node-a", "zone-a")
        .endpoint(near2.addr(), "node-a", "zone-a")
        .endpoint(far.addr(), "node-c", "zone-c")
}

/// Waits until the load has got a good number of further answers.
fn more_answers(servers: &[Pod]) {
    let answered = || {
        servers
            .iter()
            .map(|pod| pod.answered(Serve::Tcp, TCP_PORT))
            .sum::<u32>()
    };
    let before = answered();
    wait::until("more answers", wait::PATIENCE, || {
        match answered() - before {
            more if more >= SOME => Ok(()),
            more => Err(format!("{more} more answers")),
        }
    })
    .unwrap();
}

fn no_failures(tally: &Tally) {
    assert!(
        tally.errors.is_empty(),
        "{:?} beside {} answers",
        tally.errors,
        tally.answered()
    );
    assert!(tally.answered() >= SOME);
}
