//! What becomes of one flow, and why: the verdict is that of the kernel's own `select`, asked with every
//! draw, and beside it stands what `select` looked at, with names put on. Nothing is written: an answer
//! that moved a cursor or refreshed a client's affinity would change what it tells of.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    addr::Addr,
    reason::Reason,
    select::{Decision, Draw, Flow, Found, Remembered, Tables, list_for, select},
    tables::{
        Affinity, AffinityKey, Backend, BackendIndex, Client, Frontend, FrontendKey, Hints, Kind,
        List, Ring, ServiceIndex, Slot,
    },
};

use crate::{
    model::name::ServicePortId,
    tables::{
        dump::{self, BackendView, ServiceView, distance},
        set::TableSet,
    },
};

/// Whom nothing was given: no network namespace has this cookie.
const NOBODY: Client = Client(0);

/// What the kernel holds at one moment.
#[derive(Clone, Debug)]
pub struct Held {
    pub tables: TableSet,
    /// What clients were given before, by Service index and network namespace.
    given: BTreeMap<(u32, u64), Affinity>,
    now_nanos: u64,
}

/// What becomes of a flow.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Of all draws: the first that does not end at a backend, or the first.
    pub decision: Decision,
    /// What the draws would be counted as.
    pub reasons: BTreeSet<Reason>,
    /// `None`: no Service port has this address, port and protocol.
    pub served: Option<Served>,
    /// All that answers at the address, for who asks for a port that it does not have.
    pub at_address: Vec<(FrontendKey, ServicePortId)>,
    /// Whether the address is in a range from which `ClusterIPs` are given out.
    pub in_service_cidr: bool,
}

/// The Service port that a flow is to.
#[derive(Clone, Debug)]
pub struct Served {
    pub id: ServicePortId,
    /// `None`: only another version knows this kind.
    pub kind: Option<Kind>,
    /// Whether the traffic policy of this kind of address is `Local`.
    pub is_local: bool,
    /// The list that serves this client.
    pub list: List,
    pub hints: Hints,
    /// Who a client without affinity may be given, the nearest first.
    pub candidates: Vec<Candidate>,
    /// Backends that take no new flows here and may keep those they have.
    pub kept: Vec<BackendView>,
    /// `None`: every flow is chosen for anew.
    pub affinity: Option<Stickiness>,
}

/// A backend that may be chosen.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub backend: BackendView,
    /// Out of all draws, how many lead to it.
    pub draws: usize,
    /// Clients of this node that go to it by affinity.
    pub clients: usize,
}

/// Session affinity.
#[derive(Clone, Debug)]
pub struct Stickiness {
    pub timeout_secs: u32,
    /// `None`: it is not known who asks.
    pub client: Option<Entry>,
}

/// What a client's entry says.
#[derive(Clone, Debug)]
pub struct Entry {
    pub client: Client,
    pub state: State,
    /// Since its last new flow; 0 without an entry.
    pub idle_secs: u64,
}

#[derive(Clone, Debug)]
pub enum State {
    /// It has none: it is given a backend and keeps it.
    New,
    /// New flows go to this backend.
    Keeps(BackendView),
    /// No new flow came for the time-out.
    Expired,
    /// The backend is gone, or not in the list any more.
    BackendLeft,
}

impl Held {
    #[must_use]
    pub fn new(tables: TableSet, given: Vec<(AffinityKey, Affinity)>, now_nanos: u64) -> Self {
        let given = given.into_iter();
        Self {
            tables,
            given: given
                .map(|(key, given)| ((key.service, key.netns_cookie), given))
                .collect(),
            now_nanos,
        }
    }

    /// What becomes of a flow of this client.
    #[must_use]
    pub fn answer(&self, flow: &Flow, client: Option<Client>) -> Answer {
        let services = dump::services(&self.tables);
        let key = FrontendKey::new(flow.addr, flow.port, flow.proto);
        let served = self.tables.frontend(&key).and_then(|frontend| {
            let mut services = services.iter();
            let service = services.find(|service| service.index == frontend.service())?;
            Some(self.served(service, frontend, flow, client))
        });
        let mut draws = self.decide(flow, client.unwrap_or(NOBODY));
        let first = draws
            .next()
            .expect("there is a draw for each place, of at least one");
        let (mut decision, mut reasons) = (first, BTreeSet::from([first.reason()]));
        for draw in draws {
            reasons.insert(draw.reason());
            if matches!(decision, Decision::Forward(_)) && !matches!(draw, Decision::Forward(_)) {
                decision = draw;
            }
        }
        Answer {
            decision,
            reasons,
            served,
            at_address: at_address(&services, flow),
            in_service_cidr: self.tables.in_service_cidr(flow.addr),
        }
    }

    /// With every draw.
    fn decide(&self, flow: &Flow, client: Client) -> impl Iterator<Item = Decision> {
        let places = self.places(flow);
        (0..places).map(move |place| {
            let asked = Asked {
                random: draw_of(place, places),
                client,
                now_nanos: self.now_nanos,
            };
            select(self, flow, &asked)
        })
    }

    /// How many places the list has that serves this flow; 1 without any, as that is decided too.
    fn places(&self, flow: &Flow) -> u16 {
        let key = FrontendKey::new(flow.addr, flow.port, flow.proto);
        let ring = self.tables.frontend(&key).and_then(|frontend| {
            let list = list_for(&frontend, flow.origin);
            self.tables.ring(frontend.service(), list)
        });
        ring.map_or(1, |ring| ring.len.max(1))
    }

