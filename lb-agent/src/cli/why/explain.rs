//! The words: what a verdict means for this flow, what topology hints did, and what to do next.

use std::collections::BTreeMap;

use lb_common::{
    addr::{Port, socket_addr},
    select::{Decision, DropReason, Origin, RejectReason},
    tables::{Hints, Kind, List},
};

use crate::{
    cli::why::{Case, Obstacle},
    model::{
        name::{ServiceName, ServicePortId},
        service_port::kind_name,
    },
    tables::{
        dump::{BackendView, why_no_hints},
        why::{Entry, Served, State},
    },
};

/// What is told of a flow.
pub(super) struct Told {
    pub verdict: &'static str,
    pub text: String,
    /// What an operator can do, the first first.
    pub next: Vec<String>,
}

impl Case {
    pub(super) fn told(&self) -> Told {
        let (verdict, text, next) = match self.obstacle {
            Some(Obstacle::NotReady) => (
                "pass",
                "left alone: on this node a program is not attached, or the tables were never complete"
                    .to_owned(),
                vec!["lb-agent status".to_owned()],
            ),
            Some(Obstacle::Outside) => (
                "pass",
                "left alone: no program of this version sees packets that come from outside of the \
                 node; below is what the tables hold for them"
                    .to_owned(),
                Vec::new(),
            ),
            None => self.decided(),
        };
        Told {
            verdict,
            text,
            next: next.into_iter().chain(self.next_for_hints()).collect(),
        }
    }

    fn decided(&self) -> (&'static str, String, Vec<String>) {
        let service = self.answer.served.as_ref().map(|served| &served.id);
        match self.answer.decision {
            Decision::Forward(_) => ("forward", self.forwarded(), Vec::new()),
            Decision::Reject(RejectReason::NoEndpoints) => (
                "reject",
                "refused: no endpoint of the Service port is ready, nor draining and still serving"
                    .to_owned(),
                service.map(look_at_slices).into_iter().collect(),
            ),
            Decision::Reject(RejectReason::UnownedPort) => {
                ("reject", self.unowned_port(), self.next_for_port())
            }
            Decision::Drop(DropReason::NoLocalEndpoint) => (
                "drop",
                format!(
                    "dropped: the Service port has endpoints, and none on this node ({}), to which the \
                     policy binds the traffic",
                    self.node
                ),
                vec![
                    "run a pod of the Service on this node, or set the policy to Cluster"
                        .to_owned(),
                ],
            ),
            Decision::Drop(DropReason::Unallocated) => (
                "drop",
                "dropped: the address is in a Service range, and no Service has it".to_owned(),
                vec![
                    "the Service was deleted, or has another address: kubectl get services -A"
                        .to_owned(),
                ],
            ),
            Decision::Drop(DropReason::Stale) => (
                "drop",
                "dropped: the tables contradict themselves, which should never be".to_owned(),
                vec!["please report it with `lb-agent services -o json`".to_owned()],
            ),
            Decision::NotAService => ("pass", self.not_a_service(), self.next_for_port()),
        }
    }

    fn forwarded(&self) -> String {
        let Some(served) = &self.answer.served else {
            return "forwarded".to_owned();
        };
        if let Some(backend) = served.keeps() {
            return format!("forwarded to {backend}, which this client keeps");
        }
        match served.candidates.as_slice() {
            [only] => format!("forwarded to {}", address(&only.backend)),
            several => format!("forwarded to one of {} backends", several.len()),
        }
    }

    fn unowned_port(&self) -> String {
        let owner = self.answer.at_address.first();
        let owner = owner.map_or_else(|| "a Service".to_owned(), |(_, id)| id.service.to_string());
        format!(
            "refused: the address is the ClusterIP of {owner}, which has no port {}/{}",
            self.flow.port, self.flow.proto
        )
    }

    fn not_a_service(&self) -> String {
        if let Some((id, kind)) = self.only_planned() {
            return format!(
                "left alone: this is to be a {} of {id}, and this version has no program for that kind \
                 of address",
                kind_name(kind)
            );
        }
        if self.answer.at_address.is_empty() {
            return "left alone: no Service has this address, and it is in no Service range"
                .to_owned();
        }
        format!(
            "left alone: a Service has the address, and no port {}/{}; it would be refused if the address \
             were in a Service range that is known",
            self.flow.port, self.flow.proto
        )
    }

    /// What else answers at the address.
    fn next_for_port(&self) -> Vec<String> {
        let others = self.answer.at_address.iter();
        let others: Vec<_> = others
            .map(|(key, id)| format!("{}/{} ({id})", key.port, id.proto))
            .collect();
        match others.as_slice() {
            [] => Vec::new(),
            others => vec![format!("ports at this address: {}", others.join(", "))],
        }
    }

    /// What topology hints did, and where they did nothing, why.
    pub(super) fn hints(&self) -> Option<String> {
        let served = self.narrowed_by_hints()?;
        Some(match served.hints {
            Hints::None => "none, and the Service asks for none".to_owned(),
            Hints::Node => "followed: what is hinted for this node".to_owned(),
            Hints::Zone => format!(
                "followed: what is hinted for zone {}",
                self.zone.as_deref().unwrap_or("\"\"")
            ),
            Hints::NodeHasNoZone
            | Hints::EndpointUnhinted
            | Hints::ZoneUncovered
            | Hints::EndpointUnhintedNode
            | Hints::NodeUncovered
            | Hints::EndpointHasNoZone
            | Hints::Uneven
            | Hints::NotGiven => return self.why_no_hints(),
        })
    }

