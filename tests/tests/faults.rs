//! What goes wrong around the agent: it says what and what to do about it, and the last good state
//! serves on.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{fs, path::Path};

use lb_tests::{
    Lab, Node, Objects, Serve, agent,
    objects::{Slice, slice},
    scene::{self, Scene, TCP_PORT, web},
    wait,
};
use rustix::thread::CapabilitySet;

#[test]
fn a_broken_file_is_counted_and_its_objects_serve_on() {
    let scene = Scene::new(1);

    scene.objects.write(
        "service-default-web.json",
        "{\"kind\": \"Service\", metadata",
    );

    eventually_problems(&scene, 1);
    serves(&scene);
    scene.objects.apply(web());
    eventually_problems(&scene, 0);
    serves(&scene);
}

#[test]
fn where_nothing_serves_a_broken_file_does_not_hold_up_the_others() {
    let lab = Lab::new();
    let (node, objects) = (lab.node("a"), lab.objects());
    objects.write("broken.yaml", "kind: Service\nmetadata: [");
    objects.apply(web());

    let _agent = node.agent(&objects);

    assert_eq!(node.cli().number("problems").unwrap(), 1);
    assert_ne!(node.cli().number("services").unwrap(), 0);
}

#[test]
fn where_tables_serve_a_restart_with_a_broken_file_changes_nothing() {
    let scene = Scene::new(1);
    scene.agent.kill().unwrap();
    scene.objects.write(
        "service-default-web.json",
        "{\"kind\": \"Service\", metadata",
    );

    let waiting = scene
        .node
        .start_agent(scene.node.run_command(&scene.objects, &[], &[]));

    wait::until("the agent to say that it waits", wait::PATIENCE, || {
        let log = waiting.log();
        log.contains("waiting until every file")
            .then_some(())
            .ok_or(log)
    })
    .unwrap();
    serves(&scene);
    scene.objects.apply(web());
    waiting.wait_ready().unwrap();
    assert_eq!(scene.node.cli().number("first_sync_ops").unwrap(), 0);
}

#[test]
fn a_half_written_file_loses_no_object() {
    let scene = Scene::new(1);
    let slice = serde_json::Value::from(scene::web_slice(&scene.backends)).to_string();

    scene.objects.write_in_place(
        "endpointslice-default-web-ipv4.json",
        &slice[..slice.len() / 2],
    );

    eventually_problems(&scene, 1);
    serves(&scene);
    scene
        .objects
        .write_in_place("endpointslice-default-web-ipv4.json", &slice);
    eventually_problems(&scene, 0);
}

#[test]
fn a_service_that_does_not_fit_is_reported_and_served_as_it_was() {
    let scene = Scene::with_flags(1, &["--capacity-backends", "256"]);

    scene.objects.apply(crowd(300));

    wait::until(
        "the status to count a Service that does not fit",
        wait::PATIENCE,
        || match scene.node.cli().number("full")? {
            0 => Err("full is 0".to_owned()),
            _ => Ok(()),
        },
    )
    .unwrap();
    let log = scene.agent.log();
    assert!(log.contains("BACKENDS is full"), "{log}");
    assert!(
        log.contains("--capacity-backends"),
        "the log names no remedy: {log}"
    );
    serves(&scene);
}

/// The web's backend and so many more, on addresses of nobody.
fn crowd(count: u16) -> Slice {
    let slice = slice("default/web", "IPv4")
        .tcp("http", TCP_PORT)
        .udp("dns", scene::UDP_PORT);
    let slice = slice.endpoint("10.0.1.1", scene::NODE, scene::ZONE);
    (0..count).fold(slice, |slice, number| {
        let [high, low] = number.to_be_bytes();
        slice.endpoint(format!("10.9.{high}.{low}"), scene::NODE, scene::ZONE)
    })
}

#[test]
fn a_node_that_is_not_among_the_objects_is_warned_about_and_served() {
    let lab = Lab::new();
    let (node, objects) = (lab.node("stranger"), lab.objects());
    let backends = scene::backend_pods(&node, 1);
    let client = node.pod("10.0.1.200");
    objects.apply(web());
    objects.apply(scene::web_slice(&backends));

    let agent = node.agent(&objects);

    assert_eq!(client.load(Serve::Tcp, scene::TCP, 10).answered(), 10);
    let log = agent.log();
    assert!(log.contains("WARN") && log.contains("stranger"), "{log}");
}

/// CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON in the kernel's eyes.
const NEEDED: [(&str, &[&str]); 3] = [
    ("CAP_BPF", &["bpf", "sys_admin"]),
    ("CAP_PERFMON", &["perfmon", "sys_admin"]),
    ("CAP_NET_ADMIN", &["net_admin"]),
];

#[test]
fn without_a_capability_the_agent_names_it_and_the_pins_serve_on() {
    let scene = Scene::new(1);
    scene.agent.kill().unwrap();

    for (name, without) in NEEDED {
        let crippled = scene
            .node
            .start_agent(scene.node.run_command(&scene.objects, &[], without));
        let status = crippled.wait_exit();

        assert!(!status.success(), "without {name}: {status}");
        let log = crippled.log();
        assert!(log.contains(name), "without {name}: {log}");
        serves(&scene);
    }
}

#[test]
fn three_capabilities_are_enough() {
    let scene = Scene::new(1);
    scene.agent.kill().unwrap();
    let kept = ["BPF", "PERFMON", "NET_ADMIN"];
    let others = CapabilitySet::all().iter_names().map(|(name, _)| name);
    let without: Vec<_> = others.filter(|name| !kept.contains(name)).collect();

    for pins in ["adopted", "made anew"] {
        let agent = scene
            .node
            .start_agent(scene.node.run_command(&scene.objects, &[], &without));
        agent
            .wait_ready()
            .unwrap_or_else(|error| panic!("{pins}: {error:#}"));
        serves(&scene);
        agent.kill().unwrap();
        assert!(scene.node.cli().on_pins(&["cleanup"]).status.success());
    }
}

#[test]
fn a_second_agent_on_the_same_pins_is_refused_and_told_of_the_first() {
    let scene = Scene::new(1);

    let second = scene
        .node
        .start_agent(scene.node.run_command(&scene.objects, &[], &[]));
    let status = second.wait_exit();

    assert!(!status.success(), "{status}");
    let log = second.log();
    let first = format!(
        "another agent (pid {}, node {})",
        scene.agent.id(),
        scene::NODE
    );
    assert!(log.contains(&first), "{log}");
    serves(&scene);
}

#[test]
fn pins_outside_of_a_bpf_file_system_are_refused_with_the_remedy() {
    let lab = Lab::new();
    let (node, objects) = (lab.node("node-a"), lab.objects());
    let pins = lab.dir().join("no-bpffs");
    fs::create_dir(&pins).unwrap();

    let log = fails(&node, &objects, node.cgroup(), &pins);

    assert!(log.contains("mount -t bpf"), "{log}");
}

#[test]
fn a_folder_that_is_no_cgroup_is_refused_by_name() {
    let lab = Lab::new();
    let (node, objects) = (lab.node("node-a"), lab.objects());

    let log = fails(&node, &objects, lab.dir(), &node.pin_path());

    assert!(log.contains(lab.dir().to_str().unwrap()), "{log}");
    assert!(log.contains("cgroup"), "{log}");
}

fn fails(node: &Node, objects: &Objects, cgroup: &Path, pins: &Path) -> String {
    let mut command = node
        .host()
        .place()
        .command(&agent::program().unwrap(), &[])
        .unwrap();
    command.args(["run", "--node", node.name()]);
    for (flag, dir) in [
        ("--objects", objects.dir()),
        ("--cgroup", cgroup),
        ("--pin-path", pins),
    ] {
        command.arg(flag).arg(dir);
    }
    let agent = node.start_agent(command);
    let status = agent.wait_exit();
    assert!(!status.success(), "{status}");
    agent.log()
}

#[test]
fn without_its_folder_the_agent_ends_and_names_it() {
    let lab = Lab::new();
    let (node, objects) = (lab.node("node-a"), lab.objects());
    fs::remove_dir(objects.dir()).unwrap();

    let agent = node.start_agent(node.run_command(&objects, &[], &[]));
    let status = agent.wait_exit();

    assert!(!status.success(), "{status}");
    let log = agent.log();
    assert!(log.contains(objects.dir().to_str().unwrap()), "{log}");
}

fn eventually_problems(scene: &Scene, wanted: u64) {
    wait::until(
        &format!("{wanted} problems"),
        wait::PATIENCE,
        || match scene.node.cli().number("problems")? {
            problems if problems == wanted => Ok(()),
            problems => Err(format!("{problems} problems")),
        },
    )
    .unwrap();
}

fn serves(scene: &Scene) {
    let tally = scene.client.load(Serve::Tcp, scene::TCP, 20);
    assert_eq!(tally.of(scene.backends[0].at(TCP_PORT)), 20, "{tally:?}");
}
