//! Changes of the Service itself: its type, its ports, its families, its address.

use lb_tests::{Serve, traffic, wait};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::stage::{A, B, C, PORT, TARGET, World, at, web, web_with};

#[test]
fn a_service_becomes_an_external_name_then_headless_and_has_an_address_again() {
    let (world, [pod]) = World::new("types", web(), [("a", A)]);
    let former = world.address("IPv4");
    world.until_spread(C, former, &[&pod]);

    world.patch(&json!({"spec": {
        "type": "ExternalName",
        "externalName": "web.example",
        "clusterIP": null,
        "clusterIPs": null,
        "ipFamilies": null,
        "ipFamilyPolicy": null,
    }}));
    until_served(&world, false);
    assert_eq!(
        world.stage.clients[C].tcp(former).unwrap_err(),
        Errno::INPROGRESS
    );

    world.patch(&json!({"spec": {
        "type": "ClusterIP", "externalName": null, "clusterIP": "None",
    }}));
    world.kubectl(&[
        "wait",
        "service/web",
        "--for=jsonpath={.spec.clusterIP}=None",
    ]);
    until_served(&world, false);

    world.patch(&json!({"spec": {
        "type": "ExternalName",
        "externalName": "web.example",
        "clusterIP": null,
        "clusterIPs": null,
        "ipFamilies": null,
        "ipFamilyPolicy": null,
    }}));
    world.patch(&json!({"spec": {"type": "ClusterIP", "externalName": null}}));
    until_served(&world, true);
    let latter = world.address("IPv4");
    world.until_spread(C, latter, &[&pod]);
}

#[test]
fn a_port_is_renamed_and_renumbered_on_either_side() {
    let (world, [pod]) = World::new("ports", web(), [("a", A)]);
    let port = |name: &str, port: u16, target: u16| {
        let port = json!({"name": name, "protocol": "TCP", "port": port, "targetPort": target});
        world.patch(&json!({"spec": {"ports": [port]}}));
    };
    let to = world.address("IPv4");
    let other = traffic::address((to.ip(), 8888));
    pod.serve(Serve::Tcp, 9090);
    world.until_spread(C, to, &[&pod]);

    port("renamed", PORT, TARGET);
    wait_for_port(&world, C, "renamed");
    world.until_spread(C, to, &[&pod]);

    port("renamed", 8888, TARGET);
    world.until("the new number", C, other, |tally| {
        tally.of(pod.at(TARGET)) == tally.answered() && tally.errors.is_empty()
    });
    world.until_refused(C, to);

    port("renamed", 8888, 9090);
    world.until("the new target", C, other, |tally| {
        tally.of(pod.at(9090)) == tally.answered() && tally.errors.is_empty()
    });
}

#[test]
fn a_service_gets_a_second_family_and_loses_it_while_the_first_goes_on() {
    let (world, [pod]) = World::new("dual-stack", web(), [("a", A)]);
    let v4 = world.address("IPv4");
    world.until_spread(B, v4, &[&pod]);
    let load = world.stage.clients[B].start_load(Serve::Tcp, v4, 1);

    world.patch(&json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}}));
    let v6 = world.address("IPv6");
    for node in [A, C] {
        world.until_spread(node, v6, &[&pod]);
    }

    world.patch(&json!({"spec": {"ipFamilyPolicy": "SingleStack"}}));
    world.until("nobody to answer over IPv6", C, v6, |tally| {
        tally.answered() == 0
    });
    let tally = load.finish(100);
    assert!(tally.errors.is_empty(), "{:?}", tally.errors);
    assert_eq!(tally.of(at(&pod, v4)), tally.answered());
}

#[test]
fn a_service_is_deleted_and_comes_back_with_the_same_address_and_with_another() {
    let mine = |ip: &str| {
        let mut service = web_with("clusterIP", json!(ip));
        service["spec"]["clusterIPs"] = json!([ip]);
        service
    };
    let (world, [pod]) = World::new("recreated", mine("10.96.77.1"), [("a", A)]);
    let [first, second] = ["10.96.77.1:80", "10.96.77.2:80"].map(traffic::address);
    world.until_spread(C, first, &[&pod]);

    world.kubectl(&["delete", "service", "web"]);
    until_served(&world, false);
    world.apply([mine("10.96.77.1")]);
    world.until_spread(C, first, &[&pod]);

    world.kubectl(&["delete", "service", "web"]);
    world.apply([mine("10.96.77.2")]);
    world.until_spread(C, second, &[&pod]);
    assert_eq!(
        world.stage.clients[C].tcp(first).unwrap_err(),
        Errno::INPROGRESS
    );
}

/// Inside a range of ClusterIPs a port that no Service has is refused; elsewhere it is left alone.
#[test]
fn a_second_range_of_addresses_counts_from_when_it_is_made() {
    let range = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.97.0.0/24"]},
    });
    let world = World::empty("ranges");
    world.stage.cluster.apply([range]);
    wait::until("an address of the new range", wait::PATIENCE, || {
        let mut service = web_with("clusterIP", json!("10.97.0.9"));
        service["metadata"]["namespace"] = json!("ranges");
        let apply = ["apply", "--server-side", "--filename=-"];
        let output = world
            .stage
            .cluster
            .try_kubectl(&apply, &service.to_string());
        match output.status.success() {
            true => Ok(()),
            false => Err(lb_tests::agent::text(&output.stderr)),
        }
    })
    .unwrap();
    let [pod] = world.run([("a", A)]);

    world.until_spread(C, traffic::address("10.97.0.9:80"), &[&pod]);
    world.until_refused(C, traffic::address("10.97.0.9:81"));

    world.kubectl(&["delete", "service", "web"]);
    world
        .stage
        .cluster
        .kubectl(&["delete", "servicecidr", "more", "--wait=false"]);
}

fn until_served(world: &World, wanted: bool) {
    wait::until(&format!("served: {wanted}"), wait::PATIENCE * 2, || {
        for node in [A, B, C] {
            let served = world.served(node);
            if (served != Value::Null) != wanted {
                return Err(served);
            }
        }
        Ok(())
    })
    .unwrap();
}

fn wait_for_port(world: &World, node: usize, name: &str) {
    wait::until(name, wait::PATIENCE * 2, || {
        let served = world.served(node);
        match served["port"] == name {
            true => Ok(()),
            false => Err(served),
        }
    })
    .unwrap();
}