    /// Why hints do not narrow the list, though somebody gave them or asked for them.
    pub(super) fn why_no_hints(&self) -> Option<String> {
        let served = self.narrowed_by_hints()?;
        if served.hints == Hints::Uneven {
            return Some(self.uneven(served));
        }
        let planned = self.planned_port();
        match planned.and_then(|port| port.choice.why_no_hints()) {
            Some(named) => Some(named),
            None => why_no_hints(served.hints).map(str::to_owned),
        }
    }

    /// Hints never narrow the local list.
    fn narrowed_by_hints(&self) -> Option<&Served> {
        let served = self.answer.served.as_ref();
        served.filter(|served| served.list == List::Cluster)
    }

    /// The controller gives no hints with fewer endpoints than zones, nor where a zone would have too few
    /// for its share of the processors. Only the first can be seen here.
    fn uneven(&self, served: &Served) -> String {
        let mut by_zone: BTreeMap<&str, usize> = BTreeMap::new();
        for candidate in &served.candidates {
            *by_zone.entry(&candidate.backend.zone).or_default() += 1;
        }
        let spread = by_zone
            .iter()
            .map(|(zone, count)| format!("zone {zone}: {count}"));
        let spread = spread.collect::<Vec<_>>().join(", ");
        let (endpoints, zones) = (served.candidates.len(), self.zones.len());
        if endpoints < zones {
            let names: Vec<_> = self.zones.iter().map(String::as_str).collect();
            return format!(
                "no hints: topology-mode Auto wants an endpoint for each zone, and there are fewer \
                 endpoints ({endpoints}) than zones ({zones}: {}; {spread})",
                names.join(", ")
            );
        }
        let or_few = match self.all_zones {
            true => "",
            false => ", or fewer than the cluster has zones",
        };
        format!(
            "no hints: topology-mode Auto found the endpoints too uneven for the zones' shares of the \
             processors{or_few} ({spread})"
        )
    }

    fn next_for_hints(&self) -> Option<String> {
        let served = self.narrowed_by_hints()?;
        let service = &served.id.service;
        Some(match served.hints {
            Hints::None | Hints::Node | Hints::Zone => return None,
            Hints::NodeHasNoZone => format!(
                "give the node a zone: kubectl label node {} topology.kubernetes.io/zone=ZONE",
                self.node
            ),
            Hints::EndpointUnhinted | Hints::EndpointUnhintedNode => format!(
                "find the slice without hints, which may be made by hand: {}",
                look_at_slices(&served.id)
            ),
            Hints::ZoneUncovered => "run a pod of the Service in this zone".to_owned(),
            Hints::NodeUncovered => "run a pod of the Service on this node".to_owned(),
            Hints::EndpointHasNoZone => {
                "give each Node a zone: kubectl get nodes -L topology.kubernetes.io/zone".to_owned()
            }
            Hints::Uneven => format!(
                "{}; or set trafficDistribution: PreferSameZone, which asks for no balance, in place of \
                 topology-mode",
                look_at_events(service)
            ),
            Hints::NotGiven => format!(
                "wait for the EndpointSlice controller, or see who makes the slices: {}",
                look_at_slices(&served.id)
            ),
        })
    }
}

impl Served {
    /// The kind of address, as Kubernetes spells it.
    pub(super) fn kind_name(&self) -> &'static str {
        self.kind.map_or("unknown kind", kind_name)
    }

    /// Which policy decides which list serves this client.
    pub(super) fn why_list(&self, origin: Origin) -> &'static str {
        match (self.kind, origin, self.is_local) {
            (Some(Kind::ClusterIp), _, false) => "internalTrafficPolicy is Cluster",
            (Some(Kind::ClusterIp), _, true) => "internalTrafficPolicy is Local",
            (_, _, false) => "externalTrafficPolicy is Cluster",
            (_, Origin::Outside, true) => "externalTrafficPolicy is Local",
            (_, Origin::Node, true) => {
                "externalTrafficPolicy is Local, which does not bind clients on a node"
            }
        }
    }

    /// The backend that the client keeps.
    pub(super) fn keeps(&self) -> Option<String> {
        match &self.affinity.as_ref()?.client.as_ref()?.state {
            State::Keeps(backend) => Some(address(backend)),
            State::New | State::Expired | State::BackendLeft => None,
        }
    }
}

impl Entry {
    /// In one word.
    pub(super) fn state_name(&self) -> &'static str {
        match self.state {
            State::New => "new",
            State::Keeps(_) => "keeps",
            State::Expired => "expired",
            State::BackendLeft => "backend-left",
        }
    }

    pub(super) fn text(&self, timeout_secs: u32) -> String {
        let idle = self.idle_secs;
        match &self.state {
            State::New => "this client has no entry: it keeps what it is given next".to_owned(),
            State::Keeps(backend) => format!(
                "this client keeps {}: last new flow {idle} s ago, free in {} s",
                address(backend),
                u64::from(timeout_secs).saturating_sub(idle)
            ),
            State::Expired => format!("this client's entry has expired, last used {idle} s ago"),
            State::BackendLeft => {
                "this client's backend is gone or takes no new flows: it is given another"
                    .to_owned()
            }
        }
    }
}

/// A backend's address and port.
pub(super) fn address(backend: &BackendView) -> String {
    socket_addr(backend.cell.addr, Port(backend.cell.port)).to_string()
}

fn look_at_slices(id: &ServicePortId) -> String {
    let ServiceName { namespace, name } = &id.service;
    format!(
        "kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={name} -o yaml"
    )
}

fn look_at_events(service: &ServiceName) -> String {
    let ServiceName { namespace, name } = service;
    format!("the events say which: kubectl -n {namespace} events --for service/{name}")
}
