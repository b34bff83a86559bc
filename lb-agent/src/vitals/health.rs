//! Whether the agent keeps up, and whether load balancers should send traffic to this node: what
//! `/livez` and `/healthz` say, in the words and with the rules of kube-proxy.
//!
//! An agent is unhealthy when something has waited too long to be programmed. One that has nothing to do
//! is healthy, and so is one whose API server is away: to start it again would help in neither case.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::model::name::Family;

/// The time by both clocks: one to measure with, one to show.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub clock: Instant,
    pub wall: SystemTime,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Kubelets: is the agent well, or should it be started again?
    Livez,
    /// Load balancers: should this node get traffic?
    Healthz,
}

/// Written by the loop, read by the server; each holds it for a few instructions.
#[derive(Debug)]
pub struct Health {
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Since when something waits.
    waiting: Option<Instant>,
    programmed: Option<SystemTime>,
    node_is_eligible: bool,
}

/// The answer, with its members in kube-proxy's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    #[serde(skip)]
    pub ok: bool,
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    /// Of the agent alone, whatever the node.
    healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<String, FamilyReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: String,
    healthy: bool,
}

impl Health {
    /// A change may wait for `patience`.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        Self {
            patience,
            state: Mutex::default(),
        }
    }

    /// Something is to be programmed.
    pub fn queued(&self, now: Now) {
        self.state().waiting.get_or_insert(now.clock);
    }

    /// All that was queued is programmed.
    pub fn done(&self, now: Now) {
        let mut state = self.state();
        state.waiting = None;
        state.programmed = Some(now.wall);
    }

    /// Whether this node is known, and not about to go.
    pub fn node_is_eligible(&self, eligible: bool) {
        self.state().node_is_eligible = eligible;
    }

    /// The answer to a probe. On success it was "last updated" now, even if nothing changed for hours:
    /// there are readers who expect that.
    #[must_use]
    pub fn report(&self, probe: Probe, now: Now) -> Report {
        let state = self.state();
        let waited = |since| now.clock.saturating_duration_since(since);
        let healthy = state
            .waiting
            .is_none_or(|since| waited(since) < self.patience);
        let node_eligible = (probe == Probe::Healthz).then_some(state.node_is_eligible);
        let ok = healthy && node_eligible != Some(false);
        let programmed = state.programmed.map(text);
        Report {
            ok,
            last_updated: match &programmed {
                _ if ok => text(now.wall),
                Some(programmed) => programmed.clone(),
                None => NEVER.to_owned(),
            },
            current_time: text(now.wall),
            node_eligible,
            healthy,
            status: programmed.map_or_else(BTreeMap::new, |last| families(&last, healthy)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nobody can panic while holding it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As kube-proxy writes a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// One sync programs both families, so they are always alike.
fn families(last_updated: &str, healthy: bool) -> BTreeMap<String, FamilyReport> {
    let of = |family: Family| {
        let last_updated = last_updated.to_owned();
        let report = FamilyReport {
            last_updated,
            healthy,
        };
        (family.to_string(), report)
    };
    Family::BOTH.map(of).into()
}

/// As Go writes times: RFC 3339.
fn text(wall: SystemTime) -> String {
    Timestamp::try_from(wall).map_or_else(|_| NEVER.to_owned(), |at| at.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A clock that only the test moves.
    struct Paused {
        start: Instant,
    }

    impl Paused {
        fn at(&self, secs: u64) -> Now {
            Now {
                clock: self.start + Duration::from_secs(secs),
                wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + secs),
            }
        }
    }

    fn health() -> (Health, Paused) {
        let health = Health::new(PATIENCE);
        health.node_is_eligible(true);
        let start = Instant::now();
        (health, Paused { start })
    }

    fn json(health: &Health, probe: Probe, now: Now) -> String {
        serde_json::to_string(&health.report(probe, now)).unwrap()
    }

    #[test]
    fn a_change_that_waits_as_long_as_the_patience_is_unhealthy_until_it_is_programmed() {
        let (health, clock) = health();
        health.done(clock.at(0));
        health.queued(clock.at(100));

        for (secs, ok) in [(100, true), (159, true), (160, false), (9999, false)] {
            for probe in [Probe::Livez, Probe::Healthz] {
                assert_eq!(
                    health.report(probe, clock.at(secs)).ok,
                    ok,
                    "{probe:?} {secs}"
                );
            }
        }
        health.done(clock.at(10_000));
        assert!(health.report(Probe::Livez, clock.at(99_999)).ok);
    }

    #[test]
    fn what_came_first_counts_however_much_comes_after_it() {
        let (health, clock) = health();
        for secs in 0..60 {
            health.queued(clock.at(secs));
        }

        assert!(!health.report(Probe::Livez, clock.at(60)).ok);
    }

    #[test]
    fn who_has_nothing_to_do_is_healthy_also_before_the_first_change() {
        let (health, clock) = health();

        assert!(health.report(Probe::Livez, clock.at(99_999)).ok);
    }

    #[test]
    fn a_first_change_that_never_gets_programmed_is_unhealthy_too() {
        let (health, clock) = health();
        health.queued(clock.at(0));

        assert_eq!(
            json(&health, Probe::Livez, clock.at(60)),
            r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2027-01-15T08:01:00Z","healthy":false}"#
        );
    }

    #[test]
    fn only_healthz_asks_for_the_node() {
        let (health, clock) = health();
        health.done(clock.at(0));
        health.node_is_eligible(false);

        assert!(health.report(Probe::Livez, clock.at(1)).ok);
        assert!(!health.report(Probe::Healthz, clock.at(1)).ok);
    }

    #[test]
    fn the_answers_are_kube_proxys() {
        let (health, clock) = health();
        health.done(clock.at(5));

        assert_eq!(
            json(&health, Probe::Livez, clock.at(10)),
            concat!(
                r#"{"lastUpdated":"2027-01-15T08:00:10Z","currentTime":"2027-01-15T08:00:10Z","#,
                r#""healthy":true,"status":{"#,
                r#""IPv4":{"lastUpdated":"2027-01-15T08:00:05Z","healthy":true},"#,
                r#""IPv6":{"lastUpdated":"2027-01-15T08:00:05Z","healthy":true}}}"#
            )
        );
        health.node_is_eligible(false);
        assert_eq!(
            json(&health, Probe::Healthz, clock.at(10)),
            concat!(
                r#"{"lastUpdated":"2027-01-15T08:00:05Z","currentTime":"2027-01-15T08:00:10Z","#,
                r#""nodeEligible":false,"healthy":true,"status":{"#,
                r#""IPv4":{"lastUpdated":"2027-01-15T08:00:05Z","healthy":true},"#,
                r#""IPv6":{"lastUpdated":"2027-01-15T08:00:05Z","healthy":true}}}"#
            )
        );
    }
}
