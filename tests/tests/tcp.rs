//! TCP to a ClusterIP: translated at connect(2), unseen by the application.

use lb_tests::{
    Serve,
    scene::{self, Scene, TCP_PORT},
};

#[test]
fn a_connect_reaches_a_backend_over_v4_v6_and_v4_mapped() {
    let scene = Scene::new(2);

    for to in scene::tcp_addresses() {
        let answer = scene.client.tcp(to).unwrap().ask("hi").unwrap();

        assert!(scene.has_backend(answer.server), "{to}: {answer:?}");
        assert_eq!(answer.server.port(), TCP_PORT, "{to}");
    }
}

#[test]
fn getpeername_shows_the_address_that_was_asked_for() {
    let scene = Scene::new(1);

    for to in scene::tcp_addresses() {
        assert_eq!(scene.client.tcp(to).unwrap().peer_name().unwrap(), to);
    }
}

#[test]
fn the_backend_sees_the_clients_own_address() {
    let scene = Scene::new(1);

    let socket = scene.client.tcp(scene::TCP).unwrap();
    let answer = socket.ask("hi").unwrap();

    assert_eq!(answer.client, socket.local_name().unwrap());
    assert_eq!(answer.client.ip(), scene.client.addr());
}

#[test]
fn a_connect_to_no_service_is_left_alone_and_counted() {
    let scene = Scene::new(1);
    let other = scene.node.pod("10.0.2.1");
    other.serve(Serve::Tcp, 80);
    let before = scene.node.cli().counter("pass-not-a-service").unwrap();

    let socket = scene.client.tcp(other.at(80)).unwrap();

    assert_eq!(socket.peer_name().unwrap(), other.at(80));
    assert_eq!(socket.ask("hi").unwrap().server, other.at(80));
    assert_eq!(
        scene.node.cli().counter("pass-not-a-service").unwrap(),
        before + 1
    );
}

#[test]
fn processes_of_the_node_itself_are_served() {
    let scene = Scene::new(1);

    let answer = scene
        .node
        .host()
        .tcp(scene::TCP)
        .unwrap()
        .ask("hi")
        .unwrap();

    assert_eq!(answer.server, scene.backends[0].at(TCP_PORT));
}

#[test]
fn a_pod_that_is_its_own_backend_reaches_itself() {
    let scene = Scene::new(1);
    let backend = &scene.backends[0];

    let answer = backend.tcp(scene::TCP).unwrap().ask("hi").unwrap();

    assert_eq!(answer.server, backend.at(TCP_PORT));
}

#[test]
fn another_node_without_an_agent_is_not_served() {
    let scene = Scene::new(1);
    let stranger = scene.lab.node("node-b").pod("10.0.3.1");

    let error = stranger.tcp(scene::TCP).unwrap_err();

    assert_eq!(
        error,
        rustix::io::Errno::INPROGRESS,
        "the connect is not to be answered"
    );
}
