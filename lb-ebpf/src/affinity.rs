//! Session affinity, beside the choice: asks `select`, and writes down which backend the client was given
//! and when. Only for Services with affinity; for all others this is one compare.
#![forbid(unsafe_code)]

use lb_common::{
    reason::Reason,
    select::{Decision, Draw, Flow, Forward, Found, Remembered, Tables, choose_for_client, select},
    tables::{Affinity, AffinityKey, Client},
};

use crate::maps::Maps;

/// What becomes of a flow. A client's next flow then knows of this one.
#[inline(always)]
pub(crate) fn select_for_client(flow: &Flow, draw: &impl Draw) -> Decision {
    let decision = select(&Maps, flow, draw);
    match &decision {
        Decision::Forward(chosen) if !remember(chosen, draw) => choose_again(chosen, draw),
        _ => decision,
    }
}

/// Another flow of this client has made the entry meanwhile, and now it is found. Or the table is full:
/// then the client's hash is what stays the same from one flow to the next.
#[inline(always)]
fn choose_again(chosen: &Forward, draw: &impl Draw) -> Decision {
    let secs = Maps.affinity_secs(chosen.service);
    let decision = choose_for_client(&Maps, chosen.service, chosen.list, secs, &ByHash(draw));
    if let Decision::Forward(chosen) = &decision
        && chosen.found != Found::ByClient
    {
        Maps.count(Reason::AffinityFull);
    }
    decision
}

/// Returns whether the client's next flow will find what it needs.
#[inline(always)]
fn remember(chosen: &Forward, draw: &impl Draw) -> bool {
    if matches!(chosen.found, Found::Drawn | Found::BySocket) {
        return true;
    }
    let key = AffinityKey::new(draw.client(), chosen.service);
    let used_nanos = draw.now_nanos();
    let given = Affinity {
        backend: chosen.index.0,
        generation: chosen.backend.membership.generation,
        used_nanos,
    };
    match chosen.found {
        Found::ByClient => Maps.refresh_affinity(&key, used_nanos),
        Found::ForNewClient => return Maps.add_affinity(&key, &given),
        _ => return Maps.replace_affinity(&key, &given),
    }
    true
}

/// A draw whose luck is the client.
struct ByHash<'a, D>(&'a D);

impl<D: Draw> Draw for ByHash<'_, D> {
    #[inline(always)]
    fn random(&self) -> u32 {
        self.0.client().hash()
    }

    #[inline(always)]
    fn remembered(&self) -> Option<Remembered> {
        None
    }

    #[inline(always)]
    fn client(&self) -> Client {
        self.0.client()
    }

    #[inline(always)]
    fn now_nanos(&self) -> u64 {
        self.0.now_nanos()
    }
}
