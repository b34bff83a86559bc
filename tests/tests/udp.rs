//! UDP to a ClusterIP, connected and not. Resolvers throw away an answer whose source is not the
//! address they asked, so what recvfrom shows matters as much as who answers.

use std::collections::BTreeSet;

use lb_tests::{
    Serve,
    objects::{service, slice},
    protocol::Family,
    scene::{self, NODE, Scene, UDP_PORT, ZONE},
    traffic::address,
};

#[test]
fn a_connected_socket_talks_to_one_backend_over_v4_v6_and_v4_mapped() {
    let scene = Scene::new(3);

    for to in scene::udp_addresses() {
        let socket = scene.client.udp(to).unwrap();
        let answers = (0..5).map(|_| socket.ask("hi").unwrap().server);
        let servers: BTreeSet<_> = answers.collect();

        assert_eq!(servers.len(), 1, "{to}: {servers:?}");
        assert!(
            servers.iter().all(|server| scene.has_backend(*server)),
            "{to}: {servers:?}"
        );
    }
}

#[test]
fn getpeername_of_a_connected_socket_shows_the_address_that_was_asked_for() {
    let scene = Scene::new(1);

    for to in scene::udp_addresses() {
        assert_eq!(scene.client.udp(to).unwrap().peer_name().unwrap(), to);
    }
}

#[test]
fn recvfrom_on_a_connected_socket_shows_the_service() {
    let scene = Scene::new(1);

    for to in scene::udp_addresses() {
        let socket = scene.client.udp(to).unwrap();
        socket.send("hi").unwrap();

        assert_eq!(socket.receive().unwrap().from, Some(to));
    }
}

#[test]
fn answers_to_an_unconnected_socket_come_from_the_service() {
    let scene = Scene::new(2);

    for to in scene::udp_addresses() {
        let socket = scene.client.udp_socket(Family::of(to));
        socket.send_to(to, "hi").unwrap();
        let received = socket.receive().unwrap();

        assert_eq!(received.from, Some(to));
        assert!(
            scene.has_backend(received.answer.server),
            "{to}: {received:?}"
        );
        assert_eq!(received.answer.server.port(), UDP_PORT);
    }
}

#[test]
fn datagrams_of_one_socket_stay_with_one_backend_and_sockets_spread() {
    let scene = Scene::new(3);
    let server = || {
        let socket = scene.client.udp_socket(Family::Inet);
        let servers: BTreeSet<_> = (0..5)
            .map(|_| {
                socket.send_to(scene::UDP, "hi").unwrap();
                socket.receive().unwrap().answer.server
            })
            .collect();
        assert_eq!(servers.len(), 1, "{servers:?}");
        servers.into_iter().next().unwrap()
    };

    let servers: BTreeSet<_> = (0..60).map(|_| server()).collect();

    // Sixty sockets leave one of three backends out once in 10^10 runs.
    assert_eq!(servers.len(), 3, "{servers:?}");
}

#[test]
fn a_connect_that_is_refused_leaves_the_socket_with_its_service() {
    let scene = Scene::new(1);
    let service = address(scene::UDP);

    let socket = scene.client.udp(service).unwrap();
    let refused = socket.connect("10.96.0.10:54");

    assert_eq!(refused, Err(rustix::io::Errno::CONNREFUSED));
    assert_eq!(socket.peer_name().unwrap(), service);
}

/// musl sends its query to every nameserver from one socket and takes the first answer.
#[test]
fn one_socket_asks_several_services_and_knows_who_answers() {
    let scene = Scene::new(1);
    let resolvers = [scene::UDP, "10.96.0.11:53", "10.96.0.12:53"];
    scene.agent.programs(|| add_resolvers(&scene));

    let socket = scene.client.udp_socket(Family::Inet);
    for round in 0..3 {
        for to in resolvers {
            socket.send_to(to, &format!("{round} {to}")).unwrap();
        }
        let mut answered = BTreeSet::new();
        for _ in resolvers {
            let received = socket.receive().unwrap();
            let from = received.from.unwrap();
            assert_eq!(received.answer.text, format!("{round} {from}"));
            answered.insert(from);
        }
        assert_eq!(answered, resolvers.map(address).into());
    }
}

/// Two more Services.
fn add_resolvers(scene: &Scene) {
    let mut items = Vec::new();
    for number in [1, 2] {
        let pod = scene.node.pod(&format!("10.0.4.{number}"));
        pod.serve(Serve::Udp, UDP_PORT);
        let name = format!("kube-system/dns-{number}");
        let service = service(&name, &[&format!("10.96.0.1{number}")]).udp("dns", 53);
        let slice = slice(&name, "IPv4").udp("dns", UDP_PORT);
        items.push(service.into());
        items.push(slice.endpoint(pod.addr(), NODE, ZONE).into());
    }
    scene.objects.apply_together("resolvers.json", items);
}

#[test]
fn a_socket_serves_a_service_and_a_plain_address_side_by_side() {
    let scene = Scene::new(1);
    let other = scene.node.pod("10.0.2.1");
    other.serve(Serve::Udp, 53);

    let socket = scene.client.udp_socket(Family::Inet);
    for to in [address(scene::UDP), other.at(53)] {
        socket.send_to(to, "hi").unwrap();

        assert_eq!(socket.receive().unwrap().from, Some(to));
    }
}

#[test]
fn a_socket_whose_backend_is_gone_sends_to_another() {
    let scene = Scene::new(2);
    let socket = scene.client.udp_socket(Family::Inet);
    let ask = || {
        socket.send_to(scene::UDP, "hi").unwrap();
        socket.receive().unwrap()
    };
    let first = ask().answer.server;
    let (gone, rest): (Vec<_>, Vec<_>) = scene
        .backends
        .iter()
        .cloned()
        .partition(|pod| pod.at(UDP_PORT) == first);

    scene
        .agent
        .programs(|| scene.objects.apply(scene::web_slice(&rest)));
    let second = ask();

    assert_eq!(gone.len(), 1);
    assert_eq!(second.answer.server, rest[0].at(UDP_PORT));
    assert_eq!(second.from, Some(address(scene::UDP)));
}

#[test]
fn a_socket_that_connects_anew_shows_its_new_peer() {
    let scene = Scene::new(1);
    let other = scene.node.pod("10.0.2.1");
    other.serve(Serve::Udp, 53);
    let socket = scene.client.udp(scene::UDP).unwrap();

    socket.connect(other.at(53)).unwrap();

    assert_eq!(socket.peer_name().unwrap(), other.at(53));
    assert_eq!(socket.ask("hi").unwrap().server, other.at(53));
}

#[test]
fn two_services_with_one_backend_each_answer_for_themselves() {
    let scene = Scene::new(1);
    let twin = service("default/twin", &["10.96.0.20"]).udp("dns", 53);
    let slice = slice("default/twin", "IPv4").udp("dns", UDP_PORT);
    let slice = slice.endpoint(scene.backends[0].addr(), NODE, ZONE);
    scene.agent.programs(|| {
        scene
            .objects
            .apply_together("twin.json", [twin.into(), slice.into()]);
    });

    let socket = scene.client.udp_socket(Family::Inet);
    for to in [scene::UDP, "10.96.0.20:53", scene::UDP] {
        socket.send_to(to, "hi").unwrap();

        assert_eq!(socket.receive().unwrap().from, Some(address(to)));
    }
}
