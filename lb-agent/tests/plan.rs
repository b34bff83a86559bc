//! `lb-agent plan` as its users meet it: the built binary, its output to the letter, its warnings.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use rustix::fs::{CWD, Mode, mkfifoat};

const OBJECTS: &str = "
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: a}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00:96::1']
  ipFamilies: [IPv4, IPv6]
  externalTrafficPolicy: Local
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.0.0.9], nodeName: node-2, hints: {forZones: [{name: a}]}}
- {addresses: [10.0.0.10], nodeName: node-3, hints: {forZones: [{name: c}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ['fd00::9'], nodeName: node-1}]
";

const ASKING: &str = "metadata:
  {name: web, namespace: shop, annotations: {service.kubernetes.io/topology-mode: Auto}}";

const JSON: &str = r#"{
  "services": [
    {
      "namespace": "shop",
      "name": "web",
      "port": "http",
      "protocol": "TCP",
      "family": "IPv4",
      "frontends": [
        {
          "kind": "ClusterIP",
          "address": "10.96.0.1",
          "port": 80,
          "verdict": "forward"
        },
        {
          "kind": "NodePort",
          "address": "*",
          "port": 30080,
          "verdict": "drop"
        }
      ],
      "cluster": [
        "10.0.0.9:8080"
      ],
      "local": [],
      "endpoints": [
        {
          "address": "10.0.0.10:8080",
          "used_by": [],
          "reason": "not used: hinted for zone c, this node is in a; not on this node"
        },
        {
          "address": "10.0.0.9:8080",
          "used_by": [
            "cluster"
          ],
          "reason": "cluster: ready, hinted for zone a; not local: not on this node"
        }
      ],
      "hints": "zone",
      "why_no_hints": null
    },
    {
      "namespace": "shop",
      "name": "web",
      "port": "http",
      "protocol": "TCP",
      "family": "IPv6",
      "frontends": [
        {
          "kind": "ClusterIP",
          "address": "fd00:96::1",
          "port": 80,
          "verdict": "forward"
        },
        {
          "kind": "NodePort",
          "address": "*",
          "port": 30080,
          "verdict": "forward"
        }
      ],
      "cluster": [
        "[fd00::9]:8080"
      ],
      "local": [
        "[fd00::9]:8080"
      ],
      "endpoints": [
        {
          "address": "[fd00::9]:8080",
          "used_by": [
            "cluster",
            "local"
          ],
          "reason": "cluster: ready; local: ready on this node"
        }
      ],
      "hints": "none",
      "why_no_hints": null
    }
  ]
}
"#;

const TABLE: &str = "\
node node-1, zone a: Service ports: 2

shop/web:http TCP IPv4
  ClusterIP     10.96.0.1:80  forward
  NodePort      *:30080       drop
  → 10.0.0.9:8080   cluster        cluster: ready, hinted for zone a; not local: not on this node
  → 10.0.0.10:8080                 not used: hinted for zone c, this node is in a; not on this node

shop/web:http TCP IPv6
  ClusterIP     [fd00:96::1]:80  forward
  NodePort      *:30080          forward
  → [fd00::9]:8080  cluster+local  cluster: ready; local: ready on this node
";

fn plan(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
    command
        .arg("plan")
        .arg("--objects")
        .arg(dir)
        .args(args)
        .output()
        .unwrap()
}

fn objects() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("web.yaml"), OBJECTS).unwrap();
    dir
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_json_is_what_programs_were_promised() {
    let output = plan(objects().path(), &["--node", "node-1", "-o", "json"]);

    assert_eq!(text(output.stderr), "");
    assert_eq!(text(output.stdout), JSON);
    assert!(output.status.success());
}

#[test]
fn the_table_is_for_people() {
    let output = plan(objects().path(), &["--node", "node-1"]);

    assert_eq!(text(output.stderr), "");
    assert_eq!(text(output.stdout), TABLE);
}

#[test]
fn a_given_zone_overrides_the_nodes() {
    let output = plan(objects().path(), &["--node", "node-1", "--zone", "c"]);

    let table = text(output.stdout);
    assert!(table.contains("→ 10.0.0.10:8080  cluster "), "{table}");
    assert!(!table.contains("→ 10.0.0.9:8080   cluster "), "{table}");
}

#[test]
fn a_zone_without_endpoints_and_a_service_without_hints_are_told_at_the_service() {
    let dir = objects();
    let uneven = OBJECTS
        .replace("metadata: {name: web, namespace: shop}", ASKING)
        .replace(", hints: {forZones: [{name: a}]}", ", zone: a")
        .replace(", hints: {forZones: [{name: c}]}", ", zone: c");
    fs::write(dir.path().join("web.yaml"), uneven).unwrap();
    let missing = plan(dir.path(), &["--node", "node-1"]);
    let uncovered = plan(objects().path(), &["--node", "node-1", "--zone", "b"]);

    let missing = text(missing.stdout);
    assert!(
        missing.contains(
            "  no hints: topology-mode Auto found the endpoints too few or too uneven \
             (zone a: 1, zone c: 1); see the events of the Service\n"
        ),
        "{missing}"
    );
    assert!(
        missing.contains("  no hints: [fd00::9]:8080 has no zone, as its Node has none\n"),
        "{missing}"
    );
    let uncovered = text(uncovered.stdout);
    assert!(
        uncovered.contains("  zone hints ignored: no ready endpoint is hinted for zone b\n"),
        "{uncovered}"
    );
}

#[test]
fn a_node_that_is_not_in_the_folder_is_a_warning() {
    let output = plan(objects().path(), &["--node", "node-9"]);

    assert!(output.status.success());
    assert_eq!(
        text(output.stderr),
        "warning: no Node node-9 in the folder, so it has no zone and zone hints are ignored; \
         add it, or give --zone\n"
    );
    assert!(text(output.stdout).starts_with("node node-9, no zone: Service ports: 2\n"));
}

#[test]
fn a_broken_file_is_a_warning_and_the_rest_is_planned() {
    let dir = objects();
    fs::write(dir.path().join("broken.yaml"), "kind: [").unwrap();

    let output = plan(dir.path(), &["--node", "node-1"]);

    assert!(output.status.success());
    let warnings = text(output.stderr);
    assert!(
        warnings.starts_with("warning: broken.yaml:1: unclosed bracket"),
        "{warnings}"
    );
    assert_eq!(text(output.stdout), TABLE);
}

#[test]
fn a_pipe_among_the_files_is_a_warning_and_not_waited_for() {
    let dir = objects();
    mkfifoat(CWD, dir.path().join("pipe.yaml"), Mode::RUSR).unwrap();

    let output = plan(dir.path(), &["--node", "node-1"]);

    assert!(output.status.success());
    assert_eq!(
        text(output.stderr),
        "warning: pipe.yaml: cannot be read: it is neither a file nor a link to one; \
         correct that, or remove it\n"
    );
    assert_eq!(text(output.stdout), TABLE);
}

#[test]
fn a_folder_that_cannot_be_read_is_an_error() {
    let output = plan(Path::new("/nonexistent/objects"), &["--node", "node-1"]);

    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"");
    assert_eq!(
        text(output.stderr),
        "error: cannot read the folder /nonexistent/objects: No such file or directory \
         (os error 2); create it, or name another one\n"
    );
}
