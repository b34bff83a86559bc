//! Traffic near its client: hints that the control plane gives and takes back, and what the tools say
//! where it gives none.

use lb_tests::{Serve, agent, objects::slice, wait};
use serde_json::json;

use crate::stage::{A, A2, B, C, TARGET, World, at, web, web_with};

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
    let zone = |change: &str| {
        let label = format!("topology.kubernetes.io/zone{change}");
        world.kubectl(&["label", "node/node-b", "--overwrite", &label]);
    };
    world.until_spread(B, to, &[&b]);

    zone("-");
    world.until_told(B, "ignored-node-without-zone");
    world.until_spread(B, to, &[&a, &b]);

    zone("=a");
    world.until_told(B, "zone");
    // Whether the pod on that node counts as one of zone a depends on when its slice is written anew.
    world.until("the other zone", B, to, |tally| tally.of(at(&a, to)) > 0);

    zone("=b");
    world.until_spread(B, to, &[&b]);
    world.until_spread(A, to, &[&a]);
}
