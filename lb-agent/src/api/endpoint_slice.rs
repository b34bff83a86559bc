//! `EndpointSlice` → model.

use std::collections::BTreeSet;

use k8s_openapi::{
    api::discovery::v1 as discovery, apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp,
};

use crate::{
    api::{Converted, LABEL_MAX, Rejected, Salvage, checked_key, fits, label, value},
    model::{
        endpoint::{Endpoint, Moment, Slice, SlicePort},
        name::{Family, ServiceName, SliceName},
        object::{Kind, Object},
    },
};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Any value of it keeps a slice from every proxy.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// An annotation: when the Pod or Service changed for which the controller wrote the slice.
const LAST_TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// # Errors
///
/// The name, or that of the Service it is for, is not one that the API allows.
pub fn convert(slice: &discovery::EndpointSlice) -> Result<Converted, Rejected> {
    let mut salvage = Salvage::new(checked_key(Kind::EndpointSlice, &slice.metadata)?);
    if label(&slice.metadata, HEADLESS).is_some() {
        return Ok(Converted::not_ours());
    }
    let Some(family) = family(&slice.address_type, &mut salvage) else {
        return Ok(salvage.into_converted(None));
    };
    let Some(service) = label(&slice.metadata, SERVICE_NAME).filter(|name| !name.is_empty()) else {
        salvage.drop(format!(
            "it has no label {SERVICE_NAME}, so it belongs to no Service"
        ));
        return Ok(salvage.into_converted(None));
    };
    if let Err(why) = fits(SERVICE_NAME, service, LABEL_MAX) {
        return Err(Rejected {
            object: salvage.object,
            why,
        });
    }

    let namespace = salvage.object.namespace.clone();
    let object = Object::from(Slice {
        name: SliceName {
            namespace: namespace.clone(),
            name: salvage.object.name.clone(),
        },
        service: ServiceName {
            namespace,
            name: service.to_owned(),
        },
        family,
        ports: ports(slice, &mut salvage),
        endpoints: endpoints(slice, family, &mut salvage),
        triggered: triggered(&slice.metadata),
    });
    Ok(salvage.into_converted(Some(object)))
}

/// Only a figure hangs on it, so what cannot be read is as good as absent.
fn triggered(meta: &ObjectMeta) -> Option<Moment> {
    let written = meta.annotations.as_ref()?.get(LAST_TRIGGER)?;
    let since: Timestamp = written.parse().ok()?;
    u64::try_from(since.as_nanosecond()).ok().map(Moment)
}

/// The family; `None` for FQDN slices, which no proxy reads.
fn family(address_type: &str, salvage: &mut Salvage) -> Option<Family> {
    match address_type {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            salvage.drop(format!("addressType {other:?} is none of IPv4, IPv6, FQDN"));
            None
        }
    }
}

fn ports(slice: &discovery::EndpointSlice, salvage: &mut Salvage) -> Vec<SlicePort> {
    let listed = slice.ports.iter().flatten().enumerate();
    listed
        .filter_map(|(i, port)| salvage.keep(format!("ports[{i}]"), slice_port(port)))
        .collect()
}

fn slice_port(port: &discovery::EndpointPort) -> Result<SlicePort, String> {
    let name = port
        .name
        .as_ref()
        .ok_or("it has no name; an unnamed port is name: \"\"")?;
    fits("its name", name, LABEL_MAX)?;
    Ok(SlicePort {
        name: name.clone(),
        proto: value::proto(port.protocol.as_deref())?,
        port: value::port(port.port.ok_or("it has no port number")?)?,
    })
}

fn endpoints(
    slice: &discovery::EndpointSlice,
    family: Family,
    salvage: &mut Salvage,
) -> Vec<Endpoint> {
    let listed = slice.endpoints.iter().flatten().enumerate();
    listed
        .filter_map(|(i, read)| salvage.keep(format!("endpoints[{i}]"), endpoint(read, family)))
        .collect()
}

fn endpoint(endpoint: &discovery::Endpoint, family: Family) -> Result<Endpoint, String> {
    // The API promises that all addresses of an endpoint are the same to clients; proxies use one.
    let text = endpoint.addresses.first().ok_or("it has no address")?;
    let addr = value::addr(text)?;
    if Family::of(addr) != family {
        return Err(format!("{text} is not an {family} address"));
    }
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let hints = endpoint.hints.clone().unwrap_or_default();
    Ok(Endpoint {
        addr,
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        node: endpoint.node_name.clone(),
        // Too long for a zone is no zone: nothing but figures reads it.
        zone: endpoint
            .zone
            .clone()
            .filter(|zone| !zone.is_empty() && zone.len() <= LABEL_MAX),
        for_nodes: names(hints.for_nodes, |hint| hint.name),
        for_zones: names(hints.for_zones, |hint| hint.name),
    })
}

/// The places of a hint. The API admits an empty zone name, which is one more place.
fn names<T>(hints: Option<Vec<T>>, name: impl Fn(T) -> String) -> BTreeSet<String> {
    hints.into_iter().flatten().map(name).collect()
}
