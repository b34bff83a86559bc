//! The model itself: what has been applied so far, and what must be rebuilt after each change.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{
    endpoint::Slice,
    name::{ServiceName, SliceName},
    object::{Kind, Node, Object, ObjectKey, ServiceCidr},
    policy::Viewer,
    service::{Cidr, Service},
    service_port::{ServicePort, resolve},
};

/// For whom the model is kept, and what the operator decided.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name, compared exactly with `nodeName` and node hints.
    pub node: String,
    /// A zone that overrides the node's label.
    pub zone: Option<String>,
    /// Whether `spec.externalIPs` are served (kube-proxy's gate `AllowServiceExternalIPs`).
    pub external_ips: bool,
}

/// What a change made stale.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "what changed must be rebuilt"]
pub struct Changed {
    pub services: BTreeSet<ServiceName>,
    /// This node's zone changed: every Service may choose otherwise.
    pub everything: bool,
    /// The Service ranges changed.
    pub cidrs: bool,
}

impl Changed {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn merge(&mut self, mut other: Self) {
        self.services.append(&mut other.services);
        self.everything |= other.everything;
        self.cidrs |= other.cidrs;
    }

    fn service(name: ServiceName) -> Self {
        Self {
            services: BTreeSet::from([name]),
            ..Self::default()
        }
    }

    fn cidrs() -> Self {
        Self {
            cidrs: true,
            ..Self::default()
        }
    }
}

/// All that is wanted of this node.
#[derive(Clone, Debug)]
pub struct Model {
    settings: Settings,
    services: BTreeMap<ServiceName, Service>,
    /// Each slice keeps its own contribution, so that an endpoint which moves between slices is never
    /// lost. By Service, because that is how they are read.
    slices: BTreeMap<ServiceName, BTreeMap<SliceName, Slice>>,
    /// Whom each slice contributes to, to find it again when its label was edited.
    slice_owners: BTreeMap<SliceName, ServiceName>,
    node: Option<Node>,
    service_cidrs: BTreeMap<String, ServiceCidr>,
}