    fn served(
        &self,
        service: &ServiceView,
        frontend: Frontend,
        flow: &Flow,
        client: Option<Client>,
    ) -> Served {
        let affinity = (service.affinity_secs > 0).then(|| Stickiness {
            timeout_secs: service.affinity_secs,
            client: client.map(|client| self.entry(service, flow, client)),
        });
        Served {
            id: service.id.clone(),
            kind: Kind::from_cell(frontend.kind),
            is_local: frontend.flags & Frontend::LOCAL != 0,
            list: list_for(&frontend, flow.origin),
            hints: service.hints,
            candidates: self.candidates(service, flow),
            kept: service.kept.clone(),
            affinity,
        }
    }

    fn candidates(&self, service: &ServiceView, flow: &Flow) -> Vec<Candidate> {
        let mut candidates: BTreeMap<BackendIndex, Candidate> = BTreeMap::new();
        for decision in self.decide(flow, NOBODY) {
            let Decision::Forward(to) = decision else {
                continue;
            };
            let candidate = candidates.entry(to.index).or_insert_with(|| Candidate {
                backend: dump::backend_view(&self.tables.zones, to.index, to.backend),
                draws: 0,
                clients: 0,
            });
            candidate.draws += 1;
        }
        let clients = self.given.keys().filter(|(of, _)| *of == service.index.0);
        for (_, cookie) in clients {
            if let Some(backend) = self.kept_by(flow, Client(*cookie))
                && let Some(candidate) = candidates.get_mut(&backend.index)
            {
                candidate.clients += 1;
            }
        }
        let mut nearest_first: Vec<_> = candidates.into_values().collect();
        nearest_first.sort_by_key(|Candidate { backend, .. }| {
            (
                distance(backend.locality),
                backend.cell.addr,
                backend.cell.port,
            )
        });
        nearest_first
    }

    /// Where affinity leads a client.
    fn kept_by(&self, flow: &Flow, client: Client) -> Option<BackendView> {
        match self.decide(flow, client).next()? {
            Decision::Forward(to) if to.found == Found::ByClient => {
                Some(dump::backend_view(&self.tables.zones, to.index, to.backend))
            }
            Decision::Forward(_)
            | Decision::NotAService
            | Decision::Reject(_)
            | Decision::Drop(_) => None,
        }
    }

    fn entry(&self, service: &ServiceView, flow: &Flow, client: Client) -> Entry {
        let given = self.given.get(&(service.index.0, client.0));
        let state = match (given, self.kept_by(flow, client)) {
            (None, _) => State::New,
            (Some(_), Some(backend)) => State::Keeps(backend),
            (Some(given), None) if given.has_expired(service.affinity_secs, self.now_nanos) => {
                State::Expired
            }
            (Some(_), None) => State::BackendLeft,
        };
        let idle = given.map(|given| self.now_nanos.saturating_sub(given.used_nanos));
        Entry {
            client,
            state,
            idle_secs: idle.unwrap_or(0) / 1_000_000_000,
        }
    }
}

fn at_address(services: &[ServiceView], flow: &Flow) -> Vec<(FrontendKey, ServicePortId)> {
    let frontends = services.iter().flat_map(|service| {
        let frontends = service.frontends.iter();
        frontends.map(move |(key, _)| (*key, service.id.clone()))
    });
    let mut found: Vec<_> = frontends.filter(|(key, _)| key.addr == flow.addr).collect();
    found.sort();
    found
}

/// The least random number that stands for this place of a ring: the inverse of [`Ring::slot`].
fn draw_of(place: u16, places: u16) -> u32 {
    let (place, places) = (u64::from(place), u64::from(places));
    let random = (place << 32).div_ceil(places);
    u32::try_from(random).expect("a place is below the number of places")
}

/// A draw that is known beforehand.
struct Asked {
    random: u32,
    client: Client,
    now_nanos: u64,
}

impl Draw for Asked {
    fn random(&self) -> u32 {
        self.random
    }

    /// A new flow, of a socket that was not used before.
    fn remembered(&self) -> Option<Remembered> {
        None
    }

    fn client(&self) -> Client {
        self.client
    }

    fn now_nanos(&self) -> u64 {
        self.now_nanos
    }
}

/// The tables, with what the hooks have written.
impl Tables for Held {
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.tables.frontend(key)
    }

    fn ring(&self, service: ServiceIndex, list: List) -> Option<Ring> {
        self.tables.ring(service, list)
    }

    fn affinity_secs(&self, service: ServiceIndex) -> u32 {
        self.tables.affinity_secs(service)
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.given.get(&(key.service, key.netns_cookie)).copied()
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.tables.slot(index)
    }

    fn backend(&self, index: BackendIndex) -> Option<Backend> {
        self.tables.backend(index)
    }

    fn in_service_cidr(&self, addr: Addr) -> bool {
        self.tables.in_service_cidr(addr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_of_a_ring_is_drawn_once() {
        for len in [1, 2, 3, 7, 100, 1000, u16::MAX] {
            let ring = Ring {
                base: 5,
                len,
                algorithm: Ring::RANDOM,
                on_empty: Ring::REJECT,
            };
            let places = (0..len).map(|place| ring.slot(draw_of(place, len)));
            assert!(places.eq(5..5 + u32::from(len)), "{len} places");
        }
    }
}
