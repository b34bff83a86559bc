//! What is counted of each backend, with real sockets: every connection once, each ended once, and never
//! at the expense of another backend.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::net::SocketAddr;

use lb_agent::{
    datapath::{BpfMaps, Pins, store::MapStore},
    model,
    tables::dump::{self, ServiceView},
};
use lb_common::tables::BackendIndex;
use lb_tests::{
    Serve,
    agent::{self, Counted},
    objects::{service, slice},
    protocol::{Abuse, Family},
    scene::{self, NODE, Scene, TCP_PORT, UDP_PORT, ZONE},
    traffic::{address, mapped},
    wait,
};
use rustix::io::Errno;

const HTTP: &str = "default/web:http";
const DNS: &str = "default/web:dns";
const OTHER_HTTP: &str = "default/other:http";
const OTHER_DNS: &str = "default/other:dns";

/// A Service whose only endpoint refuses, and one whose only endpoint does not answer.
const REFUSING: &str = "10.96.0.20:80";
const SILENT: &str = "10.96.0.21:80";

#[test]
fn a_tcp_connection_is_active_until_it_is_closed_and_then_has_bytes() {
    let scene = Scene::new(1);

    for (to, family, connections) in [
        (address(scene::TCP), "IPv4", 1),
        (address(scene::TCP6), "IPv6", 1),
        (mapped(scene::TCP), "IPv4", 2),
    ] {
        let before = counted(&scene, HTTP, family);
        let socket = scene.client.tcp(to).unwrap();
        let answer = socket.ask("hi").unwrap();

        let open = counted(&scene, HTTP, family);
        assert_eq!((open.connections, open.active), (connections, 1), "{to}");
        assert_eq!(open.bytes_out, before.bytes_out, "{to}: not before the end");

        drop(socket);
        let closed = settled(&scene, HTTP, family);
        assert_eq!((closed.connections, closed.failures), (connections, 0));
        // TCP numbers the SYN and each FIN as a byte.
        let sent = "hi\n".len() as u64;
        let received = serde_json::to_string(&answer).unwrap().len() as u64 + 1;
        let (out, in_) = (
            closed.bytes_out - before.bytes_out,
            closed.bytes_in - before.bytes_in,
        );
        assert!((sent..=sent + 2).contains(&out), "{to}: {out} for {sent}");
        assert!(
            (received..=received + 1).contains(&in_),
            "{to}: {in_} for {received}"
        );
    }
}

#[test]
fn each_backend_has_its_own_figures_and_the_service_their_sum() {
    let scene = Scene::new(3);

    let tally = scene.client.load(Serve::Tcp, scene::TCP, 60);

    let service = settled(&scene, HTTP, "IPv4");
    assert_eq!(service.connections, 60);
    assert_eq!(service.backends.len(), 3);
    for backend in &service.backends {
        let at: SocketAddr = backend.address.as_deref().unwrap().parse().unwrap();
        assert_eq!(backend.connections, u64::from(tally.of(at)), "{at}");
    }
}

#[test]
fn a_connected_udp_socket_is_active_until_it_is_closed() {
    let scene = Scene::new(1);

    for to in scene::udp_addresses() {
        let family = if to == address(scene::UDP6) {
            "IPv6"
        } else {
            "IPv4"
        };
        let before = counted(&scene, DNS, family).connections;
        let socket = scene.client.udp(to).unwrap();
        socket.ask("hi").unwrap();
        let open = counted(&scene, DNS, family);
        drop(socket);

        assert_eq!((open.connections, open.active), (before + 1, 1), "{to}");
        assert_eq!(settled(&scene, DNS, family).connections, before + 1, "{to}");
    }
}

#[test]
fn an_unconnected_udp_socket_counts_once_for_each_service_it_asks() {
    let scene = Scene::new(1);
    let socket = scene.client.udp_socket(Family::Inet);

    for _ in 0..3 {
        socket.send_to(scene::UDP, "hi").unwrap();
        socket.receive().unwrap();
    }
    let open = counted(&scene, DNS, "IPv4");
    drop(socket);

    assert_eq!((open.connections, open.active), (1, 1));
    assert_eq!(settled(&scene, DNS, "IPv4").connections, 1);
}

