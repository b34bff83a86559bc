//! Service → model: the virtual addresses of each family, the ports, the policies that count.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use lb_common::addr::Addr;

use crate::{
    api::{Converted, LABEL_MAX, Rejected, Salvage, checked_key, fits, label, value},
    model::{
        name::{Family, ServiceName},
        object::{Kind, Object},
        service::{Asks, Cidr, Half, Policy, PortSpec, Service},
    },
};

/// Any value of it gives a Service to another proxy.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// The annotation by which a Service asks for hints, older name first.
const HINTS: [&str; 2] = [
    "service.kubernetes.io/topology-aware-hints",
    "service.kubernetes.io/topology-mode",
];
/// The API server's default for `timeoutSeconds`, and its upper bound.
const AFFINITY_SECS: u32 = 10_800;
const AFFINITY_SECS_MAX: u32 = 86_400;

/// # Errors
///
/// The name is not one that a Service can have.
pub fn convert(service: &core::Service) -> Result<Converted, Rejected> {
    let mut salvage = Salvage::new(checked_key(Kind::Service, &service.metadata)?);
    let spec = service.spec.clone().unwrap_or_default();
    if label(&service.metadata, PROXY_NAME).is_some() || !has_cluster_ip(&spec, &mut salvage) {
        return Ok(salvage.into_converted(None));
    }
    let object = Object::from(Service {
        name: ServiceName {
            namespace: salvage.object.namespace.clone(),
            name: salvage.object.name.clone(),
        },
        halves: halves(service, &spec, &mut salvage),
        ports: ports(&spec, &mut salvage),
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: external_policy(&spec),
        affinity_secs: affinity_secs(&spec, &mut salvage),
        asks: asks(service, &spec),
    });
    Ok(salvage.into_converted(Some(object)))
}

/// An `ExternalName` Service has no address of its own, even where a stale one is left in it.
fn has_cluster_ip(spec: &core::ServiceSpec, salvage: &mut Salvage) -> bool {
    match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
        (Some("ExternalName"), _) | (_, Some("None")) => false,
        (_, None | Some("")) => {
            salvage
                .drop("it has no spec.clusterIP, so nothing can reach it; give it one".to_owned());
            false
        }
        (_, Some(_)) => true,
    }
}

fn halves(
    service: &core::Service,
    spec: &core::ServiceSpec,
    salvage: &mut Salvage,
) -> BTreeMap<Family, Half> {
    let load_balancer_ips = load_balancer_ips(service, salvage);
    let external_ips = addrs(
        "spec.externalIPs",
        spec.external_ips.iter().flatten(),
        salvage,
    );
    let source_ranges = source_ranges(spec, salvage);
    let of = |family, addrs: &BTreeSet<Addr>| {
        addrs
            .iter()
            .copied()
            .filter(|addr| Family::of(*addr) == family)
            .collect()
    };

    let cluster_ips = cluster_ips(spec, salvage).into_iter();
    cluster_ips
        .map(|(family, cluster_ip)| {
            let half = Half {
                cluster_ip,
                load_balancer_ips: of(family, &load_balancer_ips),
                external_ips: of(family, &external_ips),
                source_ranges: restricting(family, &source_ranges),
            };
            (family, half)
        })
        .collect()
}

/// `ipFamilies` and `clusterIPs` correspond by position; objects from before dual stack have neither.
fn cluster_ips(spec: &core::ServiceSpec, salvage: &mut Salvage) -> BTreeMap<Family, Addr> {
    let first = spec.cluster_ip.iter();
    let families = spec.ip_families.as_deref().unwrap_or_default();
    if families.is_empty() {
        let addrs = addrs("spec.clusterIP", first, salvage).into_iter();
        return addrs.map(|addr| (Family::of(addr), addr)).collect();
    }
    let listed = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty());
    let listed: Vec<_> = listed.map_or_else(|| first.collect(), |ips| ips.iter().collect());
    let pairs = families.iter().zip(listed);
    pairs
        .filter_map(|(family, ip)| {
            salvage.keep("an entry of spec.clusterIPs", of_family(ip, family))
        })
        .collect()
}

fn of_family(ip: &str, family: &str) -> Result<(Family, Addr), String> {
    let addr = value::addr(ip)?;
    let actual = Family::of(addr);
    if actual.to_string() == family {
        return Ok((actual, addr));
    }
    Err(format!(
        "{ip} is {actual}, and spec.ipFamilies says {family} there"
    ))
}

