//! When maps grow, and how large they become. How they do is `datapath/migrate.rs`.

use std::time::{Duration, Instant};

use crate::{
    config::GivenCapacities,
    tables::{
        diff::{Full, Lacking},
        set::Capacities,
    },
};

/// After the kernel refused larger maps. It has little memory then, and trying takes some.
const RETRY: Duration = Duration::from_secs(60);

/// What becomes of the maps' size while an agent runs.
pub(super) struct Growth {
    given: GivenCapacities,
    /// How often they grew.
    pub(super) count: u32,
    /// Why they could not, and when to try again.
    refused: Option<(String, Instant)>,
}

impl Growth {
    pub(super) fn new(given: GivenCapacities) -> Self {
        Self {
            given,
            count: 0,
            refused: None,
        }
    }

    /// The capacities that the maps should have instead of those they have: room for twice the need, as
    /// new ones would have, and for what found none. A given capacity is both enough and the limit.
    pub(super) fn due(
        &self,
        have: Capacities,
        need: Capacities,
        full: &[Full],
    ) -> Option<Capacities> {
        let with_room = full.iter().fold(have, |room, full| match full.lacking {
            Lacking::Cells { map, .. } => room.max(have.doubled_in(map)),
            Lacking::List { .. } => room,
        });
        let target = self.given.over(need.max(with_room)).max(have);
        (target != have).then_some(target)
    }

    /// Whether it is too early to try again.
    pub(super) fn must_wait(&self, now: Instant) -> bool {
        self.refused.as_ref().is_some_and(|(_, at)| now < *at)
    }

    pub(super) fn is_not_due(&mut self) {
        self.refused = None;
    }

    pub(super) fn succeeded(&mut self) {
        self.count += 1;
        self.refused = None;
    }

    pub(super) fn failed(&mut self, error: &anyhow::Error, now: Instant) {
        let problem = format!(
            "the maps cannot grow: {error:#}; what they hold is served, and it is tried again in {} s",
            RETRY.as_secs()
        );
        self.refused = Some((problem, now + RETRY));
    }

    /// Why they could not grow.
    pub(super) fn problem(&self) -> Option<&str> {
        self.refused.as_ref().map(|(problem, _)| problem.as_str())
    }

    /// When to try again, if they could not.
    pub(super) fn retry_in(&self, now: Instant) -> Option<Duration> {
        let (_, at) = self.refused.as_ref()?;
        Some(at.saturating_duration_since(now))
    }

    /// Given capacities that adopted maps exceed, in words.
    pub(super) fn exceeded_by(&self, have: Capacities) -> Option<String> {
        let smaller = self.given.flags().into_iter().zip(have.by_map());
        let smaller: Vec<_> = smaller
            .filter_map(|((flag, given), (_, have))| {
                let given = given.filter(|given| *given < have)?;
                Some(format!("{flag} {given} (it has {have})"))
            })
            .collect();
        (!smaller.is_empty()).then(|| smaller.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{addr::Proto, tables::names};

    use super::*;
    use crate::model::name::{Family, ServiceName, ServicePortId};

    #[test]
    fn maps_grow_to_what_new_ones_would_have_and_never_shrink() {
        let growth = Growth::new(GivenCapacities::default());

        assert_eq!(growth.due(room(256), room(256), &[]), None);
        assert_eq!(growth.due(room(256), room(512), &[]), Some(room(512)));
        assert_eq!(growth.due(room(512), room(256), &[]), None);
    }

    #[test]
    fn a_map_without_room_doubles_though_the_need_is_small() {
        let growth = Growth::new(GivenCapacities::default());
        let grown = growth.due(room(256), room(256), &[full(names::SLOTS)]);

        let slots = 512;
        assert_eq!(grown, Some(Capacities { slots, ..room(256) }));
    }

    #[test]
    fn a_given_capacity_is_enough_and_the_limit() {
        let growth = Growth::new(GivenCapacities {
            backends: Some(300),
            ..GivenCapacities::default()
        });

        let backends = 300;
        let at_the_limit = Capacities {
            backends,
            ..room(256)
        };
        assert_eq!(growth.due(room(256), room(256), &[]), Some(at_the_limit));
        assert_eq!(
            growth.due(at_the_limit, room(256), &[full(names::BACKENDS)]),
            None
        );
        assert_eq!(growth.exceeded_by(room(256)), None);
        assert_eq!(
            growth.exceeded_by(room(512)).as_deref(),
            Some("--capacity-backends 300 (it has 512)")
        );
    }

    #[test]
    fn a_list_that_is_too_long_makes_nothing_grow() {
        let growth = Growth::new(GivenCapacities::default());
        let mut full = full(names::SLOTS);
        full.lacking = Lacking::List { len: 70_000 };

        assert_eq!(growth.due(room(256), room(256), &[full]), None);
    }

    #[test]
    fn after_a_refusal_it_waits_and_says_why() {
        let mut growth = Growth::new(GivenCapacities::default());
        let now = Instant::now();
        growth.failed(&anyhow::anyhow!("no memory"), now);

        assert!(growth.must_wait(now) && !growth.must_wait(now + RETRY));
        assert_eq!(growth.retry_in(now), Some(RETRY));
        assert!(growth.problem().unwrap().contains("no memory"));

        growth.succeeded();
        assert_eq!((growth.problem(), growth.count), (None, 1));
    }

    fn room(cells: u32) -> Capacities {
        Capacities {
            frontends: cells,
            services: cells,
            slots: cells,
            backends: cells,
        }
    }

    fn full(map: &'static str) -> Full {
        Full {
            id: ServicePortId {
                service: ServiceName {
                    namespace: "default".into(),
                    name: "web".into(),
                },
                port: String::new(),
                proto: Proto::TCP,
                family: Family::V4,
            },
            lacking: Lacking::Cells {
                map,
                capacity: 256,
                flag: "--capacity",
            },
            is_served: false,
        }
    }
}
