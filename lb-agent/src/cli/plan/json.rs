//! The plan as JSON. Its names and their order are a promise to programs; new fields may be added
//! only at the end of an object. Addresses are in the order of their text, so that a program can
//! compare lists without reading addresses.

use std::io::{self, Write};

use lb_common::{select::Origin, tables::List};
use serde::Serialize;

use crate::{
    cli::plan::Plan,
    model::{
        ServicePort,
        policy::Chosen,
        service_port::{Frontend, kind_name},
    },
    tables::dump::hints_name,
};

pub(super) fn write(plan: &Plan, out: &mut impl Write) -> io::Result<()> {
    let document = Document {
        services: plan.services.iter().map(Service::from).collect(),
    };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}

#[derive(Serialize)]
struct Document {
    services: Vec<Service>,
}

#[derive(Serialize)]
struct Service {
    namespace: String,
    name: String,
    port: String,
    protocol: String,
    family: String,
    frontends: Vec<FrontendEntry>,
    cluster: Option<Vec<String>>,
    local: Option<Vec<String>>,
    endpoints: Vec<EndpointEntry>,
    hints: &'static str,
    why_no_hints: Option<String>,
}

#[derive(Serialize)]
struct FrontendEntry {
    kind: &'static str,
    address: String,
    port: u16,
    verdict: String,
}

#[derive(Serialize)]
struct EndpointEntry {
    address: String,
    used_by: Vec<&'static str>,
    reason: String,
}

impl From<&ServicePort> for Service {
    fn from(port: &ServicePort) -> Self {
        let id = &port.id;
        Self {
            namespace: id.service.namespace.clone(),
            name: id.service.name.clone(),
            port: id.port.clone(),
            protocol: id.proto.to_string(),
            family: id.family.to_string(),
            frontends: frontends(port),
            cluster: list(port, List::Cluster),
            local: list(port, List::Local),
            endpoints: endpoints(port),
            hints: hints_name(port.choice.hints()),
            why_no_hints: port.choice.why_no_hints(),
        }
    }
}

/// By kind in the order of the API's history, then by address.
fn frontends(port: &ServicePort) -> Vec<FrontendEntry> {
    let mut sorted: Vec<_> = port.frontends.iter().collect();
    sorted.sort_by_cached_key(|at| (at.kind, address(at)));
    sorted.into_iter().map(|at| frontend(port, at)).collect()
}

fn frontend(port: &ServicePort, at: &Frontend) -> FrontendEntry {
    FrontendEntry {
        kind: kind_name(at.kind),
        address: address(at),
        port: at.port.0,
        verdict: port.verdict(at.kind, Origin::Outside).to_string(),
    }
}

/// A frontend's address; `*` for all that the node has.
pub(super) fn address(at: &Frontend) -> String {
    at.addr
        .map_or_else(|| "*".to_owned(), |addr| addr.to_string())
}

fn list(port: &ServicePort, list: List) -> Option<Vec<String>> {
    let members = port.choice.list(list)?;
    let mut members: Vec<_> = members
        .into_iter()
        .map(|member| member.at.to_string())
        .collect();
    members.sort();
    Some(members)
}

fn endpoints(port: &ServicePort) -> Vec<EndpointEntry> {
    let mut entries: Vec<_> = port.choice.endpoints.iter().map(endpoint).collect();
    entries.sort_by(|a, b| a.address.cmp(&b.address));
    entries
}

fn endpoint(endpoint: &Chosen) -> EndpointEntry {
    EndpointEntry {
        address: endpoint.at.to_string(),
        used_by: used_by(endpoint),
        reason: endpoint.reason.to_string(),
    }
}

/// The lists that an endpoint is in, by name.
pub(super) fn used_by(endpoint: &Chosen) -> Vec<&'static str> {
    let named = [(List::Cluster, "cluster"), (List::Local, "local")];
    let used = named.into_iter().filter(|(list, _)| endpoint.is_in(*list));
    used.map(|(_, name)| name).collect()
}
