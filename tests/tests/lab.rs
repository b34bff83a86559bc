//! The lab itself, without any agent: what the other tests build on must hold first.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{fs, panic, path::Path};

use lb_tests::{Lab, Serve, protocol::Family, sweep, traffic::mapped, wait};
use rustix::io::Errno;

#[test]
fn pods_of_two_nodes_reach_each_other_by_their_own_addresses() {
    let lab = Lab::new();
    let server = lab.node("a").pod("192.168.2.83");
    let client = lab.node("b").pod("10.0.1.9");
    server.serve(Serve::Tcp, 8080);
    server.serve(Serve::Udp, 8080);

    for to in [server.at(8080), server.at6(8080), mapped(server.at(8080))] {
        let tcp = client.tcp(to).unwrap();
        let udp = client.udp(to).unwrap();
        for socket in [&tcp, &udp] {
            let answer = socket.ask("hi").unwrap();
            assert_eq!(answer.text.trim_end(), "hi");
            assert_eq!(answer.client.port(), socket.local_name().unwrap().port());
            assert_eq!(socket.peer_name().unwrap(), to);
        }
    }

    assert_eq!(server.answered(Serve::Tcp, 8080), 3);
    assert_eq!(server.answered(Serve::Udp, 8080), 3);
}

#[test]
fn an_unconnected_socket_reports_who_answered() {
    let lab = Lab::new();
    let node = lab.node("a");
    let (server, client) = (node.pod("10.0.1.5"), node.pod("10.0.1.9"));
    server.serve(Serve::Udp, 53);

    let socket = client.udp_socket(Family::Inet);
    socket.send_to(server.at(53), "who").unwrap();
    let received = socket.receive().unwrap();

    assert_eq!(received.from, Some(server.at(53)));
    assert_eq!(received.answer.client.ip(), client.addr());
}

#[test]
fn the_host_and_its_pods_reach_each_other() {
    let lab = Lab::new();
    let node = lab.node("a");
    let pod = node.pod("10.0.1.5");
    pod.serve(Serve::Http, 80);

    let tally = node.host().load(Serve::Http, pod.at(80), 5);

    assert_eq!(tally.of(pod.at(80)), 5, "{tally:?}");
}

#[test]
fn a_closed_port_is_refused_and_an_address_of_nobody_is_silent() {
    let lab = Lab::new();
    let node = lab.node("a");
    let (other, client) = (node.pod("10.0.1.5"), node.pod("10.0.1.9"));

    let refused = client.tcp(other.at(8080)).unwrap_err();
    let silent = client.tcp("10.100.200.50:80").unwrap_err();
    let silent6 = client.tcp("[fd00:10:96::50]:80").unwrap_err();

    assert_eq!(refused, Errno::CONNREFUSED);
    assert_eq!(silent, Errno::INPROGRESS);
    assert_eq!(silent6, Errno::INPROGRESS);
}

#[test]
fn a_load_counts_answers_and_errors() {
    let lab = Lab::new();
    let node = lab.node("a");
    let (server, client) = (node.pod("10.0.1.5"), node.pod("10.0.1.9"));
    server.serve(Serve::Tcp, 8080);

    let answered = client.load(Serve::Tcp, server.at(8080), 100);
    let refused = client.load(Serve::Tcp, server.at(8081), 7);

    assert_eq!(answered.of(server.at(8080)), 100, "{answered:?}");
    assert_eq!(answered.order.len(), 100);
    assert_eq!(refused.errors.values().sum::<u32>(), 7, "{refused:?}");
    assert_eq!(refused.answered(), 0);
}

#[test]
fn a_load_goes_on_until_it_is_finished() {
    let lab = Lab::new();
    let node = lab.node("a");
    let (server, client) = (node.pod("10.0.1.5"), node.pod("10.0.1.9"));
    server.serve(Serve::Tcp, 8080);

    let load = client.start_load(Serve::Tcp, server.at(8080), 3);
    wait::until("some answers", wait::PATIENCE, || {
        let answered = server.answered(Serve::Tcp, 8080);
        if answered > 50 { Ok(()) } else { Err(answered) }
    })
    .unwrap();
    let tally = load.finish(1_000);

    assert!(tally.of(server.at(8080)) >= 1_000, "{tally:?}");
    assert!(tally.errors.is_empty(), "{tally:?}");
}

#[test]
fn a_lab_is_undone_also_when_its_test_panics() {
    let lab = Lab::new();
    let name = lab.name().to_owned();
    let cgroup = lab.node("a").cgroup().to_owned();
    assert!(exists(&name, &cgroup));

    let panicked = panic::catch_unwind(move || {
        let pod = lab.node("b").pod("10.0.1.5");
        pod.serve(Serve::Tcp, 8080);
        panic!("as a failed test does");
    });

    assert!(panicked.is_err());
    assert!(!exists(&name, &cgroup), "{name} is still there");
}

#[test]
fn the_sweep_removes_a_lab_that_nobody_undid() {
    let lab = Lab::new();
    let name = lab.name().to_owned();
    let node = lab.node("a");
    let pod = node.pod("10.0.1.5");
    pod.serve(Serve::Tcp, 8080);
    let cgroup = node.cgroup().to_owned();
    // As kill -9 does: nothing is dropped, and the processes of the lab are still there.
    std::mem::forget((lab, node, pod));

    let labs = sweep::labs().unwrap();
    let found = labs.iter().find(|found| found.lab == name).unwrap();
    let errors = found.remove();

    assert!(found.alive(), "{found:?}");
    assert_eq!(found.namespaces.len(), 3);
    assert!(errors.is_empty(), "{errors:?}");
    assert!(!exists(&name, &cgroup), "{name} is still there");
}

fn exists(lab: &str, cgroup: &Path) -> bool {
    let names = fs::read_dir("/run/netns")
        .unwrap()
        .chain(fs::read_dir("/run").unwrap());
    let left = |name: &str| name == lab || name.starts_with(&format!("{lab}-"));
    cgroup.exists()
        || names
            .flatten()
            .any(|entry| left(&entry.file_name().to_string_lossy()))
}
