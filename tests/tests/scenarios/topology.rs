//! Traffic near its client: hints that the control plane gives and takes back, and what the tools say
//! where it gives none.

use lb_tests::{Serve, agent, objects::slice, wait};
use serde_json::json;

use crate::stage::{A, A2, B, C, TARGET, World, web, web_with};

#[test]
fn traffic_stays_in_its_zone_or_on_its_node_when_the_service_prefers_so_and_spreads_again() {
    let (world, [a, a2, c]) = World::new("prefer", web(), [("a", A), ("a2", A2), ("c", C)]);
    let _nodes = world.hold_nodes();
    let to = world.address("IPv4");
    world.until_spread(A, to, &[&a, &a2, &c]);

    world.patch(&json!({"spec": {"trafficDistribution": "PreferSameZone"}}));
    world.until_spread(A, to, &[&a, &a2]);
    world.until_spread(C, to, &[&c]);
    // No pod is in zone b.
    world.until_spread(B, to, &[&a, &a2, &c]);
    world.until_told(B, "ignored-no-endpoint-for-zone");

    world.patch(&json!({"spec": {"trafficDistribution": "PreferSameNode"}}));
    world.until_spread(A, to, &[&a]);
    world.until_spread(A2, to, &[&a2]);
    world.until_spread(C, to, &[&c]);

    world.patch(&json!({"spec": {"trafficDistribution": null}}));
    for node in [A, B, C] {
        world.until_spread(node, to, &[&a, &a2, &c]);
        world.until_told(node, "none");
    }
}

/// Half of the processors are in zone a.
#[test]
fn topology_mode_auto_keeps_traffic_in_its_zone_when_pods_are_as_the_processors() {
    let pods = [("a", A), ("a2", A2), ("b", B), ("c", C)];
    let (world, [a, a2, b, c]) = World::new("auto-even", web(), pods);
    let _nodes = world.hold_nodes();
    let to = world.address("IPv4");

    world.kubectl(&[
        "annotate",
        "service/web",
        "service.kubernetes.io/topology-mode=Auto",
    ]);

    world.until_spread(A, to, &[&a, &a2]);
    world.until_spread(B, to, &[&b]);
    world.until_spread(C, to, &[&c]);
    world.until_told(C, "zone");
}

#[test]
fn topology_mode_auto_with_five_pods_in_one_zone_and_one_in_another_says_why_nothing_is_near() {
    let pods = [
        ("a-1", A),
        ("a-2", A),
        ("a-3", A),
        ("a-4", A2),
        ("a-5", A2),
        ("c-1", C),
    ];
    let (world, pods) = World::new("auto-uneven", web(), pods);
    let _nodes = world.hold_nodes();
    let to = world.address("IPv4");

    world.kubectl(&[
        "annotate",
        "service/web",
        "service.kubernetes.io/topology-mode=Auto",
    ]);

    for node in [A, C] {
        world.until_told(node, "missing-too-few-or-uneven");
        world.until_spread(node, to, &pods.each_ref());
    }
    let cli = world.stage.nodes[C].cli();
    let services = agent::text(&cli.on_pins(&["services"]).stdout);
    assert!(
        services.contains("no hints: topology-mode Auto found the endpoints too few or too uneven"),
        "{services}"
    );
    let status = cli.status().unwrap();
    assert_eq!(status["hints"]["missing-too-few-or-uneven"], 1, "{status}");
    // The control plane's own words, to which the text refers.
    wait::until("the controller's event", wait::PATIENCE, || {
        let selector = "--field-selector=involvedObject.name=web,reason=TopologyAwareHintsDisabled";
        let events = world.get(&["events", selector]);
        let said = events["items"]
            .as_array()
            .is_some_and(|all| !all.is_empty());
        if said { Ok(()) } else { Err(events) }
    })
    .unwrap();
}

#[test]
fn one_slice_without_hints_vetoes_those_of_the_others_and_is_found_by_its_reason() {
    let service = web_with("trafficDistribution", json!("PreferSameZone"));
    let (world, [a, c]) = World::new("one-without", service, [("a", A), ("c", C)]);
    let _nodes = world.hold_nodes();
    let to = world.address("IPv4");
    world.until_spread(A, to, &[&a]);

    let stray = world.stage.nodes[C].pod("10.0.4.240");
    stray.serve(Serve::Tcp, TARGET);
    let by_hand =
        slice("default/web", "IPv4")
            .tcp("http", TARGET)
            .endpoint(stray.addr(), "node-c", "c");
    world.apply([by_hand.into()]);

    world.until_spread(A, to, &[&a, &c, &stray]);
    world.until_told(A, "ignored-endpoint-without-zone-hint");

    world.kubectl(&["delete", "endpointslice", "web-ipv4"]);
    world.until_spread(A, to, &[&a]);
}

#[test]
fn a_node_that_loses_its_zone_label_or_gets_another_is_followed_live() {
    let service = web_with("trafficDistribution", json!("PreferSameZone"));
    let (world, [a, b]) = World::new("node-zone", service, [("a", A), ("b", B)]);
    let _nodes = world.hold_nodes();
    let to = world.address("IPv4");
    world.until_spread(B, to, &[&b]);

    label_node_b(&world, "-", None);
    world.until_told(B, "ignored-node-without-zone");
    world.until_spread(B, to, &[&a, &b]);
    // The endpoint on that node has lost its zone too, and its hint.
    world.until_told(A, "ignored-endpoint-without-zone-hint");

    label_node_b(&world, "=a", Some("a"));
    world.until_spread(B, to, &[&a, &b]);
    world.until_told(B, "zone");

    label_node_b(&world, "=b", Some("b"));
    world.until_spread(B, to, &[&b]);
    world.until_spread(A, to, &[&a]);
}

/// Changes the zone of node b, and sees to it that the controller notices: it writes the zones of
/// endpoints anew only when something else about the Service changes.
fn label_node_b(world: &World, change: &str, zone: Option<&str>) {
    let label = format!("topology.kubernetes.io/zone{change}");
    world.kubectl(&["label", "node/node-b", "--overwrite", &label]);
    let mut touched = 0;
    wait::until("the endpoint's zone", wait::PATIENCE * 2, || {
        touched += 1;
        let touch = format!("touched={change}{touched}");
        world.kubectl(&["annotate", "service/web", "--overwrite", &touch]);
        let slices = world.get(&["endpointslices"]);
        let endpoints = slices["items"][0]["endpoints"].as_array().into_iter();
        let mut on_b = endpoints.flatten().filter(|e| e["nodeName"] == "node-b");
        match on_b.next().map(|endpoint| endpoint["zone"].as_str()) {
            Some(written) if written == zone => Ok(()),
            _ => Err(slices),
        }
    })
    .unwrap();
}
