//! The demo as a person or a program runs it.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::process::{Child, Command, ExitStatus, Stdio};

use lb_tests::{agent, sweep, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

#[test]
fn hints_end_cross_zone_traffic_and_standard_output_is_the_counts() {
    let output = demo().arg("--json").output().unwrap();

    assert!(output.status.success(), "{}", agent::text(&output.stderr));
    let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
    for zone in ["a", "c"] {
        let before = &counts["before"][zone];
        assert_eq!(sum(before), 100, "{counts}");
        for endpoint in ["192.168.2.141", "192.168.2.43", "192.168.2.83"] {
            let count = before[endpoint].as_u64().unwrap();
            // A third of a hundred random choices is outside of this once in a million runs.
            assert!((10..=57).contains(&count), "{counts}");
        }
    }
    let near = &counts["after"]["a"];
    assert_eq!(
        (&near["192.168.2.43"], sum(near)),
        (&json!(0), 100),
        "{counts}"
    );
    let far = json!({"192.168.2.141": 0, "192.168.2.43": 100, "192.168.2.83": 0});
    assert_eq!(counts["after"]["c"], far);
}

/// The control plane's own controller writes the slices and the hints.
#[test]
fn on_a_real_cluster_preferring_the_zone_ends_cross_zone_traffic() {
    let output = demo().args(["--cluster", "--json"]).output().unwrap();

    assert!(output.status.success(), "{}", agent::text(&output.stderr));
    let counts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(sum(&counts["before"]["a"]) == 100 && counts["before"]["a"]["192.168.2.43"] != 0);
    assert_eq!(counts["after"]["a"]["192.168.2.43"], 0, "{counts}");
    let far = json!({"192.168.2.141": 0, "192.168.2.43": 100, "192.168.2.83": 0});
    assert_eq!(counts["after"]["c"], far);
}

#[test]
fn the_table_shows_both_zones_the_share_and_the_maps() {
    let output = demo().output().unwrap();

    let shown = agent::text(&output.stdout);
    let crossed = shown
        .lines()
        .find(|line| line.starts_with("crossed zones"))
        .unwrap();
    assert!(crossed.ends_with("0 of 200 (0 %)"), "{shown}");
    for wanted in [
        "pod in zone a",
        "pod in zone c",
        "\"default/msu-control:http\"",
        "BACKENDS",
    ] {
        assert!(shown.contains(wanted), "no {wanted} in\n{shown}");
    }
    assert!(
        !shown.contains('\x1b'),
        "colours are for terminals:\n{shown}"
    );
}

#[test]
fn a_signal_ends_the_demo_and_leaves_nothing() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut demo = demo()
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait::until("the demo's lab", wait::PATIENCE, || match labs_of(&demo) {
            0 => Err("no lab yet"),
            _ => Ok(()),
        })
        .unwrap();

        kill_process(Pid::from_child(&demo), signal).unwrap();

        assert_eq!(ended(&mut demo).code(), Some(130), "{signal:?}");
        assert_eq!(labs_of(&demo), 0, "{signal:?} left a lab behind");
    }
}

fn demo() -> Command {
    Command::new(env!("CARGO_BIN_EXE_demo"))
}

fn sum(counts: &Value) -> u64 {
    counts
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_u64)
        .sum()
}

fn labs_of(demo: &Child) -> usize {
    let labs = sweep::labs().unwrap();
    labs.iter().filter(|lab| lab.pid == demo.id()).count()
}

fn ended(demo: &mut Child) -> ExitStatus {
    wait::until("the demo to end", wait::PATIENCE, || {
        demo.try_wait().unwrap().ok_or("it runs")
    })
    .unwrap()
}
