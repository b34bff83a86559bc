//! The answer as JSON. New fields may be added only at the end of an object.

use std::{
    io::{self, Write},
    net::IpAddr,
};

use lb_common::tables::List;
use serde::Serialize;

use crate::{
    cli::why::{Case, explain::address, table::reason},
    model::policy::Chosen,
    tables::{
        dump::{BackendView, hints_name, locality_name},
        why::{Candidate, Entry, Served, State, Stickiness},
    },
};

pub(super) fn write(case: &Case, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &Document::of(case))?;
    writeln!(out)
}

#[derive(Serialize)]
struct Document<'a> {
    client: String,
    address: IpAddr,
    port: u16,
    protocol: String,
    node: &'a str,
    zone: Option<&'a str>,
    verdict: &'static str,
    explanation: String,
    /// The counters of `status` that such flows would be counted in; none if no program sees them.
    reasons: Vec<&'static str>,
    next: Vec<String>,
    /// `null`: no Service port has this address, port and protocol.
    service: Option<Service<'a>>,
    list: Option<&'static str>,
    why_list: Option<&'static str>,
    /// As in `services`.
    hints: Option<&'static str>,
    why_no_hints: Option<String>,
    affinity: Option<Affinity>,
    backends: Vec<Backend<'a>>,
    /// Take no new flows here, and may keep those they have.
    keeps_flows: Vec<String>,
    /// `null` without --objects: only the objects tell of endpoints that are not used.
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Serialize)]
struct Service<'a> {
    namespace: &'a str,
    name: &'a str,
    /// The port's name; empty if it has none.
    port: &'a str,
    protocol: String,
    family: String,
    kind: &'static str,
}

#[derive(Serialize)]
struct Affinity {
    timeout_secs: u32,
    /// `null`: it is not known who asks.
    client: Option<Client>,
}

#[derive(Serialize)]
struct Client {
    netns_cookie: u64,
    /// `new`, `keeps`, `expired` or `backend-left`.
    state: &'static str,
    backend: Option<String>,
    idle_secs: u64,
}

#[derive(Serialize)]
struct Backend<'a> {
    address: String,
    zone: Option<&'a str>,
    locality: &'static str,
    /// For a flow that is chosen for anew.
    chance: f64,
    /// Of this node, that keep it by affinity.
    clients: usize,
}

#[derive(Serialize)]
struct Endpoint {
    address: String,
    used: bool,
    reason: Option<String>,
}

impl<'a> Document<'a> {
    fn of(case: &'a Case) -> Self {
        let (flow, answer) = (&case.flow, &case.answer);
        let told = case.told();
        let served = answer.served.as_ref();
        let is_decided = case.obstacle.is_none();
        Self {
            client: case.asker.to_string(),
            address: flow.addr.into(),
            port: flow.port.0,
            protocol: flow.proto.to_string(),
            node: &case.node,
            zone: case.zone.as_deref(),
            verdict: told.verdict,
            explanation: told.text,
            reasons: answer
                .reasons
                .iter()
                .filter(|_| is_decided)
                .map(|reason| reason.name())
                .collect(),
            next: told.next,
            service: served.map(Service::of),
            list: served.map(|served| match served.list {
                List::Cluster => "cluster",
                List::Local => "local",
            }),
            why_list: served.map(|served| served.why_list(flow.origin)),
            hints: served.map(|served| hints_name(served.hints)),
            why_no_hints: case.why_no_hints(),
            affinity: served
                .and_then(|served| served.affinity.as_ref())
                .map(Affinity::of),
            backends: served.map(backends).unwrap_or_default(),
            keeps_flows: served
                .iter()
                .flat_map(|served| served.kept.iter().map(address))
                .collect(),
            endpoints: case.planned_port().zip(served).map(|(port, served)| {
                let endpoints = port.choice.endpoints.iter();
                endpoints.map(|at| Endpoint::of(at, served.list)).collect()
            }),
        }
    }
}

impl<'a> Service<'a> {
    fn of(served: &'a Served) -> Self {
        let id = &served.id;
        Self {
            namespace: &id.service.namespace,
            name: &id.service.name,
            port: &id.port,
            protocol: id.proto.to_string(),
            family: id.family.to_string(),
            kind: served.kind_name(),
        }
    }
}

impl Affinity {
    fn of(affinity: &Stickiness) -> Self {
        Self {
            timeout_secs: affinity.timeout_secs,
            client: affinity.client.as_ref().map(Client::of),
        }
    }
}

impl Client {
    fn of(entry: &Entry) -> Self {
        Self {
            netns_cookie: entry.client.0,
            state: entry.state_name(),
            backend: match &entry.state {
                State::Keeps(backend) => Some(address(backend)),
                State::New | State::Expired | State::BackendLeft => None,
            },
            idle_secs: entry.idle_secs,
        }
    }
}

fn backends(served: &Served) -> Vec<Backend<'_>> {
    let draws: usize = served
        .candidates
        .iter()
        .map(|candidate| candidate.draws)
        .sum();
    let candidates = served.candidates.iter();
    candidates
        .map(|candidate| Backend::of(candidate, draws))
        .collect()
}

impl<'a> Backend<'a> {
    fn of(candidate: &'a Candidate, draws: usize) -> Self {
        let backend: &BackendView = &candidate.backend;
        Self {
            address: address(backend),
            zone: (!backend.zone.is_empty()).then_some(&backend.zone),
            locality: locality_name(backend.locality),
            chance: candidate.draws as f64 / draws as f64,
            clients: candidate.clients,
        }
    }
}

impl Endpoint {
    fn of(endpoint: &Chosen, list: List) -> Self {
        Self {
            address: endpoint.at.to_string(),
            used: endpoint.is_in(list),
            reason: reason(endpoint, list),
        }
    }
}
