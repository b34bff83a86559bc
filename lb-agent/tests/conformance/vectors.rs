//! The conformance vectors as Kubernetes objects, each a Service of a namespace and address of its own, so
//! that one agent can serve them all. Shared by the root-free tests and by the lab.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
pub(crate) struct Vector {
    pub(crate) name: String,
    node: Value,
    service: Value,
    endpoints: Vec<Value>,
    ip_family: Option<String>,
    why: String,
    expect_cluster: Option<Vec<String>>,
    expect_local: Option<Vec<String>>,
    clusterip_verdict: Option<String>,
    external_verdict: Option<String>,
    /// Which one it is, from 0.
    #[serde(default)]
    index: u8,
}

/// What a vector expects, and what a plan or the maps say.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) cluster: Option<Vec<String>>,
    pub(crate) local: Option<Vec<String>>,
    pub(crate) clusterip: Option<String>,
    pub(crate) external: Option<String>,
}

/// All of them.
pub(crate) fn vectors() -> Vec<Vector> {
    let text = include_str!("../../conformance/endpoint-selection.json");
    let mut vectors: Vec<Vector> = serde_json::from_str(text).unwrap();
    assert_eq!(vectors.len(), 68);
    for (index, vector) in (0..).zip(&mut vectors) {
        vector.index = index;
    }
    vectors
}

/// By the node that each is about: its name and zone.
pub(crate) fn by_node() -> BTreeMap<(String, Option<String>), Vec<Vector>> {
    let mut nodes: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for vector in vectors() {
        let zone = vector.node["zone"].as_str().map(str::to_owned);
        let node = (vector.node_name().to_owned(), zone);
        nodes.entry(node).or_default().push(vector);
    }
    nodes
}

/// The objects of these vectors, which are about one node.
pub(crate) fn objects(vectors: &[Vector]) -> Value {
    let node = vectors.first().map(Vector::node_object);
    let items: Value = node
        .into_iter()
        .chain(vectors.iter().flat_map(Vector::objects))
        .collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

impl Vector {
    pub(crate) fn node_name(&self) -> &str {
        self.node["name"].as_str().unwrap()
    }

    /// The Service and its slices.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let mut objects = vec![self.service_object()];
        let slices = self.endpoints.iter().enumerate();
        objects.extend(slices.map(|(i, endpoint)| self.slice_object(i, endpoint)));
        objects
    }

    pub(crate) fn node_object(&self) -> Value {
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
        let node_port = node_port.map(|_| 30_000 + u16::from(self.index));
        let cluster_ip = self.cluster_ip();
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
            "metadata": {"name": "web", "namespace": self.namespace(), "annotations": annotations},
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
                "namespace": self.namespace(),
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

    pub(crate) fn namespace(&self) -> String {
        format!("vector-{}", self.index)
    }

    pub(crate) fn cluster_ip(&self) -> IpAddr {
        match self.family() {
            "IPv6" => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, self.index.into()).into(),
            _ => Ipv4Addr::new(10, 96, 1, self.index).into(),
        }
    }

    /// Whether clients outside have an address for it.
    pub(crate) fn is_external(&self) -> bool {
        self.external_verdict.is_some()
    }

    fn family(&self) -> &str {
        self.ip_family.as_deref().unwrap_or("IPv4")
    }

    pub(crate) fn check(&self, outcome: &Outcome) {
        let expected = Outcome {
            cluster: self.expect_cluster.clone(),
            local: self.expect_local.clone(),
            clusterip: self.clusterip_verdict.clone(),
            external: self.external_verdict.clone(),
        };
        assert_eq!(*outcome, expected, "{}: {}", self.name, self.why);
    }
}
