//! The folder of Kubernetes objects that the agents watch, and builders for the objects tests need.
//! A file is replaced by rename, as every careful tool does; half-written files are a test of their
//! own, made with [`Objects::write_in_place`].

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde_json::{Value, json};

use crate::must;

/// A folder of objects.
#[derive(Clone, Debug)]
pub struct Objects {
    dir: PathBuf,
}

impl Objects {
    pub(crate) fn create(dir: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self { dir })
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds or replaces one object, in a file named after it.
    pub fn apply(&self, object: impl Into<Value>) {
        let object = object.into();
        self.write(&file_name(&object), &format!("{object:#}"));
    }

    pub fn delete(&self, object: impl Into<Value>) {
        self.remove(&file_name(&object.into()));
    }

    /// Adds or replaces several objects in one file, so that one sync programs them all.
    pub fn apply_together(&self, file: &str, objects: impl IntoIterator<Item = Value>) {
        let items: Vec<_> = objects.into_iter().collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.write(file, &list.to_string());
    }

    /// Replaces a whole file at once.
    pub fn write(&self, file: &str, text: &str) {
        let (part, whole) = (self.dir.join(format!(".{file}.part")), self.dir.join(file));
        must(fs::write(&part, text).with_context(|| format!("write {}", part.display())));
        must(fs::rename(&part, &whole).with_context(|| format!("rename to {}", whole.display())));
    }

    /// Writes as a careless editor does: a reader may see half of it.
    pub fn write_in_place(&self, file: &str, text: &str) {
        let path = self.dir.join(file);
        must(fs::write(&path, text).with_context(|| format!("write {}", path.display())));
    }

    pub fn remove(&self, file: &str) {
        let path = self.dir.join(file);
        must(fs::remove_file(&path).with_context(|| format!("remove {}", path.display())));
    }
}

/// `service-default-web.json`
fn file_name(object: &Value) -> String {
    let text = |pointer| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or("default")
    };
    let (kind, namespace) = (text("/kind").to_lowercase(), text("/metadata/namespace"));
    format!("{kind}-{namespace}-{}.json", text("/metadata/name"))
}

/// A Node with its zone label.
#[must_use]
pub fn node(name: &str, zone: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
    })
}

/// The ranges that the cluster takes its ClusterIPs from.
#[must_use]
pub fn service_cidrs(cidrs: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": cidrs},
    })
}

/// A ClusterIP Service, `namespace/name`.
#[must_use]
pub fn service(name: &str, cluster_ips: &[&str]) -> Service {
    let (namespace, name) = split(name);
    let families: Vec<_> = cluster_ips.iter().map(|ip| family(ip)).collect();
    Service(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ips.first(),
            "clusterIPs": cluster_ips,
            "ipFamilies": families,
            "ports": [],
        },
    }))
}

/// A Service under construction.
#[derive(Clone, Debug)]
pub struct Service(Value);

impl Service {
    #[must_use]
    pub fn tcp(self, name: &str, port: u16) -> Self {
        self.port(name, "TCP", port)
    }

    #[must_use]
    pub fn udp(self, name: &str, port: u16) -> Self {
        self.port(name, "UDP", port)
    }

    #[must_use]
    pub fn internal_traffic_policy(mut self, policy: &str) -> Self {
        self.0["spec"]["internalTrafficPolicy"] = json!(policy);
        self
    }

    /// `sessionAffinity: ClientIP`.
    #[must_use]
    pub fn client_affinity(mut self, timeout_secs: u32) -> Self {
        self.0["spec"]["sessionAffinity"] = json!("ClientIP");
        self.0["spec"]["sessionAffinityConfig"] =
            json!({"clientIP": {"timeoutSeconds": timeout_secs}});
        self
    }

    fn port(mut self, name: &str, protocol: &str, port: u16) -> Self {
        let port = json!({"name": name, "protocol": protocol, "port": port});
        push(&mut self.0["spec"]["ports"], port);
        self
    }
}

impl From<Service> for Value {
    fn from(service: Service) -> Self {
        service.0
    }
}

/// An EndpointSlice of the Service `namespace/name`, one per family, without ports or endpoints.
#[must_use]
pub fn slice(service: &str, family: &str) -> Slice {
    let (namespace, service) = split(service);
    Slice(json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace,
            "name": format!("{service}-{}", family.to_lowercase()),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "ports": [],
        "endpoints": [],
    }))
}

/// An EndpointSlice under construction.
#[derive(Clone, Debug)]
pub struct Slice(Value);

impl Slice {
    #[must_use]
    pub fn tcp(self, name: &str, port: u16) -> Self {
        self.port(name, "TCP", port)
    }

    #[must_use]
    pub fn udp(self, name: &str, port: u16) -> Self {
        self.port(name, "UDP", port)
    }

    /// A ready endpoint.
    #[must_use]
    pub fn endpoint(mut self, addr: impl ToString, node: &str, zone: &str) -> Self {
        let endpoint = json!({
            "addresses": [addr.to_string()],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": node,
            "zone": zone,
        });
        push(&mut self.0["endpoints"], endpoint);
        self
    }

    /// Gives each endpoint the hint that `trafficDistribution: PreferSameZone` gives it.
    #[must_use]
    pub fn hinted(mut self) -> Self {
        for endpoint in self.0["endpoints"].as_array_mut().into_iter().flatten() {
            endpoint["hints"] = json!({"forZones": [{"name": endpoint["zone"]}]});
        }
        self
    }

    fn port(mut self, name: &str, protocol: &str, port: u16) -> Self {
        let port = json!({"name": name, "protocol": protocol, "port": port});
        push(&mut self.0["ports"], port);
        self
    }
}

impl From<Slice> for Value {
    fn from(slice: Slice) -> Self {
        slice.0
    }
}

fn push(array: &mut Value, value: Value) {
    array
        .as_array_mut()
        .expect("the builders start it as an array")
        .push(value);
}

fn split(name: &str) -> (&str, &str) {
    name.split_once('/')
        .expect("a Service is named namespace/name")
}

fn family(ip: &str) -> &'static str {
    if ip.contains(':') { "IPv6" } else { "IPv4" }
}
