//! Node → model: the zone label, addresses of the node and of its pods, and whether it is about to go.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use lb_common::addr::Addr;

use crate::{
    api::{Converted, LABEL_MAX, Rejected, Salvage, checked_key, fits, label, value},
    model::{
        name::Family,
        object::{Kind, Node, Object},
    },
};

const ZONE: &str = "topology.kubernetes.io/zone";
/// The cluster autoscaler's taint on a node that it is going to remove. Others, and a cordon, keep pods
/// away and traffic not.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// # Errors
///
/// The name is not one that a Node can have.
pub fn convert(node: &core::Node) -> Result<Converted, Rejected> {
    let mut salvage = Salvage::new(checked_key(Kind::Node, &node.metadata)?);
    let zone = label(&node.metadata, ZONE).filter(|zone| !zone.is_empty());
    let zone =
        zone.and_then(|zone| salvage.keep(ZONE, fits("the label", zone, LABEL_MAX).map(|()| zone)));
    let addresses = addresses(node, &mut salvage);
    let ranges = node
        .spec
        .iter()
        .flat_map(|spec| spec.pod_cidrs.iter().flatten());
    let pod_cidrs = ranges
        .filter_map(|text| salvage.keep("an entry of spec.podCIDRs", value::cidr(text)))
        .collect();
    let object = Object::Node(Node {
        addresses,
        name: salvage.object.name.clone(),
        zone: zone.map(str::to_owned),
        leaving: is_leaving(node),
        pod_cidrs,
    });
    Ok(salvage.into_converted(Some(object)))
}

/// Of each family the first internal one, or else the first external one, as in kube-proxy.
fn addresses(node: &core::Node, salvage: &mut Salvage) -> BTreeMap<Family, Addr> {
    let mut addresses = BTreeMap::new();
    let status = node.status.iter();
    let given = status.flat_map(|status| status.addresses.iter().flatten());
    for kind in ["InternalIP", "ExternalIP"] {
        for given in given.clone().filter(|given| given.type_ == kind) {
            let field = format_args!("an {kind} in status.addresses");
            if let Some(addr) = salvage.keep(field, value::addr(&given.address)) {
                addresses.entry(Family::of(addr)).or_insert(addr);
            }
        }
    }
    addresses
}

fn is_leaving(node: &core::Node) -> bool {
    let spec = node.spec.as_ref();
    let mut taints = spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_some() || taints.any(|taint| taint.key == TO_BE_DELETED)
}
