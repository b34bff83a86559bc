//! `lb-agent why --objects` as its users meet it: the built binary, which says of one connection what
//! becomes of it and why. What it says of the kernel's maps is in the lab, `tests/tests/why.rs`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    process::{Command, Output},
};

use serde_json::Value;

/// Zones a, b and c, and a node without one; the Services that are not about hints.
const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: a}}
---
apiVersion: v1
kind: Node
metadata: {name: node-b, labels: {topology.kubernetes.io/zone: b}}
---
apiVersion: v1
kind: Node
metadata: {name: node-c, labels: {topology.kubernetes.io/zone: c}}
---
apiVersion: v1
kind: Node
metadata: {name: stray}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.2
  clusterIPs: [10.96.0.2]
  ipFamilies: [IPv4]
  ports: [{name: dns, port: 53, protocol: UDP, nodePort: 30053}]
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: shop}
spec:
  clusterIP: 10.96.0.3
  clusterIPs: [10.96.0.3]
  ipFamilies: [IPv4]
  internalTrafficPolicy: Local
  sessionAffinity: ClientIP
  ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: near-1, namespace: shop, labels: {kubernetes.io/service-name: near}}
addressType: IPv4
ports: [{name: '', port: 8080}]
endpoints:
- {addresses: [10.0.3.1], nodeName: node-a, zone: a}
- {addresses: [10.0.3.2], nodeName: node-a, zone: a, conditions: {ready: false, serving: false}}
";

const AUTO: &str = "annotations: {service.kubernetes.io/topology-mode: Auto}";
const PREFER: &str = "trafficDistribution: PreferSameZone";

/// `shop/web` at 10.96.0.1:80, with an endpoint for each zone and its hint.
fn web(annotations: &str, spec: &str, endpoints: &[(&str, Option<&str>)]) -> String {
    let endpoints = (1..).zip(endpoints).map(|(last, (zone, hint))| {
        let hint = hint.map(|hint| format!(", hints: {{forZones: [{{name: {hint}}}]}}"));
        let hint = hint.unwrap_or_default();
        format!("- {{addresses: [10.0.0.{last}], nodeName: node-{zone}, zone: {zone}{hint}}}\n")
    });
    format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop, {annotations}}}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  ipFamilies: [IPv4]
  ports: [{{name: http, port: 80}}]
  {spec}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080}}]
endpoints:
{}",
        endpoints.collect::<String>()
    )
}

/// Hinted for the zones that they are in.
fn hinted_in_a_and_c() -> String {
    web("", PREFER, &[("a", Some("a")), ("c", Some("c"))])
}