#[test]
fn a_udp_socket_that_connects_to_another_service_leaves_the_first() {
    let scene = Scene::new(1);
    with_other(&scene);
    let socket = scene.client.udp(scene::UDP).unwrap();

    socket.connect("10.96.0.30:53").unwrap();

    let (first, second) = (
        counted(&scene, DNS, "IPv4"),
        counted(&scene, OTHER_DNS, "IPv4"),
    );
    assert_eq!((first.connections, first.active), (1, 0));
    assert_eq!((second.connections, second.active), (1, 1));
}

#[test]
fn a_fifth_service_on_one_socket_ends_what_it_replaces() {
    let scene = Scene::new(1);
    let numbers = 40..45;
    for number in numbers.clone() {
        numbered_dns(&scene, number);
    }
    let socket = scene.client.udp_socket(Family::Inet);
    for number in numbers.clone() {
        socket
            .send_to(format!("10.96.0.{number}:53"), "hi")
            .unwrap();
    }

    let counted = |number: u8| counted(&scene, &format!("default/dns-{number}:dns"), "IPv4");
    let active: u64 = numbers.clone().map(|number| counted(number).active).sum();
    let connections: u64 = numbers.map(|number| counted(number).connections).sum();
    assert_eq!((connections, active), (5, 4));
}

#[test]
fn a_connect_that_is_refused_by_the_backend_is_a_failure() {
    let scene = Scene::new(1);
    with_bad_services(&scene);

    let refused = scene.client.tcp(REFUSING).unwrap_err();

    assert_eq!(refused, Errno::CONNREFUSED);
    let figures = settled(&scene, "default/refusing:http", "IPv4");
    assert_eq!((figures.connections, figures.failures), (1, 1));
    assert_eq!((figures.bytes_out, figures.bytes_in), (0, 0));
}

#[test]
fn a_connect_that_nobody_answers_is_active_until_it_is_given_up_and_then_a_failure() {
    let scene = Scene::new(1);
    with_bad_services(&scene);
    let socket = scene.client.tcp_socket(Family::Inet);

    assert_eq!(socket.connect(SILENT), Err(Errno::INPROGRESS));
    let waiting = counted(&scene, "default/silent:http", "IPv4");
    drop(socket);

    assert_eq!((waiting.active, waiting.failures), (1, 0));
    let figures = settled(&scene, "default/silent:http", "IPv4");
    assert_eq!((figures.connections, figures.failures), (1, 1));
}

#[test]
fn a_socket_that_connects_again_is_counted_where_it_goes() {
    let scene = Scene::new(1);
    with_bad_services(&scene);
    let elsewhere = scene.node.pod("10.0.2.1");
    elsewhere.serve(Serve::Tcp, TCP_PORT);
    let socket = scene.client.tcp_socket(Family::Inet);

    assert_eq!(socket.connect(REFUSING), Err(Errno::CONNREFUSED));
    socket.connect(scene::TCP).unwrap();
    socket.disconnect().unwrap();
    socket.connect(elsewhere.at(TCP_PORT)).unwrap();

    let refusing = counted(&scene, "default/refusing:http", "IPv4");
    let web = counted(&scene, HTTP, "IPv4");
    assert_eq!(
        (refusing.connections, refusing.failures, refusing.active),
        (1, 1, 0)
    );
    assert_eq!((web.connections, web.failures, web.active), (1, 0, 0));
}

#[test]
fn what_asks_for_no_service_is_not_counted() {
    let scene = Scene::new(1);

    let direct = scene.client.tcp(scene.backends[0].at(TCP_PORT)).unwrap();
    direct.ask("hi").unwrap();
    let unserved = scene.client.tcp("10.96.0.10:81").unwrap_err();

    assert_eq!(unserved, Errno::CONNREFUSED);
    for (port, family) in [(HTTP, "IPv4"), (HTTP, "IPv6"), (DNS, "IPv4")] {
        let figures = counted(&scene, port, family);
        assert_eq!((figures.connections, figures.active), (0, 0), "{port}");
    }
}

