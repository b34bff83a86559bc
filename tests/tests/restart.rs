//! The agent dies, comes back and goes away: the kernel serves on for as long as the pins are there.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use lb_tests::{
    Lab, Serve, agent,
    scene::{self, Scene, TCP_PORT},
    wait,
};
use serde_json::Value;

#[test]
fn three_kills_and_restarts_under_five_thousand_connects_lose_none() {
    let scene = Scene::new(2);
    let load = scene.client.start_load(Serve::Tcp, scene::TCP, 4);

    let mut agent = scene.agent.clone();
    for _ in 0..3 {
        agent.kill().unwrap();
        more_answers(&scene);
        agent = scene.node.agent(&scene.objects);
        more_answers(&scene);
    }
    let tally = load.finish(5_000);

    assert!(
        tally.errors.is_empty(),
        "{:?} beside {} answers",
        tally.errors,
        tally.answered()
    );
    assert!(tally.answered() >= 5_000);
    assert_eq!(tally.answers.len(), 2, "{:?}", tally.answers);
}

#[test]
fn a_restart_with_unchanged_objects_changes_nothing() {
    let scene = Scene::new(2);
    assert!(scene.node.cli().number("first_sync_ops").unwrap() > 0);
    scene.agent.kill().unwrap();

    let _agent = scene.node.agent(&scene.objects);

    assert_eq!(scene.node.cli().number("first_sync_ops").unwrap(), 0);
}

#[test]
fn what_changed_while_no_agent_ran_is_programmed_by_the_next() {
    let scene = Scene::new(2);
    scene.agent.kill().unwrap();
    scene.objects.apply(scene::web_slice(&scene.backends[1..]));

    let _agent = scene.node.agent(&scene.objects);

    let tally = scene.client.load(Serve::Tcp, scene::TCP, 50);
    assert_eq!(tally.of(scene.backends[1].at(TCP_PORT)), 50, "{tally:?}");
}

#[test]
fn a_terminated_agent_leaves_the_data_path_in_place() {
    let scene = Scene::new(1);

    let status = scene.agent.terminate();

    assert!(status.success(), "{status}");
    assert_eq!(scene.client.load(Serve::Tcp, scene::TCP, 20).answered(), 20);
}

#[test]
fn status_and_services_answer_while_no_agent_runs() {
    let scene = Scene::new(1);
    scene.agent.kill().unwrap();

    let services = scene.node.cli().on_pins(&["services"]);
    let status = scene.node.cli().status().unwrap();

    let services = agent::text(&services.stdout);
    assert!(
        services.contains("default/web") && services.contains("10.96.0.10"),
        "{services}"
    );
    assert_eq!(status["node"], scene::NODE, "{status}");
    assert_eq!(status["zone"], scene::ZONE, "{status}");
}

#[test]
fn cleanup_leaves_no_pin_and_no_program() {
    let scene = Scene::new(1);
    assert!(!attached(&scene).is_empty());
    scene.agent.kill().unwrap();

    let output = scene.node.cli().on_pins(&["cleanup"]);

    assert!(output.status.success(), "{}", agent::text(&output.stderr));
    let left: Vec<_> = fs::read_dir(scene.node.pin_path())
        .into_iter()
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(attached(&scene), Vec::<Value>::new());
    let error = scene.client.tcp(scene::TCP).unwrap_err();
    assert_eq!(error, rustix::io::Errno::INPROGRESS, "nobody is to answer");
}

#[test]
fn where_nothing_is_installed_status_says_so_with_a_code_of_its_own() {
    let lab = Lab::new();
    let cli = lab.node("node-a").cli();

    let status = cli.on_pins(&["status"]);

    assert_eq!(
        status.status.code(),
        Some(3),
        "{}",
        agent::text(&status.stderr)
    );
}

#[test]
fn a_restart_replaces_programs_in_place() {
    let scene = Scene::new(1);
    let links = link_ids(&scene);
    scene.agent.kill().unwrap();

    let _agent = scene.node.agent(&scene.objects);

    assert_eq!(links.len(), 10, "{links:?}");
    assert_eq!(link_ids(&scene), links);
}

#[test]
fn a_second_cleanup_finds_nothing_and_succeeds() {
    let scene = Scene::new(1);
    scene.agent.kill().unwrap();

    let outputs = [(); 2].map(|()| scene.node.cli().on_pins(&["cleanup"]));

    for output in outputs {
        assert!(output.status.success(), "{}", agent::text(&output.stderr));
    }
}

/// The ids of the links that the node's agent has pinned, by file name.
fn link_ids(scene: &Scene) -> BTreeMap<String, Value> {
    let links = fs::read_dir(scene.node.pin_path().join("links")).unwrap();
    let id = |path: &Path| {
        let mut bpftool = Command::new("bpftool");
        let output = bpftool
            .args(["--json", "link", "show", "pinned"])
            .arg(path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", agent::text(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["id"].clone()
    };
    let named = links.map(|link| link.unwrap().path());
    named
        .map(|path| (path.display().to_string(), id(&path)))
        .collect()
}

/// The programs at the node's cgroup.
fn attached(scene: &Scene) -> Vec<Value> {
    let mut bpftool = Command::new("bpftool");
    let output = bpftool
        .args(["--json", "cgroup", "show"])
        .arg(scene.node.cgroup())
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", agent::text(&output.stderr));
    // With nothing attached bpftool prints an empty line, which is no JSON.
    match output.stdout.trim_ascii() {
        [] => Vec::new(),
        programs => serde_json::from_slice(programs).unwrap(),
    }
}

fn more_answers(scene: &Scene) {
    let answered = || -> u32 {
        scene
            .backends
            .iter()
            .map(|pod| pod.answered(Serve::Tcp, TCP_PORT))
            .sum()
    };
    let before = answered();
    wait::until("500 more answers", wait::PATIENCE, || {
        match answered() - before {
            more if more >= 500 => Ok(()),
            more => Err(format!("{more} more answers")),
        }
    })
    .unwrap();
}