impl Model {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slice_owners: BTreeMap::new(),
            node: None,
            service_cidrs: BTreeMap::new(),
        }
    }

    /// Add an object, or replace the one of the same key.
    pub fn apply(&mut self, object: Object) -> Changed {
        match object {
            Object::Service(service) => self.apply_service(service),
            Object::Slice(slice) => self.apply_slice(slice),
            Object::Node(node) if node.name == self.settings.node => self.set_node(Some(node)),
            Object::Node(_) => Changed::default(),
            Object::ServiceCidr(cidr) => self.apply_cidr(cidr),
        }
    }

    /// Forget an object; nothing happens if there is none.
    pub fn delete(&mut self, key: &ObjectKey) -> Changed {
        match key.kind {
            Kind::Service => self.delete_service(key),
            Kind::EndpointSlice => self.delete_slice(&SliceName {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            }),
            Kind::Node if key.name == self.settings.node => self.set_node(None),
            Kind::Node => Changed::default(),
            Kind::ServiceCidr => match self.service_cidrs.remove(&key.name) {
                Some(_) => Changed::cidrs(),
                None => Changed::default(),
            },
        }
    }

    /// Make `objects` all there is: what they do not hold is deleted.
    pub fn relist(&mut self, objects: Vec<Object>) -> Changed {
        let listed: BTreeSet<ObjectKey> = objects.iter().map(Object::key).collect();
        let mut changed = Changed::default();
        for gone in self
            .keys()
            .filter(|key| !listed.contains(key))
            .collect::<Vec<_>>()
        {
            changed.merge(self.delete(&gone));
        }
        for object in objects {
            changed.merge(self.apply(object));
        }
        changed
    }

    /// The Service's ports in every family, each with its endpoint choice; none if it is not known.
    #[must_use]
    pub fn service_ports(&self, name: &ServiceName) -> Vec<ServicePort> {
        let Some(service) = self.services.get(name) else {
            return Vec::new();
        };
        let mut ports: Vec<_> = service
            .ports
            .iter()
            .flat_map(|port| service.halves.iter().map(move |half| (port, half)))
            .map(|(port, (family, half))| {
                resolve(
                    service,
                    (*family, half),
                    port,
                    self.slices_of(name),
                    self.viewer(),
                    self.settings.external_ips,
                )
            })
            .collect();
        ports.sort_by(|a, b| a.id.cmp(&b.id));
        ports
    }

    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    #[must_use]
    pub fn service_cidrs(&self) -> BTreeSet<Cidr> {
        let objects = self.service_cidrs.values();
        objects
            .flat_map(|object| object.cidrs.iter().copied())
            .collect()
    }

    /// This node's zone: the override, else its label.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        let label = self.node.as_ref().and_then(|node| node.zone.as_deref());
        self.settings.zone.as_deref().or(label)
    }

    #[must_use]
    pub fn node(&self) -> &str {
        &self.settings.node
    }

    /// Whether the Node object of this node is known.
    #[must_use]
    pub fn knows_own_node(&self) -> bool {
        self.node.is_some()
    }

    fn viewer(&self) -> Viewer<'_> {
        Viewer {
            node: &self.settings.node,
            zone: self.zone(),
        }
    }

    fn slices_of(&self, name: &ServiceName) -> impl Iterator<Item = &Slice> {
        self.slices.get(name).into_iter().flat_map(BTreeMap::values)
    }

    fn apply_service(&mut self, service: Service) -> Changed {
        let name = service.name.clone();
        match self.services.insert(name.clone(), service) {
            Some(before) if before == self.services[&name] => Changed::default(),
            _ => Changed::service(name),
        }
    }

    fn delete_service(&mut self, key: &ObjectKey) -> Changed {
        let name = ServiceName {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        match self.services.remove(&name) {
            Some(_) => Changed::service(name),
            None => Changed::default(),
        }
    }

    /// A slice whose label was edited leaves its former Service. (kube-proxy keeps the contribution
    /// there until it restarts.)
    fn apply_slice(&mut self, slice: Slice) -> Changed {
        let mut changed = Changed::default();
        match self.slice_owners.get(&slice.name) {
            Some(owner) if *owner != slice.service => {
                changed = self.delete_slice(&slice.name);
            }
            Some(owner) if self.slices[owner][&slice.name] == slice => return changed,
            Some(_) | None => {}
        }
        changed.services.insert(slice.service.clone());
        self.slice_owners
            .insert(slice.name.clone(), slice.service.clone());
        self.slices
            .entry(slice.service.clone())
            .or_default()
            .insert(slice.name.clone(), slice);
        changed
    }

    fn delete_slice(&mut self, name: &SliceName) -> Changed {
        let Some(owner) = self.slice_owners.remove(name) else {
            return Changed::default();
        };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        Changed::service(owner)
    }

    fn set_node(&mut self, node: Option<Node>) -> Changed {
        let before = self.zone().map(str::to_owned);
        self.node = node;
        Changed {
            everything: self.zone() != before.as_deref(),
            ..Changed::default()
        }
    }

    fn apply_cidr(&mut self, cidr: ServiceCidr) -> Changed {
        match self.service_cidrs.insert(cidr.name.clone(), cidr.clone()) {
            Some(before) if before == cidr => Changed::default(),
            _ => Changed::cidrs(),
        }
    }

    /// The keys of everything held.
    fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        let services = self.services.keys();
        let services = services.map(|n| ObjectKey::new(Kind::Service, &n.namespace, &n.name));
        let slices = self.slice_owners.keys();
        let slices = slices.map(|n| ObjectKey::new(Kind::EndpointSlice, &n.namespace, &n.name));
        let nodes = self
            .node
            .iter()
            .map(|node| ObjectKey::new(Kind::Node, "", &node.name));
        let cidrs = self.service_cidrs.keys();
        let cidrs = cidrs.map(|name| ObjectKey::new(Kind::ServiceCidr, "", name));
        services.chain(slices).chain(nodes).chain(cidrs)
    }
}
