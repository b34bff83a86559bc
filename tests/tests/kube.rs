//! The agent fed by a real API server, with no more rights than deploy/rbac.yaml gives it.

use std::{net::SocketAddr, time::Instant};

use lb_tests::{
    Cluster, Lab, Serve, agent,
    cluster::scene::{OTHER_ZONE, Scene},
    objects::{self, slice},
    scene::{NODE, TCP, TCP_PORT, ZONE},
    wait,
};
use serde_json::{Value, json};

#[test]
fn what_the_cluster_says_is_served_and_followed() {
    let scene = Scene::new();
    let [near, far] = &scene.backends;
    scene.wait_for_answers("both backends", |tally| tally.answers.len() == 2);

    scene.apply_slice(scene.slice().hinted());
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

/// As the node controller of a cloud does, and a kubelet that is given another address.
#[test]
fn a_nodes_addresses_are_followed() {
    let scene = Scene::new();
    let change = |addresses: &[(&str, &str)]| {
        let addresses = addresses.iter();
        let addresses = addresses.map(|(kind, address)| json!({"type": kind, "address": address}));
        let addresses: Vec<_> = addresses.collect();
        let patch = json!([{"op": "add", "path": "/status/addresses", "value": addresses}]);
        let patch = [
            "--subresource=status",
            "--type=json",
            "--patch",
            &patch.to_string(),
        ];
        scene
            .cluster
            .kubectl(&[&["patch", "node", NODE], &patch[..]].concat());
    };
    let shown = |addresses: &[&str]| {
        let what = format!("addresses {addresses:?}");
        scene.wait_for_status(&what, |status| status["addresses"] == json!(addresses));
    };
    shown(&[]);

    change(&[
        ("InternalIP", "192.0.2.1"),
        ("InternalIP", "2001:db8::1"),
        ("Hostname", NODE),
    ]);
    shown(&["192.0.2.1", "2001:db8::1"]);

    change(&[("InternalIP", "192.0.2.2")]);
    shown(&["192.0.2.2"]);
    let table = scene.node.cli().on_pins(&["status"]);
    let table = agent::text(&table.stdout);
    assert!(table.contains("addresses   192.0.2.2\n"), "{table}");

    change(&[]);
    shown(&[]);
}

#[test]
fn an_api_server_that_is_away_stops_no_traffic_and_is_caught_up_with() {
    let scene = Scene::new();
    let load = scene.client.start_load(Serve::Tcp, TCP, 4);

    scene.cluster.kill_api();
    scene.wait_for_status("the problem", |status| {
        let problem = status["problem"].as_str().unwrap_or_default();
        problem.contains("cannot watch") && problem.contains("since")
    });
    scene.cluster.start_api();
    scene.cluster.wait_ready();
    let tally = load.finish(1_000);
    assert!(tally.errors.is_empty(), "{:?}", tally.errors);

    scene.wait_for_status("no problem", |status| status["problem"].is_null());
    scene.apply_slice(scene.slice().hinted());
    let near = scene.backends[0].at(TCP_PORT);
    scene.wait_for_answers("a later change", |tally| tally.of(near) == 20);
}

#[test]
fn a_restarted_agent_changes_nothing() {
    let scene = Scene::new();
    assert!(scene.node.cli().number("first_sync_ops").unwrap() > 0);
    scene.agent.kill().unwrap();
    assert_eq!(scene.client.load(Serve::Tcp, TCP, 20).answered(), 20);

    let agent = scene.node.agent_of(&scene.kubeconfig);
    agent.wait_ready().unwrap();

    assert_eq!(scene.node.cli().number("first_sync_ops").unwrap(), 0);
}

#[test]
fn what_was_deleted_while_no_agent_ran_is_removed_by_the_next() {
    let scene = Scene::new();
    scene.agent.kill().unwrap();
    scene.cluster.kubectl(&["delete", "service", "web"]);

    let agent = scene.node.agent_of(&scene.kubeconfig);
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
    let kubeconfig = cluster.account();
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
        let agent = node.agent_of(&kubeconfig);
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
        cluster.grant();
    }
}

/// The maps grow meanwhile, as they have room for 256 Service ports at first.
#[test]
fn a_thousand_services_at_once_are_served_and_leave_nothing() {
    const MANY: u64 = 1000;
    let scene = Scene::new();
    let cells_in_use = |status: &Value| {
        ["FRONTENDS", "SERVICES", "SLOTS", "BACKENDS"]
            .map(|map| status["maps"][map]["used"].as_u64().unwrap_or_default())
    };
    let before = cells_in_use(&scene.node.cli().status().unwrap());
    let begun = Instant::now();

    scene
        .cluster
        .apply((0..MANY).flat_map(|number| many(&scene, number)));
    // An address has a cell for its port, and one for all others.
    let wanted = [2 * MANY, MANY, MANY, MANY];
    let wanted = [0, 1, 2, 3].map(|map| before[map] + wanted[map]);
    scene.wait_for_status("all to be programmed", |status| {
        cells_in_use(status) == wanted
    });
    let created = begun.elapsed();

    let services = scene.cluster.get(&["services", "--selector=app=many"]);
    let services = services["items"].as_array().unwrap().iter();
    let addresses: Vec<SocketAddr> = services
        .map(|service| {
            let ip = service["spec"]["clusterIP"].as_str().unwrap();
            SocketAddr::new(ip.parse().unwrap(), 80)
        })
        .collect();
    let count = u32::try_from(addresses.len()).unwrap();
    assert_eq!(u64::from(count), MANY);
    let connects = scene.client.time_connects(addresses, count).unwrap();
    assert_eq!(connects.len() as u64, MANY);

    let kinds = "services,endpointslices";
    scene
        .cluster
        .kubectl(&["delete", kinds, "--selector=app=many", "--wait=false"]);
    scene.wait_for_status("all to be forgotten", |status| {
        cells_in_use(status) == before
    });
    let total = begun.elapsed();
    eprintln!("{MANY} Services served after {created:?}, gone again after {total:?}");
}

/// A Service with an endpoint, whose slice no controller makes.
fn many(scene: &Scene, number: u64) -> [Value; 2] {
    let name = format!("many-{number}");
    let mut service = objects::service("default/many", &[]).tcp("http", 80).into();
    let slice = slice(&format!("default/{name}"), "IPv4").tcp("http", TCP_PORT);
    let mut slice = slice.endpoint(scene.backends[0].addr(), NODE, ZONE).into();
    for object in [&mut service, &mut slice] {
        let object: &mut Value = object;
        object["metadata"]["labels"]["app"] = json!("many");
    }
    service["metadata"]["name"] = json!(name);
    service["spec"] = json!({"ports": service["spec"]["ports"]});
    [service, slice]
}
