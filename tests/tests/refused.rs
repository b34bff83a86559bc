//! Who gets no backend: refused at once where nobody could answer, silence where the policy says so.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use lb_tests::{
    objects,
    protocol::Family,
    scene::{self, Scene},
    skip,
    traffic::{address, mapped},
};
use rustix::{io::Errno, system::uname};

#[test]
fn tcp_to_a_service_without_endpoints_is_refused() {
    let scene = Scene::new(0);

    for to in scene::tcp_addresses() {
        assert_eq!(
            scene.client.tcp(to).unwrap_err(),
            Errno::CONNREFUSED,
            "{to}"
        );
    }
}

#[test]
fn udp_to_a_service_without_endpoints_is_refused() {
    if older_than(6, 1) {
        return skip(
            "udp_to_a_service_without_endpoints_is_refused",
            "before 6.1 a socket hook cannot say why it denies; lab tests of those kernels run in a VM",
        );
    }
    let scene = Scene::new(0);

    for to in scene::udp_addresses() {
        let socket = scene.client.udp_socket(Family::of(to));
        assert_eq!(
            socket.send_to(to, "hi").unwrap_err(),
            Errno::CONNREFUSED,
            "sendto {to}"
        );
        assert_eq!(
            scene.client.udp(to).unwrap_err(),
            Errno::CONNREFUSED,
            "connect {to}"
        );
    }
}

#[test]
fn a_port_that_the_service_does_not_have_is_refused() {
    let scene = Scene::new(1);
    let (v4, v6) = ("10.96.0.10:81", "[fd00:10:96::10]:81");

    for to in [address(v4), address(v6), mapped(v4)] {
        assert_eq!(
            scene.client.tcp(to).unwrap_err(),
            Errno::CONNREFUSED,
            "{to}"
        );
    }
}

#[test]
fn where_the_service_range_is_not_known_a_foreign_port_is_left_alone() {
    let scene = Scene::new(1);
    scene
        .agent
        .programs(|| scene.objects.delete(objects::service_cidrs(&[])));

    assert_eq!(
        scene.client.tcp("10.96.0.10:81").unwrap_err(),
        Errno::INPROGRESS
    );
    assert_eq!(scene.node.cli().counter("pass-not-a-service").unwrap(), 1);
}

#[test]
fn a_port_of_the_other_protocol_is_refused() {
    let scene = Scene::new(1);

    assert_eq!(
        scene.client.tcp(scene::UDP).unwrap_err(),
        Errno::CONNREFUSED
    );
}

#[test]
fn refusals_are_counted_by_reason() {
    let scene = Scene::new(0);

    let _ = scene.client.tcp(scene::TCP);
    let _ = scene.client.tcp("10.96.0.10:81");

    let cli = scene.node.cli();
    assert_eq!(cli.counter("reject-no-endpoints").unwrap(), 1);
    assert_eq!(cli.counter("reject-unowned-port").unwrap(), 1);
}

#[test]
fn policy_local_without_an_endpoint_here_is_silent_and_counted() {
    let scene = Scene::new(0);
    let elsewhere = scene.lab.node("node-b").pod("10.0.3.1");
    scene.agent.programs(|| {
        scene
            .objects
            .apply(scene::web().internal_traffic_policy("Local"));
    });
    scene.agent.programs(|| {
        let slice = scene::web_slice(&[]);
        scene
            .objects
            .apply(slice.endpoint(elsewhere.addr(), "node-b", "zone-b"));
    });

    let error = scene.client.tcp(scene::TCP).unwrap_err();

    assert_eq!(
        error,
        Errno::INPROGRESS,
        "the connect is not to be answered"
    );
    assert_eq!(
        scene.node.cli().counter("drop-no-local-endpoint").unwrap(),
        1
    );
}

#[test]
fn a_service_whose_endpoints_come_back_is_served_again() {
    let scene = Scene::new(1);
    let with_endpoints = scene::web_slice(&scene.backends);

    scene
        .agent
        .programs(|| scene.objects.apply(scene::web_slice(&[])));
    let refused = scene.client.tcp(scene::TCP).unwrap_err();
    scene.agent.programs(|| scene.objects.apply(with_endpoints));
    let answer = scene.client.tcp(scene::TCP).unwrap().ask("hi").unwrap();

    assert_eq!(refused, Errno::CONNREFUSED);
    assert!(scene.has_backend(answer.server));
}

fn older_than(major: u32, minor: u32) -> bool {
    let release = uname().release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) < (major, minor)
}
