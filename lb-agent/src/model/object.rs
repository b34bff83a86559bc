//! The closed set of objects the model is made of, and the keys by which they are deleted.

use std::{collections::BTreeMap, fmt, sync::Arc};

use lb_common::addr::Addr;

use crate::model::{
    endpoint::Slice,
    name::Family,
    service::{Cidr, Service},
};

/// One object, reduced to what endpoint choice and the tables read. Two objects that differ only in
/// what nobody reads are equal, which is how such a change becomes no work. What is large is shared by the
/// source, which compares with it, and the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    Service(Arc<Service>),
    Slice(Arc<Slice>),
    Node(Node),
    ServiceCidr(ServiceCidr),
}

impl Object {
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Service(service) => {
                ObjectKey::new(Kind::Service, &service.name.namespace, &service.name.name)
            }
            Self::Slice(slice) => {
                ObjectKey::new(Kind::EndpointSlice, &slice.name.namespace, &slice.name.name)
            }
            Self::Node(node) => ObjectKey::new(Kind::Node, "", &node.name),
            Self::ServiceCidr(cidr) => ObjectKey::new(Kind::ServiceCidr, "", &cidr.name),
        }
    }
}

impl From<Service> for Object {
    fn from(service: Service) -> Self {
        Self::Service(Arc::new(service))
    }
}

impl From<Slice> for Object {
    fn from(slice: Slice) -> Self {
        Self::Slice(Arc::new(slice))
    }
}

/// A Node: its zone is all that endpoint choice asks of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// `topology.kubernetes.io/zone`; an empty label is none.
    pub zone: Option<String>,
    /// It is being deleted, or about to be: load balancers should send nothing new.
    pub leaving: bool,
    /// Of each family the one that stands for the node: to others, and where its own clients need one.
    pub addresses: BTreeMap<Family, Addr>,
    /// What its pods' addresses are given out from.
    pub pod_cidrs: Vec<Cidr>,
}

/// A range from which `ClusterIPs` are given out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    pub name: String,
    pub cidrs: Vec<Cidr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// An object's identity. The namespace is empty for kinds that have none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub kind: Kind,
    pub namespace: String,
    pub name: String,
}

impl ObjectKey {
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}
