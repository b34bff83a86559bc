//! `ServiceCIDR` → model: the ranges that `ClusterIPs` come from.

use k8s_openapi::api::networking::v1 as networking;

use crate::{
    api::{Converted, Rejected, Salvage, checked_key, value},
    model::object::{Kind, Object, ServiceCidr},
};

/// # Errors
///
/// The name is not one that a `ServiceCIDR` can have.
pub fn convert(object: &networking::ServiceCIDR) -> Result<Converted, Rejected> {
    let mut salvage = Salvage::new(checked_key(Kind::ServiceCidr, &object.metadata)?);
    let listed = object
        .spec
        .iter()
        .flat_map(|spec| spec.cidrs.iter().flatten());
    let cidrs = listed
        .filter_map(|text| salvage.keep("an entry of spec.cidrs", value::cidr(text)))
        .collect();
    let object = Object::ServiceCidr(ServiceCidr {
        name: salvage.object.name.clone(),
        cidrs,
    });
    Ok(salvage.into_converted(Some(object)))
}
