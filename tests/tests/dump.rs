//! What people see: the pinned maps by `bpftool`, with named fields and readable names, and the
//! agent's own commands.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{net::Ipv4Addr, process::Command};

use lb_tests::{
    agent,
    scene::{self, Scene, TCP_PORT},
};
use serde_json::{Value, json};

#[test]
fn names_and_zones_are_printed_as_text() {
    let scene = Scene::new(1);

    let names = dump(&scene, "NAMES");
    let zones = dump(&scene, "ZONES");

    assert!(names.contains("\"default/web:http\""), "{names}");
    assert!(zones.contains(&format!("\"{}\"", scene::ZONE)), "{zones}");
}

#[test]
fn a_frontend_and_its_backend_are_found_by_the_names_of_their_fields() {
    let scene = Scene::new(1);

    let frontends = cells(&scene, "FRONTENDS");
    let backends = cells(&scene, "BACKENDS");

    let vip = mapped_bytes([10, 96, 0, 10]);
    let frontend = frontends.iter().find(|cell| {
        cell["key"]["addr"]["bytes"] == vip
            && cell["key"]["port"] == 80
            && cell["key"]["proto"] == 6
    });
    let frontend = frontend.unwrap_or_else(|| panic!("no 10.96.0.10:80/tcp in {frontends:?}"));
    let backend = mapped_bytes([10, 0, 1, 1]);
    let backend = backends.iter().find(|cell| {
        cell["value"]["addr"]["bytes"] == backend && cell["value"]["port"] == TCP_PORT
    });
    let backend = backend.unwrap_or_else(|| panic!("no 10.0.1.1:{TCP_PORT} in the dump"));
    assert_eq!(frontend["value"]["service"], backend["value"]["service"]);
}

#[test]
fn a_service_shows_its_list_in_the_cell_that_names_point_to() {
    let scene = Scene::new(3);

    let service = &cells(&scene, "SERVICES")[index_of(&scene, "default/web:http", 4)];

    assert_eq!(service["value"]["cluster"]["len"], 3, "{service}");
    assert_eq!(service["value"]["local"]["len"], 0, "{service}");
}

#[test]
fn services_lists_every_port_with_its_backends() {
    let scene = Scene::new(2);

    let output = scene.node.cli().on_pins(&["services"]);

    let services = agent::text(&output.stdout);
    for wanted in [
        "default/web:http",
        "10.96.0.10:80",
        "[fd00:10:96::10]:53",
        "10.0.1.1:8080",
        "10.0.1.2:5353",
    ] {
        assert!(services.contains(wanted), "no {wanted} in\n{services}");
    }
}

fn index_of(scene: &Scene, name: &str, family: u8) -> usize {
    let names = cells(scene, "NAMES");
    let index = names.iter().position(|cell| {
        cell["value"]["text"]["chars"] == name && cell["value"]["family"] == family
    });
    index.unwrap_or_else(|| panic!("no {name} among the names"))
}

/// IPv4 as the maps hold it: `::ffff:a.b.c.d`.
fn mapped_bytes(addr: [u8; 4]) -> Value {
    json!(Ipv4Addr::from(addr).to_ipv6_mapped().octets())
}

/// As a person sees it.
fn dump(scene: &Scene, map: &str) -> String {
    bpftool(scene, &[], map)
}

/// Key and value of each cell, with field names.
fn cells(scene: &Scene, map: &str) -> Vec<Value> {
    let cells: Vec<Value> = serde_json::from_str(&bpftool(scene, &["--json"], map)).unwrap();
    cells
        .into_iter()
        .map(|mut cell| cell["formatted"].take())
        .collect()
}

fn bpftool(scene: &Scene, options: &[&str], map: &str) -> String {
    let pin = scene.node.pin_path().join("v1").join(map);
    let mut bpftool = Command::new("bpftool");
    let output = bpftool
        .args(options)
        .args(["map", "dump", "pinned"])
        .arg(pin)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", agent::text(&output.stderr));
    agent::text(&output.stdout)
}
