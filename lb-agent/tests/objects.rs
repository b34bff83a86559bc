//! The contract's rules about objects, as YAML in and Service ports out. What the conformance vectors
//! hold is not repeated here.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use lb_agent::{
    model::{
        Model, ServicePort,
        name::{Family, ServiceName},
        service::Policy,
        service_port::kind_name,
        state::{Changed, Settings},
    },
    source::document,
};
use lb_common::{addr::socket_addr, tables::List};

const NODE: &str = "node-1";

/// A model of the objects in some YAML.
struct World {
    model: Model,
    problems: Vec<String>,
}

impl World {
    fn of(yaml: &str) -> Self {
        Self::with(yaml, true)
    }

    fn with(yaml: &str, external_ips: bool) -> Self {
        let settings = Settings {
            node: NODE.to_owned(),
            zone: None,
            external_ips,
        };
        let mut world = Self {
            model: Model::new(settings),
            problems: Vec::new(),
        };
        let _first = world.relist(yaml);
        world
    }

    /// Make the YAML all there is.
    fn relist(&mut self, yaml: &str) -> Changed {
        let contents = document::parse("test.yaml", yaml).unwrap();
        self.problems = contents
            .problems
            .iter()
            .map(|problem| problem.what.clone())
            .collect();
        self.model.relist(contents.objects.into_values().collect())
    }

    fn ports(&self, name: &str) -> Vec<ServicePort> {
        self.model.service_ports(&ServiceName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        })
    }

    /// The Service ports of `web`, a line each: name, protocol, family, frontends, cluster list.
    fn web(&self) -> Vec<String> {
        self.ports("web").iter().map(line).collect()
    }
}

fn line(port: &ServicePort) -> String {
    let id = &port.id;
    let frontends = port.frontends.iter().map(|at| {
        let address = at.addr.map(|addr| socket_addr(addr, at.port).to_string());
        format!(
            " {} {}",
            kind_name(at.kind),
            address.unwrap_or_else(|| format!("*:{}", at.port))
        )
    });
    let members = port.choice.list(List::Cluster).unwrap_or_default();
    let members = members.iter().map(|member| format!(" {}", member.at));
    format!(
        "{:?} {} {}:{} ->{}",
        id.port,
        id.proto,
        id.family,
        frontends.collect::<String>(),
        members.collect::<String>()
    )
}

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  ipFamilies: [IPv4]
  ports: [{name: http, port: 80, targetPort: web}]
";

fn slice(name: &str, rest: &str) -> String {
    let labels = "{kubernetes.io/service-name: web}";
    format!(
        "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, labels: {labels}}}\naddressType: IPv4\n{rest}"
    )
}

fn http(name: &str, port: u16, addresses: &[&str]) -> String {
    let endpoints: String = addresses
        .iter()
        .map(|address| format!("- addresses: [{address}]\n"))
        .collect();
    slice(
        name,
        &format!("ports: [{{name: http, port: {port}}}]\nendpoints:\n{endpoints}"),
    )
}