#[test]
fn a_killed_client_leaves_nothing_active() {
    let scene = Scene::new(2);
    let client = scene.node.pod("10.0.1.201");
    let tcp: Vec<_> = (0..5).map(|_| client.tcp(scene::TCP).unwrap()).collect();
    let udp = client.udp(scene::UDP).unwrap();
    let unconnected = client.udp_socket(Family::Inet);
    unconnected.send_to(scene::UDP, "hi").unwrap();
    assert_eq!(counted(&scene, HTTP, "IPv4").active, 5);
    assert_eq!(counted(&scene, DNS, "IPv4").active, 2);

    client.kill();

    assert_eq!(settled(&scene, HTTP, "IPv4").connections, 5);
    assert_eq!(settled(&scene, DNS, "IPv4").connections, 2);
    drop((tcp, udp, unconnected));
}

#[test]
fn counts_go_on_over_a_restart_of_the_agent() {
    let scene = Scene::new(1);
    drop(scene.client.tcp(scene::TCP).unwrap());
    let open = scene.client.tcp(scene::TCP).unwrap();
    scene.agent.kill().unwrap();
    let meanwhile = scene.client.tcp(scene::TCP).unwrap();
    let _agent = scene.node.agent(&scene.objects);

    let after = counted(&scene, HTTP, "IPv4");
    assert_eq!((after.connections, after.active), (3, 2));
    drop((open, meanwhile));
    assert_eq!(settled(&scene, HTTP, "IPv4").connections, 3);
}

#[test]
fn counts_go_along_when_maps_grow() {
    let scene = Scene::new(1);
    let _ = scene.client.load(Serve::Tcp, scene::TCP, 5);
    let open = scene.client.tcp(scene::TCP).unwrap();
    let udp = scene.client.udp(scene::UDP).unwrap();
    scene.agent.kill().unwrap();

    for capacity in ["1000", "2000"] {
        let flags = ["--capacity-backends", capacity];
        let agent = scene.node.agent_with(&scene.objects, &flags);
        let (http, dns) = (counted(&scene, HTTP, "IPv4"), counted(&scene, DNS, "IPv4"));
        assert_eq!((http.connections, http.active), (6, 1), "{capacity}");
        assert_eq!((dns.connections, dns.active), (1, 1), "{capacity}");
        assert!(http.bytes_in > 0, "{capacity}");
        agent.kill().unwrap();
    }

    drop((open, udp));
    assert_eq!(settled(&scene, HTTP, "IPv4").connections, 6);
    assert_eq!(settled(&scene, DNS, "IPv4").connections, 1);
}

#[test]
fn a_cell_that_passes_to_another_service_begins_at_zero_and_is_not_charged_for_the_first() {
    let scene = Scene::new(1);
    let _ = scene.client.load(Serve::Tcp, scene::TCP, 3);
    let outlive = (
        scene.client.tcp(scene::TCP).unwrap(),
        scene.client.udp(scene::UDP).unwrap(),
    );
    let cells = [HTTP, DNS].map(|port| cell_of(&scene, port));

    scene
        .agent
        .programs(|| scene.objects.apply(scene::web_slice(&[])));
    with_other(&scene);
    let open = scene.client.tcp("10.96.0.30:80").unwrap();
    drop(outlive);
    let _ = scene.client.load(Serve::Tcp, "10.96.0.30:80", 3);

    let passed = [OTHER_HTTP, OTHER_DNS].map(|port| cell_of(&scene, port));
    assert_eq!(passed, cells, "the cells are other's");
    let http = counted(&scene, OTHER_HTTP, "IPv4");
    assert_eq!((http.connections, http.active), (4, 1));
    assert_eq!(counted(&scene, OTHER_DNS, "IPv4"), {
        let none = Counted::default();
        let backend = Counted {
            address: Some(scene.backends[0].at(UDP_PORT).to_string()),
            ..none.clone()
        };
        Counted {
            backends: vec![backend],
            ..none
        }
    });
    drop(open);
}

