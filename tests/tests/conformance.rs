//! The conformance vectors through the maps of a running agent: what is programmed for each is read back
//! from the pins, as the next agent would.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "../../lb-agent/tests/conformance/restored.rs"]
mod restored;
#[path = "../../lb-agent/tests/conformance/vectors.rs"]
mod vectors;

use lb_agent::datapath::{BpfMaps, Pins, store::MapStore};
use lb_tests::{Lab, Node};

#[test]
fn what_an_agent_programs_for_every_vector_is_restored_as_expected() {
    for ((name, zone), vectors) in vectors::by_node() {
        let lab = Lab::new();
        let node = lab.node(&name);
        let objects = lab.objects();
        objects.write("objects.json", &vectors::objects(&vectors).to_string());
        let agent = node.agent(&objects);
        check(&node, &vectors);

        agent.kill().unwrap();
        let _next = node.agent(&objects);

        let changed = node.cli().number("first_sync_ops").unwrap();
        assert_eq!(changed, 0, "an agent of {name} in {zone:?} that follows");
        check(&node, &vectors);
    }
}

fn check(node: &Node, vectors: &[vectors::Vector]) {
    let pins = Pins::new(node.pin_path());
    let tables = BpfMaps::open_pinned(&pins).unwrap().dump().unwrap();
    for vector in vectors {
        vector.check(&restored::outcome(&tables, vector));
    }
}