#[test]
fn slices_of_a_service_are_merged() {
    let world = World::of(
        &[
            WEB,
            &http("web-1", 8080, &["10.0.0.1", "10.0.0.2"]),
            &http("web-2", 8080, &["10.0.0.2", "10.0.0.3"]),
        ]
        .concat(),
    );

    assert_eq!(
        world.web(),
        [r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 -> 10.0.0.1:8080 10.0.0.2:8080 10.0.0.3:8080"#]
    );
}

#[test]
fn a_named_target_port_may_have_several_numbers() {
    let world = World::of(
        &[
            WEB,
            &http("old", 8080, &["10.0.0.1"]),
            &http("new", 9090, &["10.0.0.1", "10.0.0.2"]),
        ]
        .concat(),
    );

    assert_eq!(
        world.web(),
        [r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 -> 10.0.0.1:8080 10.0.0.1:9090 10.0.0.2:9090"#]
    );
}

#[test]
fn moving_an_endpoint_between_slices_changes_nothing_in_the_list() {
    let mut world = World::of(&[WEB, &http("web-1", 80, &["10.0.0.1"])].concat());
    let before = world.web();

    let changed = world.relist(&[WEB, &http("web-2", 80, &["10.0.0.1"])].concat());

    assert_eq!(world.web(), before);
    assert_eq!(changed.services.len(), 1);
}

#[test]
fn an_edited_label_moves_a_slice_to_the_other_service() {
    let other = WEB
        .replace("web}", "other}")
        .replace("10.96.0.1", "10.96.0.2");
    let slice = http("web-1", 80, &["10.0.0.1"]);
    let mut world = World::of(&[WEB, "---", &other, &slice].concat());

    let moved = slice.replace("service-name: web", "service-name: other");
    let changed = world.relist(&[WEB, "---", &other, &moved].concat());

    assert_eq!(
        world.web(),
        [r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 ->"#]
    );
    assert_eq!(
        world.ports("other").iter().map(line).collect::<Vec<_>>(),
        [r#""http" TCP IPv4: ClusterIP 10.96.0.2:80 -> 10.0.0.1:80"#]
    );
    assert_eq!(changed.services.len(), 2);
}

#[test]
fn a_terminating_twin_never_replaces_a_live_endpoint_in_any_order() {
    let dying = "ports: [{name: http, port: 80}]\nendpoints:\n- addresses: [10.0.0.1]\n  \
                 conditions: {ready: false, serving: false, terminating: true}\n";
    for name in ["a", "z"] {
        let live = http("m", 80, &["10.0.0.1"]);
        let world = World::of(&[WEB, &slice(name, dying), &live].concat());

        assert_eq!(
            world.web(),
            [r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 -> 10.0.0.1:80"#],
            "{name}"
        );
    }
}

#[test]
fn between_two_live_twins_the_later_slice_by_name_wins() {
    let unready = "ports: [{name: http, port: 80}]\nendpoints:\n- addresses: [10.0.0.1]\n  \
                   conditions: {ready: false}\n";
    for (name, members) in [("a", " 10.0.0.1:80"), ("z", "")] {
        let world =
            World::of(&[WEB, &slice(name, unready), &http("m", 80, &["10.0.0.1"])].concat());

        let expected = format!(r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 ->{members}"#);
        assert_eq!(world.web(), [expected], "{name}");
    }
}

#[test]
fn the_families_of_a_service_share_nothing() {
    let v6 = http("web-6", 80, &["\"fd00::1\""]).replace("addressType: IPv4", "addressType: IPv6");
    let service = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  clusterIP: fd00:96::1
  clusterIPs: ['fd00:96::1', 10.96.0.1]
  ipFamilies: [IPv6, IPv4]
  externalIPs: [203.0.113.7]
  loadBalancerSourceRanges: [192.0.2.0/24]
  ports: [{name: http, port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 192.0.2.10}, {ip: 'fd00:1b::1'}]}}
";
    let world = World::of(&[service, &http("web-4", 80, &["10.0.0.1"]), &v6].concat());

    assert_eq!(
        world.web(),
        [
            r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 NodePort *:30080 LoadBalancer 192.0.2.10:80 ExternalIP 203.0.113.7:80 -> 10.0.0.1:80"#,
            r#""http" TCP IPv6: ClusterIP [fd00:96::1]:80 NodePort *:30080 LoadBalancer [fd00:1b::1]:80 -> [fd00::1]:80"#,
        ]
    );
    let ranges: Vec<_> = world
        .ports("web")
        .iter()
        .map(|port| port.source_ranges.len())
        .collect();
    assert_eq!(ranges, [1, 0], "a v4-only list leaves the v6 address open");
}

#[test]
fn a_range_that_is_everything_lifts_its_familys_restriction() {
    for (ranges, expected) in [
        ("[192.0.2.0/24, ' 198.51.100.0/24 ']", 2),
        ("[192.0.2.0/24, 0.0.0.0/0]", 0),
        ("[192.0.2.0/24, '::/0']", 1),
        ("[192.0.2.0/24, nonsense]", 1),
    ] {
        let ranges = format!("spec:\n  loadBalancerSourceRanges: {ranges}");
        let world = World::of(&WEB.replace("spec:", &ranges));

        assert_eq!(
            world.ports("web")[0].source_ranges.len(),
            expected,
            "{ranges}"
        );
    }
}

#[test]
fn families_come_from_the_positions_or_from_the_old_field() {
    for (spec, expected) in [
        ("clusterIP: 10.96.0.1", vec!["10.96.0.1:80"]),
        ("clusterIP: 'fd00::1'", vec!["[fd00::1]:80"]),
        (
            "clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00::1']",
            vec!["10.96.0.1:80"],
        ),
        (
            "clusterIP: 10.96.0.1, ipFamilies: [IPv4]",
            vec!["10.96.0.1:80"],
        ),
        (
            "clusterIP: 'fd00::1', clusterIPs: ['fd00::1', 10.96.0.1], ipFamilies: [IPv6, IPv4]",
            vec!["10.96.0.1:80", "[fd00::1]:80"],
        ),
        (
            "clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ipFamilies: [IPv6]",
            vec![],
        ),
        ("clusterIP: 010.096.000.001", vec!["10.96.0.1:80"]),
        ("clusterIP: None", vec![]),
        ("clusterIP: ''", vec![]),
        ("clusterIP: 10.96.0.1, type: ExternalName", vec![]),
    ] {
        let world = World::of(&format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, \
             spec: {{ports: [{{port: 80}}], {spec}}}}}"
        ));
        let ports = world.ports("web");
        let frontends = ports.iter().flat_map(|port| &port.frontends);
        let found: Vec<_> = frontends
            .map(|at| socket_addr(at.addr.unwrap(), at.port).to_string())
            .collect();

        assert_eq!(found, expected, "{spec}");
    }
}

#[test]
fn addresses_with_leading_zeros_are_decimal() {
    let world = World::of(
        &[
            &WEB.replace("10.96.0.1", "010.096.000.001"),
            &http("web-1", 80, &["010.000.000.001"]),
            &http("web-2", 80, &["10.0.0.1"]),
        ]
        .map(String::as_str)
        .concat(),
    );

    assert_eq!(
        world.web(),
        [r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 -> 10.0.0.1:80"#]
    );
}

#[test]
fn only_addresses_that_are_ours_are_answered() {
    for (entry, expected) in [
        ("{ip: 192.0.2.10}", true),
        ("{ip: 192.0.2.10, ipMode: VIP}", true),
        ("{ip: 192.0.2.10, ipMode: Proxy}", false),
        ("{hostname: lb.example}", false),
        ("{ip: nonsense}", false),
    ] {
        let status = format!("status: {{loadBalancer: {{ingress: [{entry}]}}}}\n");
        let world = World::of(&[WEB, &status].concat());

        assert_eq!(world.web()[0].contains("LoadBalancer"), expected, "{entry}");
    }
}

#[test]
fn external_ips_can_be_switched_off() {
    let service = WEB.replace("spec:", "spec:\n  externalIPs: [203.0.113.7]");

    assert!(World::with(&service, true).web()[0].contains("ExternalIP 203.0.113.7:80"));
    assert!(!World::with(&service, false).web()[0].contains("ExternalIP"));
}

#[test]
fn the_external_policy_counts_only_where_something_is_external() {
    for (spec, expected) in [
        ("type: NodePort", Policy::Local),
        ("type: LoadBalancer", Policy::Local),
        ("type: ClusterIP", Policy::Cluster),
        ("externalIPs: [203.0.113.7]", Policy::Local),
        ("externalIPs: []", Policy::Cluster),
    ] {
        let spec = format!("spec:\n  externalTrafficPolicy: Local\n  {spec}");
        let world = World::of(&WEB.replace("spec:", &spec));

        assert_eq!(world.ports("web")[0].external_policy, expected, "{spec}");
    }
}

#[test]
fn affinity_has_the_apis_default_and_bounds() {
    for (spec, expected) in [
        ("sessionAffinity: None", None),
        ("sessionAffinity: ClientIP", Some(10_800)),
        (
            "sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}",
            Some(60),
        ),
        (
            "sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}",
            Some(10_800),
        ),
    ] {
        let world = World::of(&WEB.replace("spec:", &format!("spec:\n  {spec}")));

        assert_eq!(world.ports("web")[0].affinity_secs, expected, "{spec}");
    }
}

#[test]
fn one_number_may_serve_every_protocol() {
    let ports = "ports: [{port: 53, protocol: UDP, name: u}, {port: 53, name: t}, \
                 {port: 53, protocol: SCTP, name: s}]";
    let service = WEB.replace("ports: [{name: http, port: 80, targetPort: web}]", ports);
    let slice = slice(
        "web-1",
        "ports: [{port: 5353, protocol: UDP, name: u}, {port: 5354, protocol: TCP, name: u}]\n\
         endpoints: [{addresses: [10.0.0.1]}]\n",
    );

    assert_eq!(
        World::of(&[&service, &slice].map(String::as_str).concat()).web(),
        [
            r#""s" SCTP IPv4: ClusterIP 10.96.0.1:53 ->"#,
            r#""t" TCP IPv4: ClusterIP 10.96.0.1:53 ->"#,
            r#""u" UDP IPv4: ClusterIP 10.96.0.1:53 -> 10.0.0.1:5353"#,
        ]
    );
}

#[test]
fn slice_ports_without_name_or_number_are_left_out_by_name() {
    for (port, expected) in [
        (
            "{port: 80}",
            "EndpointSlice default/web-1: ports[0] is ignored: it has no name",
        ),
        (
            "{name: ''}",
            "EndpointSlice default/web-1: ports[0] is ignored: it has no port number",
        ),
        (
            "{name: '', port: 0}",
            "EndpointSlice default/web-1: ports[0] is ignored: 0 is not a port",
        ),
        (
            "{name: '', port: 70000}",
            "EndpointSlice default/web-1: ports[0] is ignored: 70000 is",
        ),
    ] {
        let slice = slice(
            "web-1",
            &format!(
                "ports: [{port}, {{name: http, port: 80}}]\nendpoints: [{{addresses: [10.0.0.1]}}]"
            ),
        );
        let world = World::of(&[WEB, &slice].concat());

        assert_eq!(
            world.web(),
            [r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 -> 10.0.0.1:80"#]
        );
        assert!(
            world.problems[0].starts_with(expected),
            "{:?}",
            world.problems
        );
    }
}

#[test]
fn an_unnamed_service_port_meets_the_empty_name() {
    let service = WEB.replace("name: http, ", "");
    let slice = http("web-1", 8080, &["10.0.0.1"]).replace("name: http,", "name: '',");

    assert_eq!(
        World::of(&[&service, &slice].map(String::as_str).concat()).web(),
        [r#""" TCP IPv4: ClusterIP 10.96.0.1:80 -> 10.0.0.1:8080"#]
    );
}

#[test]
fn bad_endpoints_are_left_out_alone() {
    let world = World::of(
        &[
            WEB,
            &http("web-1", 80, &["10.0.0.1", "nonsense", "\"fd00::1\"", ""]),
        ]
        .concat(),
    );

    assert_eq!(
        world.web(),
        [r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 -> 10.0.0.1:80"#]
    );
    assert_eq!(
        world.problems,
        [
            r#"EndpointSlice default/web-1: endpoints[1] is ignored: "nonsense" is not an IP address"#,
            "EndpointSlice default/web-1: endpoints[2] is ignored: fd00::1 is not an IPv4 address",
            "EndpointSlice default/web-1: endpoints[3] is ignored: it has no address",
        ]
    );
}

#[test]
fn an_empty_zone_name_is_a_hint_like_any_other() {
    let slice = slice(
        "web-1",
        "ports: [{name: http, port: 80}]\nendpoints:\n\
         - {addresses: [10.0.0.1], hints: {forZones: [{name: a}]}}\n\
         - {addresses: [10.0.0.2], hints: {forZones: [{name: ''}]}}\n",
    );
    for (labels, member) in [
        ("{topology.kubernetes.io/zone: a}", "10.0.0.1:80"),
        ("{topology.kubernetes.io/zone: ''}", "10.0.0.2:80"),
        ("{}", "10.0.0.2:80"),
    ] {
        let node = format!(
            "\n---\n{{apiVersion: v1, kind: Node, metadata: {{name: {NODE}, labels: {labels}}}}}"
        );
        let world = World::of(&[WEB, &slice, &node].concat());

        let expected = format!(r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 -> {member}"#);
        assert_eq!(world.web(), [expected], "{labels}");
    }
}

#[test]
fn a_node_is_leaving_when_it_is_deleted_or_the_autoscaler_says_so() {
    for (metadata, spec, eligible) in [
        ("", "", true),
        ("", "unschedulable: true", true),
        (
            "",
            "taints: [{key: node.kubernetes.io/not-ready, effect: NoExecute}]",
            true,
        ),
        (
            "",
            "taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]",
            false,
        ),
        ("deletionTimestamp: '2026-01-02T03:04:05Z'", "", false),
    ] {
        let world = World::of(&format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {NODE}, {metadata}}}, spec: {{{spec}}}}}"
        ));

        assert_eq!(world.problems, [""; 0], "{metadata} {spec}");
        assert_eq!(
            world.model.node_is_eligible(),
            eligible,
            "{metadata} {spec}"
        );
    }
    assert!(!World::of("").model.node_is_eligible(), "an unknown node");
}

#[test]
fn a_nodes_own_address_in_a_family_is_the_first_internal_one_or_else_the_first_external_one() {
    let internal = |address| format!("{{type: InternalIP, address: '{address}'}}");
    let external = |address| format!("{{type: ExternalIP, address: '{address}'}}");
    let name = "{type: Hostname, address: node-1}".to_owned();
    for (given, v4, v6) in [
        (vec![], None, None),
        (vec![name.clone()], None, None),
        (
            vec![
                name,
                internal("10.0.0.1"),
                internal("10.0.0.2"),
                internal("fd00::1"),
            ],
            Some("10.0.0.1"),
            Some("fd00::1"),
        ),
        (
            vec![
                external("192.0.2.1"),
                external("2001:db8::1"),
                internal("10.0.0.1"),
            ],
            Some("10.0.0.1"),
            Some("2001:db8::1"),
        ),
    ] {
        let given = given.join(", ");
        let world = World::of(&format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {NODE}}}, status: {{addresses: [{given}]}}}}"
        ));

        assert_eq!(world.problems, [""; 0], "{given}");
        let address = |family| {
            world
                .model
                .node_address(family)
                .map(|addr| addr.to_string())
        };
        assert_eq!(address(Family::V4).as_deref(), v4, "{given}");
        assert_eq!(address(Family::V6).as_deref(), v6, "{given}");
    }
    let world = World::of(&format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: {NODE}}}, status: {{addresses: [{}]}}}}",
        internal("here")
    ));
    assert_eq!(world.problems.len(), 1, "{:?}", world.problems);
}

