//! Pods that come, go, are not ready, or are many.

use std::collections::BTreeSet;

use lb_tests::{
    Pod, Serve,
    cluster::objects::{self, Addresses},
    wait,
};
use serde_json::json;

use crate::stage::{A, A2, B, C, TARGET, World, web, web_with};

const NODES: [usize; 4] = [A, A2, B, C];

/// The controller writes at most a hundred endpoints into a slice.
#[test]
fn a_hundred_and_twenty_endpoints_in_several_slices_all_serve() {
    let world = World::empty("many");
    world.apply([web()]);
    let hosts = [
        (A, "node-a", "10.9.1"),
        (B, "node-b", "10.9.2"),
        (C, "node-c", "10.9.3"),
    ];
    let mut pods = Vec::new();
    for (node, name, net) in hosts {
        let host = world.stage.nodes[node].pod(&format!("{net}.254"));
        host.serve_range(&format!("{net}.0/24"), TARGET);
        pods.extend((1..=40).map(|last| {
            let addresses = Addresses::v4(&format!("{net}.{last}"));
            objects::pod_at(&format!("web-{node}-{last}"), "web", name, &addresses)
        }));
    }
    world.apply(pods);
    let to = world.address("IPv4");

    wait::until("120 endpoints", wait::PATIENCE * 3, || {
        match world.backends(C).len() {
            120 => Ok(()),
            count => Err(format!("{count} backends")),
        }
    })
    .unwrap();

    let slices = world.get(&[
        "endpointslices",
        "--selector=kubernetes.io/service-name=web",
    ]);
    assert!(slices["items"].as_array().unwrap().len() > 1, "{slices}");
    let tally = world.stage.clients[C].load(Serve::Tcp, to, 500);
    assert!(tally.errors.is_empty(), "{:?}", tally.errors);
    // Of 500 random choices from 120, 118 differ on average; fewer than 105 never happens.
    assert!(
        tally.answers.len() > 105,
        "{} answered",
        tally.answers.len()
    );
}

/// As kubelets do it: a new pod is ready before an old one is asked to end, and the old one answers
/// until nobody is sent to it any more.
#[test]
fn a_rolling_update_under_load_fails_no_connect() {
    let old = [("old-a", A), ("old-b", B), ("old-c", C)];
    let (world, old_pods) = World::new("rolling", web(), old);
    let to = world.address("IPv4");
    for node in NODES {
        world.until_spread(node, to, &old_pods.each_ref());
    }
    let loads = [A, B, C].map(|node| world.stage.clients[node].start_load(Serve::Tcp, to, 2));

    let mut new_pods = Vec::new();
    for ((name, node), ends) in old.into_iter().zip(&old_pods) {
        let [begins] = world.run([(name.replace("old", "new").as_str(), node)]);
        until_backend(&world, &begins, true);
        world.terminate(name);
        until_backend(&world, ends, false);
        until_quiet(ends);
        ends.end();
        world.remove(name);
        new_pods.push(begins);
    }

    for load in loads {
        let tally = load.finish(500);
        assert!(tally.errors.is_empty(), "{:?}", tally.errors);
        for pod in new_pods.iter().chain(&old_pods) {
            assert!(tally.of(pod.at(TARGET)) > 0, "{:?}", tally.answers);
        }
    }
    for node in NODES {
        world.until_spread(node, to, &new_pods.iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_service_that_is_scaled_to_nothing_refuses_and_serves_again_when_scaled_up() {
    let (world, [a, c]) = World::new("scaled", web(), [("a", A), ("c", C)]);
    let to = world.address("IPv4");
    world.until_spread(B, to, &[&a, &c]);

    world.remove("a");
    world.remove("c");
    for node in [A, B, C] {
        world.until_refused(node, to);
    }

    let [again] = world.run([("again", B)]);
    for node in [A, B, C] {
        world.until_spread(node, to, &[&again]);
    }
}

#[test]
fn pods_that_are_not_ready_serve_only_if_the_service_publishes_them() {
    let (world, [pod]) = World::new("not-ready", web(), [("a", A)]);
    let to = world.address("IPv4");
    world.until_spread(C, to, &[&pod]);

    world.set_ready("a", false);
    world.until_refused(C, to);
    world.patch(&json!({"spec": {"publishNotReadyAddresses": true}}));
    world.until_spread(C, to, &[&pod]);
    world.patch(&json!({"spec": {"publishNotReadyAddresses": false}}));
    world.until_refused(C, to);

    world.set_ready("a", true);
    world.until_spread(C, to, &[&pod]);
}

#[test]
fn draining_pods_serve_while_nobody_else_is_ready() {
    let service = web_with("trafficDistribution", json!("PreferSameZone"));
    let (world, [a, c]) = World::new("draining", service, [("a", A), ("c", C)]);
    let to = world.address("IPv4");
    world.until_spread(A, to, &[&a]);

    world.terminate("a");
    world.terminate("c");
    // The fallback knows no zones.
    world.until_spread(A, to, &[&a, &c]);

    let [fresh] = world.run([("fresh", B)]);
    world.until_spread(A, to, &[&fresh]);
    world.remove("fresh");
    world.until_spread(A, to, &[&a, &c]);

    world.set_ready("a", false);
    world.until_spread(A, to, &[&c]);
    world.set_ready("c", false);
    world.until_refused(A, to);
}

/// Waits until every node sends new connections to this pod, or none does.
fn until_backend(world: &World, pod: &Pod, wanted: bool) {
    let address = pod.at(TARGET).to_string();
    wait::until(
        &format!("{address} in the lists: {wanted}"),
        wait::PATIENCE * 2,
        || {
            let with: BTreeSet<_> = NODES
                .into_iter()
                .filter(|node| world.backends(*node).contains(&address))
                .collect();
            let as_wanted = with.len() == if wanted { NODES.len() } else { 0 };
            if as_wanted {
                Ok(())
            } else {
                Err(format!("{with:?}"))
            }
        },
    )
    .unwrap();
}

/// Waits until what was under way at a pod is over.
fn until_quiet(pod: &Pod) {
    let mut seen = (0, 0);
    wait::until("the last answer", wait::PATIENCE, || {
        let answered = pod.answered(Serve::Tcp, TARGET);
        seen = match seen {
            (count, polls) if count == answered => (count, polls + 1),
            _ => (answered, 0),
        };
        if seen.1 > 100 { Ok(()) } else { Err(answered) }
    })
    .unwrap();
}
