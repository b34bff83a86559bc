//! Node → model: the zone label, and whether the node is about to go.

use k8s_openapi::api::core::v1 as core;

use crate::{
    api::{Converted, LABEL_MAX, Rejected, Salvage, checked_key, fits, label},
    model::object::{Kind, Node, Object},
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
    let object = Object::Node(Node {
        name: salvage.object.name.clone(),
        zone: zone.map(str::to_owned),
        leaving: is_leaving(node),
    });
    Ok(salvage.into_converted(Some(object)))
}

fn is_leaving(node: &core::Node) -> bool {
    let spec = node.spec.as_ref();
    let mut taints = spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    node.metadata.deletion_timestamp.is_some() || taints.any(|taint| taint.key == TO_BE_DELETED)
}
