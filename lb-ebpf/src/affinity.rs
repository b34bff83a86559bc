//! Session affinity, after the choice: writes down which backend the client was given and when. Only for
//! Services with affinity; for all others this is one compare.
#![forbid(unsafe_code)]

use lb_common::{
    reason::Reason,
    select::{Decision, Draw, Forward, Found, Remembered, Tables, choose_for_client},
    tables::{Affinity, AffinityKey, Client},
};

use crate::maps::Maps;

/// Makes the choice one that the client's next flow will make again, where the Service asks for that.
///
/// If it cannot be written down, another flow of this client has made the entry meanwhile, and that one
/// counts. Or the table is full: then the client's hash is what stays the same from one flow to the next.
#[inline(always)]
pub(crate) fn settle(chosen: &Forward, draw: &impl Draw) -> Forward {
    if remember(chosen, draw) {
        return *chosen;
    }
    let secs = Maps.affinity_secs(chosen.service);
    let again = choose_for_client(&Maps, chosen.service, chosen.list, secs, &ByHash(draw));
    let Decision::Forward(settled) = again else {
        return *chosen;
    };
    if settled.found != Found::ByClient {
        Maps.count(Reason::AffinityFull);
    }
    settled
}

/// Returns whether the client's next flow will find what it needs.
#[inline(always)]
fn remember(chosen: &Forward, draw: &impl Draw) -> bool {
    if matches!(chosen.found, Found::Drawn | Found::BySocket) {
        return true;
    }
    let key = AffinityKey::new(draw.client(), chosen.service);
    let used_nanos = draw.now_nanos();
    if chosen.found == Found::ByClient {
        Maps.refresh_affinity(&key, used_nanos);
        return true;
    }
    let given = Affinity {
        backend: chosen.index.0,
        generation: chosen.backend.membership.generation,
        used_nanos,
    };
    if chosen.found == Found::ForNewClient {
        Maps.add_affinity(&key, &given)
    } else {
        Maps.replace_affinity(&key, &given)
    }
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
