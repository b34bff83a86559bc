//! Kubernetes types → model values.
//!
//! A bad object never fails the agent, nor the objects beside it: what cannot be read is left out
//! and reported by name, the smallest part that can stand alone at a time.

pub mod endpoint_slice;
pub mod node;
pub mod service;
pub mod service_cidr;
pub(crate) mod value;

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::object::{Kind, Object, ObjectKey};

/// What became of one object of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// `None` for an object that is none of ours, such as a headless Service: if an earlier version
    /// of it was, that one is to be forgotten.
    pub object: Option<Object>,
    /// Parts that were left out.
    pub dropped: Vec<Rejected>,
}

impl Converted {
    fn not_ours() -> Self {
        Self {
            object: None,
            dropped: Vec::new(),
        }
    }
}

/// An object, or a part of one, that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rejected {
    pub object: ObjectKey,
    pub why: String,
}

impl Rejected {
    /// For an object that is left out as a whole.
    #[must_use]
    pub fn unused(&self) -> String {
        format!("{self}; this object is not used until it is corrected")
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.why)
    }
}

/// The identity of an object as its metadata give it; a namespace that is not given is `default`.
#[must_use]
pub fn key_of(kind: Kind, meta: &ObjectMeta) -> ObjectKey {
    let name = meta.name.clone().unwrap_or_default();
    let given = meta
        .namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty());
    match kind {
        Kind::Service | Kind::EndpointSlice => {
            ObjectKey::new(kind, given.unwrap_or("default"), name)
        }
        Kind::Node | Kind::ServiceCidr => ObjectKey::new(kind, "", name),
    }
}

/// A DNS label: Services, namespaces, Service ports, and the values of labels.
const LABEL_MAX: usize = 63;
/// A DNS subdomain: everything else that has a name.
const SUBDOMAIN_MAX: usize = 253;

/// The identity, if it is one the API server would have admitted: tables have room for no longer.
fn checked_key(kind: Kind, meta: &ObjectMeta) -> Result<ObjectKey, Rejected> {
    let key = key_of(kind, meta);
    let max = match kind {
        Kind::Service => LABEL_MAX,
        Kind::EndpointSlice | Kind::Node | Kind::ServiceCidr => SUBDOMAIN_MAX,
    };
    let checked = match key.name.as_str() {
        "" => Err("it has no metadata.name".to_owned()),
        name => fits("metadata.name", name, max)
            .and_then(|()| fits("metadata.namespace", &key.namespace, LABEL_MAX)),
    };
    match checked {
        Ok(()) => Ok(key),
        Err(why) => Err(Rejected { object: key, why }),
    }
}

fn fits(field: &str, value: &str, max: usize) -> Result<(), String> {
    if value.len() <= max {
        return Ok(());
    }
    let len = value.len();
    Err(format!(
        "{field} has {len} characters, and Kubernetes allows {max}"
    ))
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    Some(meta.labels.as_ref()?.get(name)?.as_str())
}

/// Collects what one object loses while the rest of it is kept.
struct Salvage {
    object: ObjectKey,
    dropped: Vec<Rejected>,
}

impl Salvage {
    fn new(object: ObjectKey) -> Self {
        Self {
            object,
            dropped: Vec::new(),
        }
    }

    /// The value, or a note that `field` was left out.
    fn keep<T>(
        &mut self,
        field: impl fmt::Display,
        read: Result<T, impl fmt::Display>,
    ) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(why) => {
                self.drop(format!("{field} is ignored: {why}"));
                None
            }
        }
    }

    fn drop(&mut self, why: String) {
        self.dropped.push(Rejected {
            object: self.object.clone(),
            why,
        });
    }

    fn into_converted(self, object: Option<Object>) -> Converted {
        Converted {
            object,
            dropped: self.dropped,
        }
    }
}
