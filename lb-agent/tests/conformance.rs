//! The conformance vectors, as folders of objects, through the library's plan and the built binary.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use lb_agent::{
    cli::{
        Output,
        plan::{Args, plan},
    },
    model::ServicePort,
};
use lb_common::{
    select::Origin,
    tables::{Kind, List},
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Vector {
    name: String,
    node: Value,
    service: Value,
    endpoints: Vec<Value>,
    ip_family: Option<String>,
    why: String,
    expect_cluster: Option<Vec<String>>,
    expect_local: Option<Vec<String>>,
    clusterip_verdict: Option<String>,
    external_verdict: Option<String>,
}

/// What a vector expects, and what a plan says.
#[derive(Debug, PartialEq)]
struct Outcome {
    cluster: Option<Vec<String>>,
    local: Option<Vec<String>>,
    clusterip: Option<String>,
    external: Option<String>,
}

#[test]
fn the_library_plans_every_vector_as_expected() {
    for vector in vectors() {
        for layout in [one_json_list, a_yaml_file_for_each_object] {
            let dir = tempfile::tempdir().unwrap();
            layout(dir.path(), &vector.objects());
            let plan = plan(&vector.args(dir.path())).unwrap();

            assert_eq!(plan.problems, [], "{}", vector.name);
            assert_eq!(plan.services.len(), 1, "{}", vector.name);
            vector.check(&planned(&plan.services[0]));
        }
    }
}

#[test]
fn the_binary_prints_every_vector_as_expected() {
    for vector in vectors() {
        let dir = tempfile::tempdir().unwrap();
        one_json_list(dir.path(), &vector.objects());
        let output = Command::new(env!("CARGO_BIN_EXE_lb-agent"))
            .args([
                "plan",
                "-o",
                "json",
                "--node",
                vector.node_name(),
                "--objects",
            ])
            .arg(dir.path())
            .output()
            .unwrap();

        assert!(output.status.success(), "{}: {output:?}", vector.name);
        assert_eq!(output.stderr, b"", "{}", vector.name);
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            printed["services"].as_array().map(Vec::len),
            Some(1),
            "{}",
            vector.name
        );
        vector.check(&printed_outcome(&printed["services"][0]));
    }
}

fn vectors() -> Vec<Vector> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/endpoint-selection.json");
    let vectors: Vec<Vector> = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(vectors.len(), 68);
    vectors
}

fn one_json_list(dir: &Path, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    fs::write(dir.join("objects.json"), list.to_string()).unwrap();
}

/// In the reverse order, because the order in which slices arrive must not matter.
fn a_yaml_file_for_each_object(dir: &Path, objects: &[Value]) {
    for (i, object) in objects.iter().rev().enumerate() {
        // JSON is YAML.
        fs::write(dir.join(format!("{i}.yaml")), format!("{object:#}")).unwrap();
    }
}

impl Vector {
    fn node_name(&self) -> &str {
        self.node["name"].as_str().unwrap()
    }

    fn args(&self, dir: &Path) -> Args {
        Args {
            objects: dir.to_owned(),
            node: self.node_name().to_owned(),
            zone: None,
            output: Output::Json,
        }
    }

    fn objects(&self) -> Vec<Value> {
        let mut objects = vec![self.node_object(), self.service_object()];
        let slices = self.endpoints.iter().enumerate();
        objects.extend(slices.map(|(i, endpoint)| self.slice_object(i, endpoint)));
        objects
    }

    fn node_object(&self) -> Value {
        let zone = self.node["zone"].as_str();
        let labels = zone.map(|zone| json!({"topology.kubernetes.io/zone": zone}));
        let metadata = json!({"name": self.node["name"], "labels": labels});
        json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
    }

