//! `lb-agent check` proves by a real connect that the node's own processes are covered.

use lb_tests::{Lab, Node, agent};

#[test]
fn check_proves_that_a_process_of_the_node_is_covered() {
    let lab = Lab::new();
    let node = lab.node("node-a");

    let (success, said) = check(&node, &node);

    assert!(success, "{said}");
}

#[test]
fn check_says_that_a_process_outside_the_cgroup_is_not_covered() {
    let lab = Lab::new();
    let (inside, outside) = (lab.node("node-a"), lab.node("node-b"));

    let (success, said) = check(&outside, &inside);

    assert!(!success, "{said}");
    assert!(said.contains("cgroup"), "{said}");
}

/// Runs `check` as a process of one node against the cgroup of another.
fn check(process_of: &Node, cgroup_of: &Node) -> (bool, String) {
    let cgroup = cgroup_of
        .cgroup()
        .to_str()
        .expect("the lab's paths are plain ASCII");
    let output = process_of.cli().on_pins(&["check", "--cgroup", cgroup]);
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), agent::text(&said))
}
