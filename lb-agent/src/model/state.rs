//! The model itself: what has been applied so far, and what must be rebuilt after each change.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use lb_common::addr::Addr;

use crate::model::{
    endpoint::{Moment, Slice},
    name::{Family, ServiceName, SliceName},
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

    pub fn merge(&mut self, other: Self) {
        // `append` would rebuild the whole set each time.
        self.services.extend(other.services);
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
    services: BTreeMap<ServiceName, Arc<Service>>,
    /// Each slice keeps its own contribution, so that an endpoint which moves between slices is never
    /// lost. By Service, because that is how they are read.
    slices: BTreeMap<ServiceName, BTreeMap<SliceName, Arc<Slice>>>,
    /// Whom each slice contributes to, to find it again when its label was edited.
    slice_owners: BTreeMap<SliceName, ServiceName>,
    /// What the changes to slices were made for that nobody has taken yet.
    triggers: BTreeMap<(ServiceName, Family), Vec<Moment>>,
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
            triggers: BTreeMap::new(),
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

    /// When that happened for which slices changed since this was asked last: how long ago it is once
    /// all is programmed is how long the network took to follow. A slice that is deleted says nothing of
    /// its own deletion, and takes back what was said for its Service before.
    pub fn take_triggers(&mut self) -> Vec<(Family, Moment)> {
        let triggers = mem::take(&mut self.triggers).into_iter();
        triggers
            .flat_map(|((_, family), times)| times.into_iter().map(move |time| (family, time)))
            .collect()
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

    /// This node's own address in a family, as its Node object says.
    #[must_use]
    pub fn node_address(&self, family: Family) -> Option<Addr> {
        self.node.as_ref()?.addresses.get(&family).copied()
    }

    /// Whether the Node object of this node is known.
    #[must_use]
    pub fn knows_own_node(&self) -> bool {
        self.node.is_some()
    }

    /// The Node object of this node, once it is known.
    #[must_use]
    pub fn own_node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Whether load balancers may send new traffic to this node: it is known, and not about to go.
    #[must_use]
    pub fn node_is_eligible(&self) -> bool {
        self.node.as_ref().is_some_and(|node| !node.leaving)
    }

    fn viewer(&self) -> Viewer<'_> {
        Viewer {
            node: &self.settings.node,
            zone: self.zone(),
        }
    }

    fn slices_of(&self, name: &ServiceName) -> impl Iterator<Item = &Slice> {
        let slices = self.slices.get(name).into_iter();
        slices.flat_map(BTreeMap::values).map(Arc::as_ref)
    }

    fn apply_service(&mut self, service: Arc<Service>) -> Changed {
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
    fn apply_slice(&mut self, slice: Arc<Slice>) -> Changed {
        let mut changed = Changed::default();
        match self.slice_owners.get(&slice.name) {
            Some(owner) if *owner != slice.service => {
                changed = self.delete_slice(&slice.name);
            }
            Some(owner) if self.slices[owner][&slice.name].agrees_with(&slice) => return changed,
            Some(_) | None => {}
        }
        if let Some(time) = slice.triggered {
            let of = (slice.service.clone(), slice.family);
            self.triggers.entry(of).or_default().push(time);
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
            if let Some(slice) = slices.remove(name) {
                self.triggers.remove(&(owner.clone(), slice.family));
            }
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

#[cfg(test)]
mod tests {
    use lb_common::addr::{Addr, Port, Proto};
    use proptest::prelude::*;

    use super::*;
    use crate::model::{
        endpoint::{Endpoint, SlicePort},
        service::{Half, Policy, PortSpec},
    };

    fn model() -> Model {
        Model::new(Settings {
            node: "me".to_owned(),
            zone: None,
            external_ips: true,
        })
    }

    fn name(name: &str) -> ServiceName {
        ServiceName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    fn node(name: &str, zone: Option<&str>) -> Object {
        Object::Node(Node {
            name: name.to_owned(),
            zone: zone.map(str::to_owned),
            ..Node::default()
        })
    }

    fn service(service: &str, internal_policy: Policy) -> Object {
        let half = Half {
            cluster_ip: Addr::v4([10, 96, 0, 1]),
            load_balancer_ips: BTreeSet::new(),
            external_ips: BTreeSet::new(),
            source_ranges: BTreeSet::new(),
        };
        Object::from(Service {
            name: name(service),
            halves: BTreeMap::from([(Family::V4, half)]),
            ports: vec![PortSpec {
                name: "http".to_owned(),
                proto: Proto::TCP,
                port: Port(80),
                node_port: None,
            }],
            internal_policy,
            external_policy: Policy::Cluster,
            affinity_secs: None,
            asks: None,
        })
    }

    fn slice(slice: &str, service: &str, endpoints: Vec<Endpoint>) -> Object {
        Object::from(Slice {
            name: SliceName {
                namespace: "default".to_owned(),
                name: slice.to_owned(),
            },
            service: name(service),
            family: Family::V4,
            ports: vec![SlicePort {
                name: "http".to_owned(),
                proto: Proto::TCP,
                port: Port(8080),
            }],
            endpoints,
            triggered: None,
        })
    }

    fn endpoint(last: u8, zone: Option<&str>) -> Endpoint {
        Endpoint {
            addr: Addr::v4([10, 0, 0, last]),
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            zone: None,
            for_nodes: BTreeSet::new(),
            for_zones: zone.into_iter().map(str::to_owned).collect(),
        }
    }

    fn stale(services: &[&str]) -> Changed {
        Changed {
            services: services.iter().map(|service| name(service)).collect(),
            ..Changed::default()
        }
    }

    #[test]
    fn a_change_makes_stale_what_it_touches_and_no_more() {
        let mut model = model();
        let one = slice("s", "web", vec![endpoint(1, None)]);
        let two = slice("s", "web", vec![endpoint(2, None)]);
        let web = service("web", Policy::Cluster);
        let steps = [
            (web.clone(), stale(&["web"])),
            (web, stale(&[])),
            (service("web", Policy::Local), stale(&["web"])),
            (one.clone(), stale(&["web"])),
            (one, stale(&[])),
            (two, stale(&["web"])),
            (slice("s", "other", vec![]), stale(&["other", "web"])),
        ];
        for (i, (object, expected)) in steps.into_iter().enumerate() {
            assert_eq!(model.apply(object), expected, "step {i}");
        }
        let slice_key = ObjectKey::new(Kind::EndpointSlice, "default", "s");
        assert_eq!(model.delete(&slice_key), stale(&["other"]));
        assert_eq!(model.delete(&slice_key), stale(&[]));
        let service_key = ObjectKey::new(Kind::Service, "default", "web");
        assert_eq!(model.delete(&service_key), stale(&["web"]));
        assert_eq!(model.delete(&service_key), stale(&[]));
    }

    #[test]
    fn only_a_changed_zone_of_this_node_makes_everything_stale() {
        let mut model = model();
        let me = ObjectKey::new(Kind::Node, "", "me");

        assert!(model.apply(node("you", Some("a"))).is_empty());
        assert!(!model.knows_own_node());
        assert!(model.apply(node("me", None)).is_empty());
        assert!(model.apply(node("me", Some("a"))).everything);
        assert!(model.apply(node("me", Some("a"))).is_empty());
        assert_eq!(model.zone(), Some("a"));
        assert!(
            model
                .delete(&ObjectKey::new(Kind::Node, "", "you"))
                .is_empty()
        );
        assert!(model.delete(&me).everything);
        assert_eq!(model.zone(), None);
    }

    #[test]
    fn a_given_zone_overrides_the_label() {
        let mut model = model();
        model.settings.zone = Some("b".to_owned());

        assert!(model.apply(node("me", Some("a"))).is_empty());
        assert_eq!(model.zone(), Some("b"));
    }

    #[test]
    fn a_node_is_eligible_while_it_is_known_and_not_about_to_go() {
        let mut model = model();
        let me = |leaving| {
            Object::Node(Node {
                name: "me".to_owned(),
                leaving,
                ..Node::default()
            })
        };
        assert!(!model.node_is_eligible());

        for (object, eligible) in [(me(false), true), (me(true), false), (me(false), true)] {
            assert!(model.apply(object).is_empty());
            assert_eq!(model.node_is_eligible(), eligible);
        }
        let deleted = model.delete(&ObjectKey::new(Kind::Node, "", "me"));
        assert!(deleted.is_empty() && !model.node_is_eligible());
    }

    #[test]
    fn a_trigger_counts_once_if_it_changed_something_and_its_slice_is_not_deleted() {
        let at = |time: u64, last| {
            let written = slice("s", "web", vec![endpoint(last, None)]);
            let Object::Slice(written) = written else {
                unreachable!("it is a slice")
            };
            Object::from(Slice {
                triggered: Some(Moment(time)),
                ..written.as_ref().clone()
            })
        };
        let taken = |times: &[u64]| -> Vec<_> {
            times
                .iter()
                .map(|time| (Family::V4, Moment(*time)))
                .collect()
        };
        let mut model = model();
        for (time, last) in [(1, 1), (2, 1), (3, 2)] {
            let _changed = model.apply(at(time, last));
        }
        assert_eq!(model.take_triggers(), taken(&[1, 3]));
        assert_eq!(model.take_triggers(), []);

        let _changed = model.apply(at(4, 3));
        let _changed = model.delete(&ObjectKey::new(Kind::EndpointSlice, "default", "s"));
        assert_eq!(model.take_triggers(), []);
    }

    #[test]
    fn service_ranges_are_the_union_of_their_objects() {
        let range = |name: &str, last| {
            Object::ServiceCidr(ServiceCidr {
                name: name.to_owned(),
                cidrs: Cidr::new(Addr::v4([10, 96, last, 0]), 24)
                    .into_iter()
                    .collect(),
            })
        };
        let mut model = model();

        assert!(model.apply(range("a", 0)).cidrs);
        assert!(model.apply(range("b", 1)).cidrs);
        assert!(model.apply(range("b", 1)).is_empty());
        assert_eq!(model.service_cidrs().len(), 2);
        assert!(
            model
                .delete(&ObjectKey::new(Kind::ServiceCidr, "", "a"))
                .cidrs
        );
        assert_eq!(model.service_cidrs().len(), 1);
    }

    /// One step of a random history.
    #[derive(Clone, Debug)]
    enum Step {
        Apply(Object),
        Delete(ObjectKey),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => objects().prop_map(Step::Apply),
            1 => objects().prop_map(|object| Step::Delete(object.key())),
        ];
        prop::collection::vec(step, 0..40)
    }

    /// Few names, so that histories often meet the same object again.
    fn objects() -> impl Strategy<Value = Object> {
        let services = prop::sample::select(vec!["web", "other"]);
        let policy = prop::sample::select(vec![Policy::Cluster, Policy::Local]);
        let slices = prop::sample::select(vec!["s1", "s2", "s3"]);
        let zone = prop::sample::select(vec![None, Some("a"), Some("b")]);
        let nodes = prop::sample::select(vec!["me", "you"]);
        prop_oneof![
            (services.clone(), policy).prop_map(|(name, policy)| service(name, policy)),
            (slices, services, prop::collection::vec(endpoints(), 0..4))
                .prop_map(|(name, service, endpoints)| slice(name, service, endpoints)),
            (nodes, zone).prop_map(|(name, zone)| node(name, zone)),
        ]
    }

    fn endpoints() -> impl Strategy<Value = Endpoint> {
        let zone = prop::sample::select(vec![None, Some("a"), Some("b")]);
        let node = prop::sample::select(vec![None, Some("me"), Some("you")]);
        let hinted = prop::sample::select(vec![None, Some("me"), Some("you")]);
        let conditions = (any::<bool>(), any::<bool>(), any::<bool>());
        (1..4u8, zone, node, hinted, conditions).prop_map(
            |(last, zone, node, hinted, (ready, serving, terminating))| Endpoint {
                ready,
                serving,
                terminating,
                node: node.map(str::to_owned),
                for_nodes: hinted.into_iter().map(str::to_owned).collect(),
                ..endpoint(last, zone)
            },
        )
    }

    /// All Service ports of a model, by Service.
    fn all(model: &Model) -> BTreeMap<ServiceName, Vec<ServicePort>> {
        model
            .services()
            .map(|name| (name.clone(), model.service_ports(name)))
            .collect()
    }

    proptest! {
        /// However the objects arrived, the model is that of a list of what is there at the end; and
        /// rebuilding only what each step called stale leaves nothing stale behind.
        #[test]
        fn a_history_ends_where_a_list_of_its_end_begins(steps in steps()) {
            let (mut stepwise, mut objects) = (model(), BTreeMap::new());
            let mut built = BTreeMap::new();
            for step in steps {
                let changed = match step {
                    Step::Apply(object) => {
                        objects.insert(object.key(), object.clone());
                        stepwise.apply(object)
                    }
                    Step::Delete(key) => {
                        objects.remove(&key);
                        stepwise.delete(&key)
                    }
                };
                rebuild(&mut built, &stepwise, &changed);
            }
            let mut listed = model();
            // On top of something else, which the list must wipe out.
            let _before = listed.apply(service("gone", Policy::Local));
            let _all = listed.relist(objects.into_values().collect());

            prop_assert_eq!(all(&stepwise), all(&listed));
            prop_assert_eq!(built, all(&listed));
        }

        /// Connections are dropped or refused exactly as the lists and `has_any` say, and a list that a
        /// frontend needs is one that the port uses.
        #[test]
        fn every_frontend_finds_its_list(endpoints in prop::collection::vec(endpoints(), 0..6)) {
            let mut model = model();
            let _stale = model.apply(service("web", Policy::Local));
            let _stale = model.apply(slice("s", "web", endpoints));
            for port in model.service_ports(&name("web")) {
                for frontend in &port.frontends {
                    let list = port.list_for(frontend.kind, lb_common::select::Origin::Outside);
                    prop_assert!(port.choice.list(list).is_some());
                }
            }
        }
    }

    /// What an incremental builder does.
    fn rebuild(
        built: &mut BTreeMap<ServiceName, Vec<ServicePort>>,
        model: &Model,
        changed: &Changed,
    ) {
        if changed.everything {
            *built = all(model);
        }
        for name in &changed.services {
            if model.services().any(|known| known == name) {
                built.insert(name.clone(), model.service_ports(name));
            } else {
                built.remove(name);
            }
        }
    }
}