    fn service_object(&self) -> Value {
        let mut spec = self.service.clone();
        let fields = spec.as_object_mut().unwrap();
        let annotations = fields.remove("annotations");
        let ingress = fields.remove("loadBalancerIngress");
        let node_port = fields.remove("nodePort");
        let cluster_ip = if self.is_v6() {
            "fd00:96::1"
        } else {
            "10.96.0.1"
        };
        fields.insert("clusterIP".into(), json!(cluster_ip));
        fields.insert("clusterIPs".into(), json!([cluster_ip]));
        fields.insert("ipFamilies".into(), json!([self.family()]));
        fields.insert(
            "ports".into(),
            json!([{"name": "http", "protocol": "TCP", "port": 80, "nodePort": node_port}]),
        );
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "default", "annotations": annotations},
            "spec": spec,
            "status": {"loadBalancer": {"ingress": ingress}},
        })
    }

    /// One slice for each endpoint: merging them is part of the contract.
    fn slice_object(&self, i: usize, endpoint: &Value) -> Value {
        let names = |key: &str| {
            let names = endpoint[key].as_array()?;
            Some(
                names
                    .iter()
                    .map(|name| json!({"name": name}))
                    .collect::<Value>(),
            )
        };
        let port = endpoint.get("port").unwrap_or(&json!(80)).clone();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("web-{i}"),
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": self.family(),
            "ports": [{"name": "http", "protocol": "TCP", "port": port}],
            "endpoints": [{
                "addresses": [endpoint["ip"]],
                "conditions": {
                    "ready": endpoint["ready"],
                    "serving": endpoint["serving"],
                    "terminating": endpoint["terminating"],
                },
                "nodeName": endpoint["node"],
                "zone": endpoint["zone"],
                "hints": {"forZones": names("hints_zones"), "forNodes": names("hints_nodes")},
            }],
        })
    }

    fn is_v6(&self) -> bool {
        self.family() == "IPv6"
    }

    fn family(&self) -> &str {
        self.ip_family.as_deref().unwrap_or("IPv4")
    }

    fn check(&self, outcome: &Outcome) {
        let expected = Outcome {
            cluster: self.expect_cluster.clone(),
            local: self.expect_local.clone(),
            clusterip: self.clusterip_verdict.clone(),
            external: self.external_verdict.clone(),
        };
        assert_eq!(*outcome, expected, "{}: {}", self.name, self.why);
    }
}

fn planned(port: &ServicePort) -> Outcome {
    let list = |list| {
        let members = port.choice.list(list)?;
        Some(
            members
                .iter()
                .map(|endpoint| endpoint.addr().to_string())
                .collect(),
        )
    };
    let verdict = |external| {
        let kinds = port.frontends.iter().map(|at| at.kind);
        let kinds = kinds.filter(|kind| (*kind != Kind::ClusterIp) == external);
        the_one(kinds.map(|kind| port.verdict(kind, Origin::Outside).to_string()))
    };
    Outcome {
        cluster: list(List::Cluster),
        local: list(List::Local),
        clusterip: verdict(false),
        external: verdict(true),
    }
}

fn printed_outcome(service: &Value) -> Outcome {
    let list = |key: &str| {
        let members = service[key].as_array()?.iter();
        let ip = |member: &Value| {
            member
                .as_str()
                .unwrap()
                .rsplit_once(':')
                .unwrap()
                .0
                .to_owned()
        };
        Some(
            members
                .map(|at| ip(at).trim_matches(['[', ']']).to_owned())
                .collect(),
        )
    };
    let verdict = |external| {
        let frontends = service["frontends"].as_array().unwrap().iter();
        let frontends = frontends.filter(|at| (at["kind"] != "ClusterIP") == external);
        the_one(frontends.map(|at| at["verdict"].as_str().unwrap().to_owned()))
    };
    Outcome {
        cluster: list("cluster"),
        local: list("local"),
        clusterip: verdict(false),
        external: verdict(true),
    }
}

/// The verdict that all frontends share; `None` without frontends.
fn the_one(verdicts: impl Iterator<Item = String>) -> Option<String> {
    let verdicts: BTreeSet<_> = verdicts.collect();
    assert!(
        verdicts.len() <= 1,
        "frontends of one sort disagree: {verdicts:?}"
    );
    verdicts.into_iter().next()
}
