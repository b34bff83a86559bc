//! What goes wrong around the agent: it says what and what to do about it, and the last good state
//! serves on.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs;

use lb_tests::{
    Lab, Serve,
    objects::{Slice, slice},
    scene::{self, Scene, TCP_PORT, web},
    wait,
};

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

#[test]
fn without_a_capability_the_agent_names_the_remedy_and_the_pins_serve_on() {
    let scene = Scene::new(1);
    scene.agent.kill().unwrap();
    let without = &["bpf", "sys_admin"];

    let crippled = scene
        .node
        .start_agent(scene.node.run_command(&scene.objects, &[], without));
    let status = crippled.wait_exit();

    assert!(!status.success(), "{status}");
    let log = crippled.log();
    assert!(log.contains("CAP_BPF"), "{log}");
    serves(&scene);
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
