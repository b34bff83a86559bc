//! When a flow of packets is over, and who removes it: the programs begin flows and write down when they
//! were last used; only here does time end them. Pure but for [`Walk`], which remembers where a look at
//! all of them has got to, as that is done in parts.

use lb_common::{
    addr::Proto,
    flow::{FlowKey, Half, State},
    tables::{Backend, Membership},
};

/// Entries that are looked at in one part: some ten milliseconds.
pub(super) const PART: usize = 4096;

/// Where the look has got to.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    /// The last entry that was looked at; `None`: the next part begins at the first.
    pub(super) at: Option<FlowKey>,
    /// Entries looked at since the beginning. An entry that is removed meanwhile may send the look back to
    /// its beginning, so this ends it.
    pub(super) looked_at: usize,
}

const SECOND: u64 = 1_000_000_000;

/// A flow around another sees the same packets, but either is written down a second late. It must not go
/// first: what it hides would then show.
const AROUND_SECS: u64 = 10;

/// Whether a flow has ended by time. `other` is the other half, if it is there.
pub(super) fn has_timed_out(
    key: &FlowKey,
    half: &Half,
    other: Option<&Half>,
    now_nanos: u64,
) -> bool {
    let other_seen = other.map_or(0, |other| other.seen);
    let (original, reply) = match half.is_original() {
        true => (half.seen, other_seen),
        false => (other_seen, half.seen),
    };
    let used = half
        .used_nanos
        .max(other.map_or(0, |other| other.used_nanos));
    let state = State::of(Proto(key.proto), original, reply);
    let around = u64::from(half.flags & Half::MASQUERADE != 0) * AROUND_SECS;
    let kept_secs = u64::from(state.timeout_secs()) + around;
    now_nanos.saturating_sub(used) > kept_secs * SECOND
}

/// Whether a flow has ended because its endpoint has: of UDP alone, as a client would not notice. One that
/// drains still serves. `backend` is what its cell holds by now.
pub(super) fn has_lost_its_endpoint(key: &FlowKey, half: &Half, backend: &Backend) -> bool {
    /// Says which set of maps began the count.
    const SET: u32 = 0xff00_0000;

    let now = backend.membership;
    let same_use = now.generation == half.generation;
    // Of another set's cells nothing is known.
    let comparable = (now.generation ^ half.generation) & SET == 0;
    let serves = same_use && now.lists & Membership::SERVING != 0;
    Proto(key.proto) == Proto::UDP && comparable && !serves
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use lb_common::flow::seen;

    use super::*;

    #[test]
    fn a_flow_ends_when_its_state_says_so_after_the_later_of_both_directions() {
        let key = key(Proto::UDP);
        let half = |secs: u64, seen: u32| Half {
            used_nanos: secs * SECOND,
            seen,
            ..Half::zeroed()
        };
        let ended = |other: Option<Half>, now: u64| {
            has_timed_out(&key, &half(100, seen::PACKET), other.as_ref(), now * SECOND)
        };

        // Unanswered: 30 s, answered: 120 s.
        assert!(!ended(None, 130));
        assert!(ended(None, 131));
        assert!(!ended(Some(half(150, seen::PACKET)), 270));
        assert!(ended(Some(half(150, seen::PACKET)), 271));
        assert!(!ended(None, 0), "a clock that is behind ends nothing");
    }

    #[test]
    fn the_flow_around_another_goes_last() {
        let around = Half {
            seen: seen::PACKET,
            flags: Half::MASQUERADE,
            ..Half::zeroed()
        };
        let ended = |now: u64| has_timed_out(&key(Proto::UDP), &around, None, now * SECOND);

        assert!(!ended(31) && !ended(40) && ended(41));
    }

    #[test]
    fn only_udp_ends_with_its_endpoint_and_not_while_that_drains() {
        let half = Half {
            generation: 7,
            ..Half::zeroed()
        };
        let lost = |proto, lists, generation| {
            let membership = Membership { lists, generation };
            let backend = Backend {
                membership,
                ..Backend::zeroed()
            };
            has_lost_its_endpoint(&key(proto), &half, &backend)
        };

        assert!(!lost(Proto::UDP, Membership::SERVING, 7));
        assert!(!lost(
            Proto::UDP,
            Membership::SERVING | Membership::CLUSTER,
            7
        ));
        assert!(lost(Proto::UDP, 0, 7));
        assert!(
            lost(Proto::UDP, Membership::SERVING, 8),
            "another's cell by now"
        );
        assert!(
            !lost(Proto::UDP, Membership::SERVING, 0x0100_0001),
            "another set's"
        );
        assert!(!lost(Proto::TCP, 0, 8));
    }

    fn key(proto: Proto) -> FlowKey {
        FlowKey {
            proto: proto.0,
            ..FlowKey::zeroed()
        }
    }
}
