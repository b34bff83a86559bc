//! Objects as users, kubelets and schedulers write them to an API server. The lab's `objects.rs` has
//! those that a source reads, which here the cluster's own controllers make.

use serde_json::{Value, json};

use crate::Pod;

/// A Node as its kubelet reports it: ready, in a zone, with so many processors.
#[must_use]
pub fn node(name: &str, zone: &str, cpus: u32) -> Value {
    let cpu = json!({"cpu": cpus.to_string()});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name,
            "topology.kubernetes.io/zone": zone,
        }},
        "status": {
            "capacity": cpu,
            "allocatable": cpu,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// A namespace, ready for Pods: those are refused before their ServiceAccount exists.
#[must_use]
pub fn namespace(name: &str) -> [Value; 2] {
    let account = json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"namespace": name, "name": "default"},
    });
    [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        account,
    ]
}

/// The object, in this namespace.
#[must_use]
pub fn within(namespace: &str, mut object: Value) -> Value {
    object["metadata"]["namespace"] = json!(namespace);
    object
}

/// The addresses of a Pod, the primary one first.
#[derive(Clone, Debug)]
pub struct Addresses(Vec<String>);

impl Addresses {
    /// Over IPv4 alone.
    #[must_use]
    pub fn v4(addr: &str) -> Self {
        Self(vec![addr.to_owned()])
    }
}

impl From<&Pod> for Addresses {
    fn from(pod: &Pod) -> Self {
        Self(vec![pod.addr().to_string(), pod.addr6().to_string()])
    }
}

/// A Pod of an app in `default`, scheduled and running; its addresses are those of a pod of the lab.
#[must_use]
pub fn pod(name: &str, app: &str, node: &str, pod: &Pod) -> Value {
    pod_at(name, app, node, &pod.into())
}

/// The same, at any addresses.
#[must_use]
pub fn pod_at(name: &str, app: &str, node: &str, Addresses(ips): &Addresses) -> Value {
    let pod_ips = ips.iter().map(|ip| json!({"ip": ip}));
    let pod_ips: Vec<_> = pod_ips.collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "labels": {"app": app}},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "server", "image": "server"}],
        },
        "status": {
            "phase": "Running",
            "podIP": ips.first(),
            "podIPs": pod_ips,
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    })
}

/// A dual-stack Service in `default` that selects an app; the cluster gives it its addresses.
#[must_use]
pub fn service(app: &str, port: u16, target_port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": app},
        "spec": {
            "selector": {"app": app},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"name": "http", "protocol": "TCP", "port": port, "targetPort": target_port}],
        },
    })
}
