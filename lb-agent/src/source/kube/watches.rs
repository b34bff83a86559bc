//! How the watches do, for who looks from outside: figures that their side stores and any thread reads,
//! without one waiting for the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use k8s_openapi::jiff::Timestamp;

use crate::{
    model::object::Kind,
    source::kube::fold::{KINDS, News},
};

/// All watches.
#[derive(Debug)]
pub struct Watches([(Kind, Figures); KINDS.len()]);

#[derive(Debug, Default)]
struct Figures {
    answering: AtomicBool,
    heard_secs: AtomicU64,
    lists: AtomicU64,
    failures: AtomicU64,
}

/// One watch at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchState {
    pub kind: Kind,
    /// The last that was heard is no failure.
    pub answering: bool,
    /// Unix time of the last word about an object; 0: none yet.
    pub heard_secs: u64,
    /// Whole lists, of which all but the first are relists.
    pub lists: u64,
    pub failures: u64,
}

impl Default for Watches {
    fn default() -> Self {
        Self(KINDS.map(|kind| (kind, Figures::default())))
    }
}

impl Watches {
    pub(super) fn note(&self, kind: Kind, news: &News, now: Timestamp) {
        let Some((_, figures)) = self.0.iter().find(|(of, _)| *of == kind) else {
            return;
        };
        match news {
            // Said before the server is asked.
            News::ListBegins => return,
            News::Failed(_) => {
                figures.answering.store(false, Relaxed);
                figures.failures.fetch_add(1, Relaxed);
                return;
            }
            News::ListEnds => {
                figures.lists.fetch_add(1, Relaxed);
            }
            News::Listed(_)
            | News::Changed(_)
            | News::Deleted(_)
            | News::NoSuchKind
            | News::Answered
            | News::WentBack => {}
        }
        figures.answering.store(true, Relaxed);
        let secs = u64::try_from(now.as_second()).unwrap_or_default();
        figures.heard_secs.store(secs, Relaxed);
    }

    /// Each watch, as it does.
    pub fn states(&self) -> impl Iterator<Item = WatchState> {
        self.0.iter().map(|(kind, figures)| WatchState {
            kind: *kind,
            answering: figures.answering.load(Relaxed),
            heard_secs: figures.heard_secs.load(Relaxed),
            lists: figures.lists.load(Relaxed),
            failures: figures.failures.load(Relaxed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_answers_until_it_fails_and_again_once_it_is_heard() {
        let watches = Watches::default();
        let service = || {
            let mut states = watches.states();
            let state = states.find(|state| state.kind == Kind::Service).unwrap();
            (
                state.answering,
                state.heard_secs,
                state.lists,
                state.failures,
            )
        };
        let failed = || News::Failed("no route".to_owned());
        for (second, news, expected) in [
            (1, News::ListBegins, (false, 0, 0, 0)),
            (2, failed(), (false, 0, 0, 1)),
            (3, News::ListBegins, (false, 0, 0, 1)),
            (4, News::ListEnds, (true, 4, 1, 1)),
            (5, failed(), (false, 4, 1, 2)),
            (6, failed(), (false, 4, 1, 3)),
            (7, News::Answered, (true, 7, 1, 3)),
            (8, News::ListBegins, (true, 7, 1, 3)),
            (9, News::ListEnds, (true, 9, 2, 3)),
        ] {
            let now = Timestamp::from_second(second).unwrap();
            watches.note(Kind::Service, &news, now);

            assert_eq!(service(), expected, "{news:?}");
        }
        let others = watches.states().filter(|state| state.kind != Kind::Service);
        assert!(
            others
                .into_iter()
                .all(|state| !state.answering && state.failures == 0)
        );
    }
}