/// The addresses that are ours to answer. Where `ipMode` is `Proxy` the balancer wants the traffic
/// itself, and an entry with a host name only has nothing to match.
fn load_balancer_ips(service: &core::Service, salvage: &mut Salvage) -> BTreeSet<Addr> {
    let status = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref());
    let entries = status.flat_map(|balancer| balancer.ingress.iter().flatten());
    let ours = entries.filter(|entry| matches!(entry.ip_mode.as_deref(), None | Some("VIP")));
    let ips = ours
        .filter_map(|entry| entry.ip.as_ref())
        .filter(|ip| !ip.is_empty());
    addrs("status.loadBalancer.ingress", ips, salvage)
}

fn addrs<'a>(
    field: &str,
    texts: impl Iterator<Item = &'a String>,
    salvage: &mut Salvage,
) -> BTreeSet<Addr> {
    texts
        .filter_map(|text| salvage.keep(format!("an entry of {field}"), value::addr(text)))
        .collect()
}

fn source_ranges(spec: &core::ServiceSpec, salvage: &mut Salvage) -> Vec<Cidr> {
    let listed = spec.load_balancer_source_ranges.iter().flatten();
    listed
        .filter_map(|text| {
            salvage.keep(
                "an entry of spec.loadBalancerSourceRanges",
                value::cidr(text),
            )
        })
        .collect()
}

/// The ranges that restrict a family: none if it has none of its own, or if one of them is everything.
fn restricting(family: Family, ranges: &[Cidr]) -> BTreeSet<Cidr> {
    let own = ranges.iter().filter(|range| range.family() == family);
    if own.clone().any(|range| range.prefix_len == 0) {
        return BTreeSet::new();
    }
    own.copied().collect()
}

/// A name and protocol given twice is one port, the later: it is their identity everywhere.
fn ports(spec: &core::ServiceSpec, salvage: &mut Salvage) -> Vec<PortSpec> {
    let mut ports = BTreeMap::new();
    for (i, listed) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{i}]");
        let Some(port) = salvage.keep(&field, port(listed)) else {
            continue;
        };
        if let Some(before) = ports.insert((port.name.clone(), port.proto), port) {
            let (name, proto) = (&before.name, before.proto);
            salvage.drop(format!("{field} replaces an earlier port {name:?} {proto}"));
        }
    }
    ports.into_values().collect()
}

fn port(port: &core::ServicePort) -> Result<PortSpec, String> {
    let name = port.name.clone().unwrap_or_default();
    fits("its name", &name, LABEL_MAX)?;
    let node_port = port.node_port.filter(|number| *number != 0);
    Ok(PortSpec {
        name,
        proto: value::proto(port.protocol.as_deref())?,
        port: value::port(port.port)?,
        node_port: node_port.map(value::port).transpose()?,
    })
}

fn policy(text: Option<&str>) -> Policy {
    match text {
        Some("Local") => Policy::Local,
        _ => Policy::Cluster,
    }
}

/// The field counts only where there is something external for it to rule.
fn external_policy(spec: &core::ServiceSpec) -> Policy {
    let has_external_ips = spec
        .external_ips
        .as_ref()
        .is_some_and(|ips| !ips.is_empty());
    match spec.type_.as_deref() {
        Some("NodePort" | "LoadBalancer") => policy(spec.external_traffic_policy.as_deref()),
        _ if has_external_ips => policy(spec.external_traffic_policy.as_deref()),
        _ => Policy::Cluster,
    }
}

/// As the control plane reads it: the older annotation wins over the newer one, and either over the field.
fn asks(service: &core::Service, spec: &core::ServiceSpec) -> Option<Asks> {
    let annotations = service.metadata.annotations.as_ref();
    let mode = annotations.and_then(|all| HINTS.iter().find_map(|key| all.get(*key)));
    if let Some("Auto" | "auto") = mode.map(String::as_str) {
        return Some(Asks::Auto);
    }
    match spec.traffic_distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => Some(Asks::SameZone),
        Some("PreferSameNode") => Some(Asks::SameNode),
        Some(_) | None => None,
    }
}

fn affinity_secs(spec: &core::ServiceSpec, salvage: &mut Salvage) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref();
    let asked = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    let read = asked.and_then(|secs| salvage.keep("the affinity timeout", timeout(secs)));
    Some(read.unwrap_or(AFFINITY_SECS))
}

fn timeout(secs: i32) -> Result<u32, String> {
    match u32::try_from(secs) {
        Ok(secs @ 1..=AFFINITY_SECS_MAX) => Ok(secs),
        Ok(_) | Err(_) => Err(format!(
            "{secs} is not between 1 and {AFFINITY_SECS_MAX} seconds; {AFFINITY_SECS} is used"
        )),
    }
}