#[test]
fn a_service_keeps_the_figures_of_backends_that_went() {
    let scene = Scene::new(2);
    let _ = scene.client.load(Serve::Tcp, scene::TCP, 40);
    let before = settled(&scene, HTTP, "IPv4");

    scene.agent.programs(|| {
        scene.objects.apply(scene::web_slice(&scene.backends[..1]));
    });
    let one_left = counted(&scene, HTTP, "IPv4");
    scene
        .agent
        .programs(|| scene.objects.apply(scene::web_slice(&scene.backends)));
    let back = counted(&scene, HTTP, "IPv4");

    assert_eq!(one_left.backends.len(), 1);
    for after in [one_left, back] {
        assert_eq!(after.connections, before.connections);
        assert_eq!(after.bytes_in, before.bytes_in);
    }
}

/// Sockets shared by threads, calls in random order, backends that come and go meanwhile: in the end
/// nothing is active, and at no time anything below zero.
#[test]
fn whatever_clients_do_nothing_stays_active_and_nothing_falls_below_zero() {
    let scene = Scene::new(3);
    with_bad_services(&scene);
    with_other(&scene);
    let abuse = Abuse {
        targets: [scene::tcp_addresses(), scene::udp_addresses()]
            .concat()
            .into_iter()
            .chain([REFUSING, SILENT, "10.96.0.30:53", "10.96.0.10:99"].map(address))
            .chain([
                scene.backends[0].at(TCP_PORT),
                scene.backends[0].at(UDP_PORT),
            ])
            .collect(),
        threads: 4,
        calls: 20_000,
        seed: 7,
    };

    std::thread::scope(|scope| {
        let done = scope.spawn(|| scene.client.abuse(abuse));
        let mut fewer = false;
        while !done.is_finished() {
            fewer = !fewer;
            let backends = &scene.backends[usize::from(fewer)..];
            scene
                .agent
                .programs(|| scene.objects.apply(scene::web_slice(backends)));
            for port in ALL {
                let figures = counted(&scene, port.0, port.1);
                assert!(figures.active < 1000, "{port:?}: {figures:?}");
            }
        }
    });

    let all: Vec<Counted> = ALL
        .iter()
        .map(|(port, family)| settled(&scene, port, family))
        .collect();
    for (port, figures) in ALL.iter().zip(&all) {
        println!("{port:?}: {figures:?}");
        assert!(figures.connections > 100, "{port:?}: {figures:?}");
        assert!(figures.failures <= figures.connections, "{figures:?}");
    }
    assert!(all[4].failures > 0 && all[5].failures == all[5].connections);
}

const ALL: [(&str, &str); 7] = [
    (HTTP, "IPv4"),
    (HTTP, "IPv6"),
    (DNS, "IPv4"),
    (DNS, "IPv6"),
    ("default/refusing:http", "IPv4"),
    ("default/silent:http", "IPv4"),
    (OTHER_DNS, "IPv4"),
];

