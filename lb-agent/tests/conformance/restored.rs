//! What the maps say of a vector: its lists as a restarted agent reads them back, its verdicts as the
//! kernel decides them. Shared by the root-free test and by the lab.

use std::collections::BTreeMap;

use lb_agent::{
    model::name::ServiceName,
    tables::{
        TableSet,
        programmed::{Placed, Programmed},
    },
};
use lb_common::{
    addr::{Addr, Port, Proto},
    select::{Decision, Draw, DropReason, Flow, Origin, RejectReason, Remembered, choose, select},
    tables::{BackendIndex, Client, List, Ring, Service},
};

use crate::vectors::{Outcome, Vector};

pub(crate) fn outcome(tables: &TableSet, vector: &Vector) -> Outcome {
    let programmed = Programmed::restore(tables);
    let service = ServiceName {
        namespace: vector.namespace(),
        name: "web".to_owned(),
    };
    let ports: Vec<_> = programmed
        .ports()
        .iter()
        .filter(|(id, _)| id.service == service)
        .collect();
    let [(_, port)] = ports.as_slice() else {
        panic!(
            "{}: {} Service ports are programmed for it",
            vector.name,
            ports.len()
        );
    };
    Outcome {
        cluster: list(port, List::Cluster),
        local: list(port, List::Local),
        clusterip: Some(at_cluster_ip(tables, vector)),
        external: vector.is_external().then(|| from_outside(tables, port)),
    }
}

/// The members' addresses, sorted; `None` for a list that the port never uses.
fn list(port: &Placed, list: List) -> Option<Vec<String>> {
    if port.cell.ring(list).on_empty == Ring::UNUSED {
        return None;
    }
    let placed = port.backends.iter();
    let addrs: BTreeMap<BackendIndex, Addr> =
        placed.map(|(key, at)| (at.index, key.addr)).collect();
    let mut members: Vec<_> = port
        .members(list)
        .iter()
        .map(|index| addrs[index].to_string())
        .collect();
    members.sort();
    Some(members)
}

fn at_cluster_ip(tables: &TableSet, vector: &Vector) -> String {
    let flow = Flow {
        addr: vector.cluster_ip().into(),
        port: Port(80),
        proto: Proto::TCP,
        origin: Origin::Node,
    };
    verdict(select(tables, &flow, &First))
}

/// Nothing answers at external addresses yet: what decides there is the list that the flags ask for.
fn from_outside(tables: &TableSet, port: &Placed) -> String {
    let list = if port.cell.flags & Service::EXTERNAL_LOCAL != 0 {
        List::Local
    } else {
        List::Cluster
    };
    verdict(choose(tables, port.index, list, &First))
}

fn verdict(decision: Decision) -> String {
    match decision {
        Decision::Forward(_) => "forward",
        Decision::Reject(RejectReason::NoEndpoints) => "reject",
        Decision::Drop(DropReason::NoLocalEndpoint) => "drop",
        other @ (Decision::NotAService | Decision::Reject(_) | Decision::Drop(_)) => {
            other.reason().name()
        }
    }
    .to_owned()
}

/// Always the first slot.
struct First;

impl Draw for First {
    fn random(&self) -> u32 {
        0
    }

    fn remembered(&self) -> Option<Remembered> {
        None
    }

    fn client(&self) -> Client {
        Client(0)
    }

    fn now_nanos(&self) -> u64 {
        0
    }
}