#[test]
fn the_trigger_of_a_slice_is_read_from_its_annotation_to_the_nanosecond() {
    for (written, expected) in [
        (
            "2026-01-02T03:04:05.000000006Z",
            Some(1_767_323_045_000_000_006),
        ),
        ("2026-01-02T04:04:05+01:00", Some(1_767_323_045_000_000_000)),
        ("yesterday", None),
        ("", None),
    ] {
        let annotation = "endpoints.kubernetes.io/last-change-trigger-time";
        let slice = http("web-1", 80, &["10.0.0.1"]).replace(
            "metadata: {",
            &format!("metadata: {{annotations: {{{annotation}: '{written}'}}, "),
        );
        let mut world = World::of(&[WEB, &slice].concat());

        assert_eq!(world.problems, [""; 0], "{written}");
        let taken = world.model.take_triggers();
        let taken: Vec<_> = taken.iter().map(|(_, time)| time.0).collect();
        assert_eq!(taken, Vec::from_iter(expected), "{written}");
    }
}

#[test]
fn slices_that_are_nobodys_are_left_alone() {
    let slice = http("web-1", 80, &["10.0.0.1"]);
    for ignored in [
        slice.replace("labels: {", "labels: {service.kubernetes.io/headless: '', "),
        slice.replace("addressType: IPv4", "addressType: FQDN"),
        slice.replace("service-name: web", "service-name: ''"),
        slice.replace("metadata: {", "metadata: {namespace: elsewhere, "),
    ] {
        let world = World::of(&[WEB, &ignored].concat());

        assert_eq!(
            world.web(),
            [r#""http" TCP IPv4: ClusterIP 10.96.0.1:80 ->"#],
            "{ignored}"
        );
    }
}

#[test]
fn another_proxys_service_goes_and_comes_with_its_label() {
    let labelled = WEB.replace(
        "metadata: {name: web}",
        "metadata: {name: web, labels: {service.kubernetes.io/service-proxy-name: other}}",
    );
    let mut world = World::of(WEB);

    assert_eq!(world.relist(&labelled).services.len(), 1);
    assert_eq!(world.web(), [""; 0]);
    assert_eq!(world.relist(WEB).services.len(), 1);
    assert_eq!(world.web().len(), 1);
}

#[test]
fn what_nobody_reads_changes_nothing() {
    let slice = http("web-1", 80, &["10.0.0.1"]);
    let mut world = World::of(&[WEB, &slice].concat());
    let annotated = [WEB, &slice].concat().replace(
        "metadata: {name: web",
        "metadata: {resourceVersion: '7', annotations: {a: b}, name: web",
    );

    let changed = world.relist(&annotated);

    assert!(changed.is_empty(), "{changed:?}");
}

#[test]
fn names_that_kubernetes_would_refuse_are_rejected() {
    let long = "x".repeat(64);
    for (yaml, why) in [
        (
            WEB.replace("name: web", &format!("name: {long}")),
            "metadata.name has 64 characters",
        ),
        (
            WEB.replace("{name: web", &format!("{{namespace: {long}, name: web")),
            "metadata.namespace",
        ),
        (WEB.replace("{name: web}", "{}"), "it has no metadata.name"),
        (
            WEB.replace("name: http", &format!("name: {long}")),
            "spec.ports[0] is ignored: its name has 64",
        ),
    ] {
        let world = World::of(&yaml);

        assert!(world.problems[0].contains(why), "{:?}", world.problems);
        assert_eq!(world.web(), [""; 0]);
    }
}