#[test]
fn prometheus_gets_the_figures_of_services_that_were_used() {
    let scene = Scene::new(1);
    let _ = scene.client.load(Serve::Tcp, scene::TCP, 3);
    let _ = scene.client.load(Serve::Tcp, scene::TCP6, 2);
    let families = ["IPv4", "IPv6"].map(|family| settled(&scene, HTTP, family).bytes_in);
    let received = u32::try_from(families.iter().sum::<u64>()).unwrap();

    let host = scene.node.host();
    let metrics = host.get(address(METRICS), "/metrics").unwrap();

    let of = |name: &str, port: &str| {
        let labels = format!(r#"{{namespace="default",service="web",port="{port}"}}"#);
        metrics.metric(&format!("nearhop_service_{name}{labels}"))
    };
    assert_eq!(of("connections_total", "http"), Some(5.0), "{metrics:?}");
    assert_eq!(of("failures_total", "http"), Some(0.0));
    assert_eq!(of("active_connections", "http"), Some(0.0));
    let received = Some(f64::from(received));
    assert_eq!(of("received_bytes_total", "http"), received);
    assert_eq!(of("connections_total", "dns"), None, "nobody asked it");
}

/// Where the agent serves metrics, for its own node.
const METRICS: &str = "127.0.0.1:10249";

#[test]
fn the_table_has_a_line_for_each_service_and_backend_also_without_an_agent() {
    let scene = Scene::new(1);
    let _ = scene.client.load(Serve::Tcp, scene::TCP, 3);
    settled(&scene, HTTP, "IPv4");
    scene.agent.kill().unwrap();

    let output = scene.node.cli().on_pins(&["services", "--stats"]);

    let table = agent::text(&output.stdout);
    let words = |start: &str| {
        let line = table
            .lines()
            .find(|line| line.trim_start().starts_with(start));
        let line = line.unwrap_or_else(|| panic!("no line {start} in\n{table}"));
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(words("default/web:http TCP IPv4")[3..6], ["3", "0", "0"]);
    let backend = words("→ 10.0.1.1:8080");
    assert_eq!(backend[2..4], ["node,", ZONE]);
    assert_eq!(backend[4..7], ["3", "0", "0"]);
}

fn counted(scene: &Scene, port: &str, family: &str) -> Counted {
    scene.node.cli().counted(port, family).unwrap()
}

/// The same once nothing is active: TCP says good-bye after the close.
fn settled(scene: &Scene, port: &str, family: &str) -> Counted {
    let what = format!("no connection to {port} over {family} to be active");
    let figures = || match counted(scene, port, family) {
        figures if figures.active == 0 => Ok(figures),
        figures => Err(format!("{figures:?}")),
    };
    wait::until(&what, wait::PATIENCE, figures).unwrap()
}

fn with_bad_services(scene: &Scene) {
    let nobody = "10.0.9.9";
    let refuses = scene.backends[0].addr().to_string();
    for (name, ip, endpoint, port) in [
        ("default/refusing", "10.96.0.20", refuses.as_str(), 9),
        ("default/silent", "10.96.0.21", nobody, TCP_PORT),
    ] {
        let slice = slice(name, "IPv4").tcp("http", port);
        let objects = [
            service(name, &[ip]).tcp("http", 80).into(),
            slice.endpoint(endpoint, NODE, ZONE).into(),
        ];
        add(scene, name, objects);
    }
}

/// `default/other` at 10.96.0.30, with ports as those of `default/web`.
fn with_other(scene: &Scene) {
    let name = "default/other";
    let slice = slice(name, "IPv4")
        .tcp("http", TCP_PORT)
        .udp("dns", UDP_PORT);
    let service = service(name, &["10.96.0.30"])
        .tcp("http", 80)
        .udp("dns", 53);
    let slice = slice.endpoint(scene.backends[0].addr(), NODE, ZONE);
    add(scene, name, [service.into(), slice.into()]);
}

fn numbered_dns(scene: &Scene, number: u8) {
    let (name, ip) = (format!("default/dns-{number}"), format!("10.96.0.{number}"));
    let slice = slice(&name, "IPv4").udp("dns", UDP_PORT);
    let objects = [
        service(&name, &[&ip]).udp("dns", 53).into(),
        slice.endpoint(scene.backends[0].addr(), NODE, ZONE).into(),
    ];
    add(scene, &name, objects);
}

fn add(scene: &Scene, name: &str, objects: [serde_json::Value; 2]) {
    let file = format!("{}.json", name.replace('/', "-"));
    scene
        .agent
        .programs(|| scene.objects.apply_together(&file, objects));
}

/// The cell of the Service port's only IPv4 backend.
fn cell_of(scene: &Scene, port: &str) -> BackendIndex {
    let maps = BpfMaps::open_pinned(&Pins::new(scene.node.pin_path())).unwrap();
    let services = dump::services(&maps.dump().unwrap());
    let is_it = |service: &&ServiceView| {
        service.id.to_string() == port && service.id.family == model::name::Family::V4
    };
    let service = services.iter().find(is_it).unwrap();
    service.cluster.as_ref().unwrap().backends[0].index
}
