//! The served Service ports for programs.

use std::{
    io::{self, Write},
    net::IpAddr,
};

use lb_common::{
    addr::{Port, socket_addr},
    tables::{Frontend, FrontendKey, Kind},
};
use serde::Serialize;

use crate::{
    model::service_port::kind_name,
    tables::dump::{BackendView, ListView, ServiceView, hints_name, locality_name, why_no_hints},
};

pub(super) fn write(services: &[ServiceView], out: &mut impl Write) -> io::Result<()> {
    let document = Document {
        services: services.iter().map(Service::of).collect(),
    };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}

#[derive(Serialize)]
struct Document<'a> {
    services: Vec<Service<'a>>,
}

#[derive(Serialize)]
struct Service<'a> {
    namespace: &'a str,
    name: &'a str,
    /// The port's name; empty if it has none.
    port: &'a str,
    protocol: String,
    family: String,
    affinity_secs: u32,
    frontends: Vec<FrontendJson>,
    /// `null`: the port never uses this list.
    cluster: Option<List<'a>>,
    local: Option<List<'a>>,
    /// Take no new flows here, and may keep those they have.
    keeps_flows: Vec<Backend<'a>>,
    hints: &'static str,
    why_no_hints: Option<&'static str>,
}

#[derive(Serialize)]
struct FrontendJson {
    kind: &'static str,
    address: IpAddr,
    port: u16,
    list: &'static str,
}

#[derive(Serialize)]
struct List<'a> {
    on_empty: String,
    backends: Vec<Backend<'a>>,
}

#[derive(Serialize)]
struct Backend<'a> {
    address: String,
    zone: Option<&'a str>,
    locality: &'static str,
}

impl<'a> Service<'a> {
    fn of(view: &'a ServiceView) -> Self {
        Self {
            namespace: &view.id.service.namespace,
            name: &view.id.service.name,
            port: &view.id.port,
            protocol: view.id.proto.to_string(),
            family: view.id.family.to_string(),
            affinity_secs: view.affinity_secs,
            frontends: view.frontends.iter().map(frontend).collect(),
            cluster: view.cluster.as_ref().map(List::of),
            local: view.local.as_ref().map(List::of),
            keeps_flows: view.kept.iter().map(Backend::of).collect(),
            hints: hints_name(view.hints),
            why_no_hints: why_no_hints(view.hints),
        }
    }
}

fn frontend((key, frontend): &(FrontendKey, Frontend)) -> FrontendJson {
    FrontendJson {
        kind: Kind::from_cell(frontend.kind).map_or("unknown", kind_name),
        address: key.addr.into(),
        port: key.port,
        list: if frontend.flags & Frontend::LOCAL == 0 {
            "cluster"
        } else {
            "local"
        },
    }
}

impl<'a> List<'a> {
    fn of(view: &'a ListView) -> Self {
        Self {
            on_empty: view.on_empty.to_string(),
            backends: view.backends.iter().map(Backend::of).collect(),
        }
    }
}

impl<'a> Backend<'a> {
    fn of(view: &'a BackendView) -> Self {
        Self {
            address: socket_addr(view.cell.addr, Port(view.cell.port)).to_string(),
            zone: (!view.zone.is_empty()).then_some(&view.zone),
            locality: locality_name(view.locality),
        }
    }
}