fn why(objects: &str, node: &str, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("all.yaml"), format!("{CLUSTER}{objects}")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
    command.arg("why").arg("--objects").arg(dir.path());
    command.args(["--node", node]).args(args).output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

fn table(objects: &str, node: &str, args: &[&str]) -> String {
    let output = why(objects, node, args);
    assert_eq!(text(output.stderr), "");
    text(output.stdout)
}

fn json(objects: &str, node: &str, args: &[&str]) -> Value {
    let output = why(objects, node, &[args, &["-o", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Why hints do not count for who connects to `shop/web` on this node, and what to do about it.
fn no_hints(objects: &str, node: &str) -> [String; 2] {
    let answer = json(objects, node, &["10.96.0.1:80"]);
    assert_eq!(answer["verdict"], "forward", "{answer}");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    [text(&answer["why_no_hints"]), text(&answer["next"][0])]
}

#[test]
fn hints_that_are_followed_leave_out_the_endpoints_of_other_zones() {
    assert_eq!(
        table(&hinted_in_a_and_c(), "node-a", &["pod", "10.96.0.1:80"]),
        "\
forward  pod → 10.96.0.1:80 TCP
verdict   forwarded to 10.0.0.1:8080
node      node-a, zone a
service   shop/web:http TCP IPv4, at its ClusterIP
list      cluster: internalTrafficPolicy is Cluster
hints     followed: what is hinted for zone a
  → 10.0.0.1:8080                zone a               node        1 in 1; ready, hinted for zone a
  · 10.0.0.2:8080                hinted for zone c, this node is in a
"
    );
}

#[test]
fn five_endpoints_in_one_zone_and_one_in_another_are_too_uneven() {
    let mut endpoints = vec![("a", None); 5];
    endpoints.push(("c", None));
    let [why, next] = no_hints(&web(AUTO, "", &endpoints), "node-a");

    assert_eq!(
        why,
        "no hints: topology-mode Auto found the endpoints too uneven for the zones' shares of the \
         processors (zone a: 5, zone c: 1)"
    );
    assert!(
        next.contains("kubectl -n shop events --for service/web"),
        "{next}"
    );
}

#[test]
fn fewer_endpoints_than_zones_are_too_few() {
    let [why, _] = no_hints(&web(AUTO, "", &[("a", None), ("c", None)]), "node-a");

    assert_eq!(
        why,
        "no hints: topology-mode Auto wants an endpoint for each zone, and there are fewer endpoints \
         (2) than zones (3: a, b, c; zone a: 1, zone c: 1)"
    );
}

#[test]
fn a_node_without_a_zone_follows_no_hint() {
    let [why, next] = no_hints(&hinted_in_a_and_c(), "stray");

    assert_eq!(why, "zone hints ignored: this node has no zone");
    assert!(
        next.contains("kubectl label node stray topology.kubernetes.io/zone=ZONE"),
        "{next}"
    );
}

#[test]
fn a_zone_without_endpoints_follows_no_hint() {
    let [why, next] = no_hints(&hinted_in_a_and_c(), "node-b");

    assert_eq!(
        why,
        "zone hints ignored: no ready endpoint is hinted for zone b"
    );
    assert_eq!(next, "run a pod of the Service in this zone");
}

#[test]
fn one_endpoint_without_a_hint_is_named() {
    let some = web("", PREFER, &[("a", Some("a")), ("c", None)]);
    let [why, next] = no_hints(&some, "node-a");

    assert_eq!(why, "zone hints ignored: 10.0.0.2:8080 has none");
    assert!(
        next.contains("endpointslices -l kubernetes.io/service-name=web"),
        "{next}"
    );
}

#[test]
fn hints_that_are_asked_for_and_not_given_are_missed() {
    let [why, _] = no_hints(&web("", PREFER, &[("a", None), ("c", None)]), "node-a");

    assert!(
        why.starts_with("no hints: trafficDistribution: PreferSameZone asks for them"),
        "{why}"
    );
}

#[test]
fn a_service_that_asks_for_no_hints_misses_none() {
    let answer = json(
        &web("", "", &[("a", None), ("c", None)]),
        "node-a",
        &["10.96.0.1:80"],
    );

    assert_eq!(answer["hints"], "none");
    assert_eq!(answer["why_no_hints"], Value::Null);
    assert_eq!(answer["next"], serde_json::json!([]));
    let chances = answer["backends"].as_array().unwrap().iter();
    assert!(chances.eq(&[
        serde_json::json!({"address": "10.0.0.1:8080", "zone": "a", "locality": "node", "chance": 0.5, "clients": 0}),
        serde_json::json!({"address": "10.0.0.2:8080", "zone": "c", "locality": "other-zone", "chance": 0.5, "clients": 0}),
    ]), "{answer}");
}

/// What scripts go by: the exit code, the verdict and the counters.
#[test]
fn every_verdict_has_its_reason_and_its_exit_code() {
    for (node, args, code, verdict, reason, part) in [
        (
            "node-a",
            &["10.96.0.3:80"][..],
            0,
            "forward",
            Some("forward-node"),
            "forwarded to 10.0.3.1:8080",
        ),
        (
            "node-b",
            &["10.96.0.3:80"],
            4,
            "drop",
            Some("drop-no-local-endpoint"),
            "none on this node (node-b)",
        ),
        (
            "node-a",
            &["10.96.0.2:53", "--protocol", "udp"],
            4,
            "reject",
            Some("reject-no-endpoints"),
            "no endpoint of the Service port is ready",
        ),
        (
            "node-a",
            &["10.96.0.2:53"],
            4,
            "reject",
            Some("reject-unowned-port"),
            "ClusterIP of shop/empty, which has no port 53/TCP",
        ),
        (
            "node-a",
            &["10.96.7.7:80"],
            4,
            "drop",
            Some("drop-unallocated"),
            "no Service has it",
        ),
        (
            "node-a",
            &["10.0.0.1:80"],
            4,
            "pass",
            Some("pass-not-a-service"),
            "no Service has this address",
        ),
        (
            "node-a",
            &["10.0.0.1:30053", "--protocol", "udp"],
            4,
            "pass",
            Some("pass-not-a-service"),
            "a NodePort of shop/empty:dns",
        ),
        (
            "node-a",
            &["outside", "10.96.0.3:80"],
            4,
            "pass",
            None,
            "packets that come from outside",
        ),
    ] {
        let output = why("", node, &[args, &["-o", "json"]].concat());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();

        assert_eq!(output.status.code(), Some(code), "{answer}");
        assert_eq!(answer["verdict"], verdict, "{answer}");
        let reasons: Vec<&str> = reason.into_iter().collect();
        assert_eq!(answer["reasons"], serde_json::json!(reasons), "{answer}");
        let explanation = answer["explanation"].as_str().unwrap();
        assert!(explanation.contains(part), "{explanation}");
    }
}

#[test]
fn another_port_of_the_address_is_suggested() {
    let table = table("", "node-a", &["10.96.0.2:53"]);

    assert!(
        table.contains("next      ports at this address: 53/UDP (shop/empty:dns)\n"),
        "{table}"
    );
}

#[test]
fn the_local_list_says_why_each_endpoint_is_in_it_or_not() {
    assert_eq!(
        table("", "node-a", &["10.96.0.3:80"]),
        "\
forward  pod → 10.96.0.3:80 TCP
verdict   forwarded to 10.0.3.1:8080
node      node-a, zone a
service   shop/near TCP IPv4, at its ClusterIP
list      local, of endpoints on this node: internalTrafficPolicy is Local
affinity  10800 s; each client keeps its backend, and this one is not known
  → 10.0.3.1:8080                zone a               node        1 in 1; ready on this node
  · 10.0.3.2:8080                not ready
"
    );
    let elsewhere = table("", "node-b", &["10.96.0.3:80"]);
    assert!(
        elsewhere.contains("  · 10.0.3.1:8080                not on this node\n"),
        "{elsewhere}"
    );
}

#[test]
fn an_address_is_no_client_and_a_name_is_no_address() {
    for (args, part) in [
        (
            &["10.0.0.9", "10.96.0.1:80"][..],
            "run `why here` in its network namespace",
        ),
        (&["0", "10.96.0.1:80"], "the cookie of a network namespace"),
        (&["web.shop:80"], "it is not ADDRESS:PORT"),
    ] {
        let output = why("", "node-a", args);

        assert_eq!(output.status.code(), Some(2));
        let error = text(output.stderr);
        assert!(error.contains(part), "{error}");
    }
}
