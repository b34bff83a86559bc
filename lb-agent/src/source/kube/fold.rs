//! What an API server says, folded into batches. No network and no clock, so that a test can say
//! anything a server might say.
//!
//! The model holds the objects; here are only their keys, to know after a new list what is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use k8s_openapi::jiff::Timestamp;

use crate::{
    api::{Converted, Rejected},
    model::{Object, ObjectKey, object::Kind},
    source::{Batch, Problem},
};

/// The kinds that are watched. Each is complete by itself.
pub const KINDS: [Kind; 4] = [
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Node,
    Kind::ServiceCidr,
];

/// A list that is shorter than this may lose any part of it.
const MANY: usize = 20;

/// One thing that a watch of one kind has to say.
#[derive(Debug)]
pub enum News {
    ListBegins,
    Listed(Read),
    ListEnds,
    Changed(Read),
    Deleted(ObjectKey),
    /// The server does not have this kind.
    NoSuchKind,
    Failed(String),
    /// After a failure, the server answered again.
    Answered,
    /// The server's data are older than what it said before. A new list follows.
    WentBack,
}

/// An object as it was read.
#[derive(Debug)]
pub struct Read {
    pub key: ObjectKey,
    pub outcome: Result<Converted, Rejected>,
}

/// What the teller has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Then {
    GoOn,
    /// The list lacks so much that another one must confirm it.
    ListAgain {
        held: usize,
        gone: usize,
    },
}

/// All that the server said.
#[derive(Debug)]
pub struct Fold {
    /// The server, for problems.
    place: String,
    watches: BTreeMap<Kind, Watch>,
    /// The latest of each object that nobody has taken yet.
    changes: BTreeMap<ObjectKey, Option<Object>>,
    /// What could not be used of objects.
    complaints: BTreeMap<ObjectKey, Vec<String>>,
    reported: Vec<Problem>,
    reported_complete: bool,
}

#[derive(Debug, Default)]
struct Watch {
    /// What is in the model, or about to be.
    held: BTreeSet<ObjectKey>,
    /// What the list under way has named so far.
    listed: BTreeSet<ObjectKey>,
    complete: bool,
    /// The list under way was asked for to confirm the one before it.
    confirming: bool,
    /// The server has lost data, so nothing that a list lacks is believed at once.
    suspect: bool,
    failure: Option<Failure>,
}

#[derive(Debug)]
struct Failure {
    since: Timestamp,
    why: String,
}

impl Fold {
    #[must_use]
    pub fn new(place: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            watches: KINDS.map(|kind| (kind, Watch::default())).into(),
            changes: BTreeMap::new(),
            complaints: BTreeMap::new(),
            reported: Vec::new(),
            reported_complete: false,
        }
    }

    /// Takes in what the watch of `kind` says.
    pub fn tell(&mut self, kind: Kind, news: News, now: Timestamp) -> Then {
        if !matches!(news, News::Failed(_) | News::ListBegins) {
            self.watch(kind).failure = None;
        }
        match news {
            News::ListBegins => self.watch(kind).listed.clear(),
            News::Listed(read) => {
                self.watch(kind).listed.insert(read.key.clone());
                self.put(kind, read);
            }
            News::ListEnds => return self.list_ends(kind),
            News::Changed(read) => self.put(kind, read),
            News::Deleted(key) => self.forget(kind, key),
            News::NoSuchKind => return self.list_ends(kind),
            News::Failed(why) => self.failed(kind, why, now),
            News::Answered => {}
            News::WentBack => self.watch(kind).suspect = true,
        }
        Then::GoOn
    }

    /// Whether a batch would say anything. Changes wait until every kind is complete, since nobody may
    /// act on them before.
    #[must_use]
    pub fn has_news(&self) -> bool {
        let is_first = self.is_complete() && !self.reported_complete;
        let has_changes = self.is_complete() && !self.changes.is_empty();
        is_first || has_changes || self.problems() != self.reported
    }

    /// What was not taken yet.
    pub fn take_batch(&mut self) -> Batch {
        self.reported = self.problems();
        self.reported_complete = self.is_complete();
        let mut batch = Batch {
            problems: self.reported.clone(),
            complete: self.reported_complete,
            ..Batch::default()
        };
        if batch.complete {
            for (key, object) in mem::take(&mut self.changes) {
                match object {
                    Some(object) => batch.apply.push(object),
                    None => batch.delete.push(key),
                }
            }
        }
        batch
    }

    fn watch(&mut self, kind: Kind) -> &mut Watch {
        self.watches.entry(kind).or_default()
    }

    /// Whether every kind was listed once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.watches.values().all(|watch| watch.complete)
    }

    fn put(&mut self, kind: Kind, read: Read) {
        self.complaints.remove(&read.key);
        match read.outcome {
            Ok(converted) => {
                self.complain(
                    &read.key,
                    converted.dropped.iter().map(ToString::to_string).collect(),
                );
                match converted.object {
                    Some(object) => self.keep(kind, read.key, object),
                    None => self.withdraw(kind, read.key),
                }
            }
            // It stays as it was last good.
            Err(rejected) => self.complain(&read.key, vec![rejected.unused()]),
        }
    }

    fn complain(&mut self, key: &ObjectKey, what: Vec<String>) {
        if !what.is_empty() {
            self.complaints.insert(key.clone(), what);
        }
    }

    fn keep(&mut self, kind: Kind, key: ObjectKey, object: Object) {
        self.watch(kind).held.insert(key.clone());
        self.changes.insert(key, Some(object));
    }

    fn forget(&mut self, kind: Kind, key: ObjectKey) {
        self.complaints.remove(&key);
        self.withdraw(kind, key);
    }

    fn withdraw(&mut self, kind: Kind, key: ObjectKey) {
        if self.watch(kind).held.remove(&key) {
            self.changes.insert(key, None);
        }
    }

    fn list_ends(&mut self, kind: Kind) -> Then {
        let watch = self.watch(kind);
        let listed = mem::take(&mut watch.listed);
        let gone: Vec<_> = watch.held.difference(&listed).cloned().collect();
        let held = watch.held.len();
        let is_confirmed = mem::replace(&mut watch.confirming, false);
        let is_suspect = mem::replace(&mut watch.suspect, false) && !gone.is_empty();
        if !is_confirmed && (is_suspect || is_implausible(kind, watch.complete, held, gone.len())) {
            watch.confirming = true;
            return Then::ListAgain {
                held,
                gone: gone.len(),
            };
        }
        watch.complete = true;
        for key in gone {
            self.withdraw(kind, key);
        }
        self.complaints
            .retain(|key, _| key.kind != kind || listed.contains(key));
        Then::GoOn
    }

    /// The text may change while the watch keeps failing; since when it does, may not.
    fn failed(&mut self, kind: Kind, why: String, now: Timestamp) {
        let failure = &mut self.watch(kind).failure;
        let since = failure.as_ref().map_or(now, |failure| failure.since);
        *failure = Some(Failure { since, why });
    }

    fn problems(&self) -> Vec<Problem> {
        let complaints = self.complaints.values().flatten().cloned();
        let problems = self.failures().into_iter().chain(complaints);
        problems
            .map(|what| Problem {
                place: self.place.clone(),
                line: None,
                what,
            })
            .collect()
    }

    /// One line for all kinds that fail alike.
    fn failures(&self) -> Vec<String> {
        let mut alike: BTreeMap<&str, (Timestamp, Vec<String>)> = BTreeMap::new();
        for (kind, watch) in &self.watches {
            let Some(failure) = &watch.failure else {
                continue;
            };
            let (since, kinds) = alike
                .entry(&failure.why)
                .or_insert((failure.since, Vec::new()));
            *since = failure.since.min(*since);
            kinds.push(format!("{kind}s"));
        }
        let lines = alike.into_iter().map(|(why, (since, kinds))| {
            format!(
                "cannot watch {} since {since:.0}: {why}; what was heard before keeps serving",
                kinds.join(", ")
            )
        });
        lines.collect()
    }
}

/// Whether a list lacks more than one expects to vanish between two lists. A server that has lost
/// its data, or not read it yet, says the same as one whose users removed everything.
fn is_implausible(kind: Kind, known: bool, held: usize, gone: usize) -> bool {
    if held == gone {
        // Every cluster has the Service `kubernetes`, and its slice.
        let never_empty = matches!(kind, Kind::Service | Kind::EndpointSlice);
        return held != 0 || (never_empty && !known);
    }
    held >= MANY && gone > held / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::object::Node;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn key(kind: Kind, name: &str) -> ObjectKey {
        ObjectKey::new(kind, "", name)
    }

    /// Any kind's watch can bring any object here; a Node is the smallest.
    fn read(kind: Kind, name: &str, zone: &str) -> Read {
        Read {
            key: key(kind, name),
            outcome: Ok(Converted {
                object: Some(Object::Node(Node {
                    name: name.to_owned(),
                    zone: Some(zone.to_owned()),
                    ..Node::default()
                })),
                dropped: Vec::new(),
            }),
        }
    }

    fn rejected(kind: Kind, name: &str) -> Read {
        Read {
            key: key(kind, name),
            outcome: Err(Rejected {
                object: key(kind, name),
                why: "it is odd".to_owned(),
            }),
        }
    }

    fn tell(fold: &mut Fold, kind: Kind, news: News) {
        assert_eq!(fold.tell(kind, news, at(0)), Then::GoOn);
    }

    fn list<'a>(fold: &mut Fold, kind: Kind, names: impl IntoIterator<Item = &'a str>) -> Then {
        tell(fold, kind, News::ListBegins);
        for name in names {
            tell(fold, kind, News::Listed(read(kind, name, "a")));
        }
        fold.tell(kind, News::ListEnds, at(0))
    }

    /// Every kind listed once: the Services given, and one slice.
    fn complete<'a>(services: impl IntoIterator<Item = &'a str>) -> Fold {
        let mut fold = Fold::new("https://server");
        assert_eq!(list(&mut fold, Kind::Service, services), Then::GoOn);
        assert_eq!(list(&mut fold, Kind::EndpointSlice, ["s"]), Then::GoOn);
        assert_eq!(list(&mut fold, Kind::Node, []), Then::GoOn);
        assert_eq!(list(&mut fold, Kind::ServiceCidr, []), Then::GoOn);
        assert!(take(&mut fold).unwrap().complete);
        fold
    }

    fn take(fold: &mut Fold) -> Option<Batch> {
        fold.has_news().then(|| fold.take_batch())
    }

    /// The next batch's changes as `name=zone` and `-name`.
    fn changes(fold: &mut Fold) -> Vec<String> {
        let batch = take(fold).unwrap_or_default();
        let applied = batch.apply.into_iter().map(|object| match object {
            Object::Node(node) => format!("{}={}", node.name, node.zone.unwrap_or_default()),
            other @ (Object::Service(_) | Object::Slice(_) | Object::ServiceCidr(_)) => {
                panic!("{other:?} is no Node")
            }
        });
        let deleted = batch.delete.into_iter().map(|key| format!("-{}", key.name));
        applied.chain(deleted).collect()
    }

    fn problems(fold: &mut Fold) -> Vec<String> {
        let batch = take(fold).expect("there is something to say");
        batch.problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_is_handed_over_before_all_four_lists_are_complete() {
        let mut fold = Fold::new("https://server");
        for (kind, names) in [
            (Kind::Service, vec!["web"]),
            (Kind::EndpointSlice, vec!["web-1"]),
            (Kind::Node, vec!["n1"]),
        ] {
            assert_eq!(list(&mut fold, kind, names), Then::GoOn);
            assert_eq!(take(&mut fold), None);
        }
        tell(&mut fold, Kind::ServiceCidr, News::ListBegins);
        tell(
            &mut fold,
            Kind::ServiceCidr,
            News::Listed(read(Kind::ServiceCidr, "c", "a")),
        );
        assert_eq!(take(&mut fold), None);
        tell(&mut fold, Kind::ServiceCidr, News::ListEnds);

        let batch = take(&mut fold).unwrap();
        assert!(batch.complete);
        assert_eq!((batch.apply.len(), batch.delete.len()), (4, 0));
        assert_eq!(take(&mut fold), None);
    }

    #[test]
    fn a_server_without_service_cidrs_is_complete_without_them() {
        let mut fold = Fold::new("https://server");
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
            assert_eq!(list(&mut fold, kind, ["x"]), Then::GoOn);
        }
        tell(&mut fold, Kind::ServiceCidr, News::ListBegins);
        tell(&mut fold, Kind::ServiceCidr, News::NoSuchKind);

        let batch = take(&mut fold).unwrap();
        assert!(batch.complete);
        assert_eq!(batch.problems, []);
    }

    #[test]
    fn events_that_come_together_are_one_batch_with_the_latest_of_each() {
        let mut fold = complete(["a", "b"]);
        let kind = Kind::Service;
        tell(&mut fold, kind, News::Changed(read(kind, "a", "x")));
        tell(&mut fold, kind, News::Changed(read(kind, "a", "y")));
        tell(&mut fold, kind, News::Deleted(key(kind, "b")));
        tell(&mut fold, kind, News::Deleted(key(kind, "never-seen")));

        assert_eq!(changes(&mut fold), ["a=y", "-b"]);
        assert_eq!(take(&mut fold), None);
    }

    #[test]
    fn a_new_list_deletes_what_it_does_not_name_of_its_own_kind() {
        let mut fold = complete(["a", "b", "c"]);

        assert_eq!(list(&mut fold, Kind::Service, ["a", "d"]), Then::GoOn);

        assert_eq!(changes(&mut fold), ["a=a", "d=a", "-b", "-c"]);
    }

    #[test]
    fn a_list_that_breaks_off_deletes_nothing() {
        let mut fold = complete(["a", "b", "c"]);
        let kind = Kind::Service;
        tell(&mut fold, kind, News::ListBegins);
        tell(&mut fold, kind, News::Listed(read(kind, "a", "x")));
        tell(&mut fold, kind, News::Failed("torn".to_owned()));
        assert_eq!(changes(&mut fold), ["a=x"]);

        // What the torn list named does not count for the next one.
        assert_eq!(list(&mut fold, kind, ["b", "c"]), Then::GoOn);
        assert_eq!(changes(&mut fold), ["b=a", "c=a", "-a"]);
    }

    #[test]
    fn a_list_that_lost_most_is_believed_when_the_next_one_agrees() {
        let names: Vec<_> = (0..MANY).map(|i| format!("s{i}")).collect();
        let names = || names.iter().map(String::as_str);
        let kind = Kind::Service;
        let lost = Then::ListAgain {
            held: MANY,
            gone: MANY - 1,
        };

        let mut fold = complete(names());
        assert_eq!(list(&mut fold, kind, ["s0"]), lost);
        assert_eq!(changes(&mut fold), ["s0=a"]);
        assert_eq!(list(&mut fold, kind, names()), Then::GoOn);
        assert_eq!(take(&mut fold).unwrap().delete, []);

        assert_eq!(list(&mut fold, kind, ["s0"]), lost);
        assert_eq!(list(&mut fold, kind, ["s0"]), Then::GoOn);
        assert_eq!(take(&mut fold).unwrap().delete.len(), MANY - 1);
    }

    #[test]
    fn nothing_that_a_server_lacks_after_it_went_back_is_believed_at_once() {
        let mut fold = complete(["a", "b", "c"]);
        let kind = Kind::Service;
        let lost = Then::ListAgain { held: 3, gone: 1 };

        tell(&mut fold, kind, News::WentBack);
        assert_eq!(list(&mut fold, kind, ["a", "b"]), lost);
        assert_eq!(take(&mut fold).unwrap().delete, []);
        assert_eq!(list(&mut fold, kind, ["a", "b"]), Then::GoOn);
        assert_eq!(take(&mut fold).unwrap().delete.len(), 1);

        // Once is enough: the next list is like any other.
        assert_eq!(list(&mut fold, kind, ["a"]), Then::GoOn);
    }

    #[test]
    fn half_of_many_may_vanish_and_most_of_a_few() {
        for (held, gone, implausible) in [
            (20, 10, false),
            (20, 11, true),
            (19, 18, false),
            (19, 19, true),
            (1, 1, true),
        ] {
            assert_eq!(
                is_implausible(Kind::Service, true, held, gone),
                implausible,
                "{gone} of {held}"
            );
        }
    }

    #[test]
    fn a_first_list_without_any_service_is_not_believed_at_once() {
        let mut fold = Fold::new("https://server");
        let empty = Then::ListAgain { held: 0, gone: 0 };
        assert_eq!(list(&mut fold, Kind::EndpointSlice, ["s"]), Then::GoOn);
        assert_eq!(list(&mut fold, Kind::Node, []), Then::GoOn);
        assert_eq!(list(&mut fold, Kind::ServiceCidr, []), Then::GoOn);

        assert_eq!(list(&mut fold, Kind::Service, []), empty);
        assert_eq!(take(&mut fold), None);
        assert_eq!(list(&mut fold, Kind::Service, []), Then::GoOn);
        assert!(take(&mut fold).unwrap().complete);
    }

    #[test]
    fn a_rejected_object_stays_as_it_was_last_good() {
        let mut fold = complete(["a", "b"]);
        let kind = Kind::Service;
        tell(&mut fold, kind, News::Changed(rejected(kind, "a")));
        assert_eq!(
            problems(&mut fold),
            ["https://server: Service a: it is odd; this object is not used until it is corrected"]
        );

        tell(&mut fold, kind, News::ListBegins);
        tell(&mut fold, kind, News::Listed(rejected(kind, "a")));
        tell(&mut fold, kind, News::Listed(read(kind, "b", "a")));
        tell(&mut fold, kind, News::ListEnds);
        assert_eq!(take(&mut fold).unwrap().delete, []);

        tell(&mut fold, kind, News::Deleted(key(kind, "a")));
        let batch = take(&mut fold).unwrap();
        assert_eq!((batch.delete.len(), batch.problems), (1, vec![]));
    }

    #[test]
    fn an_object_that_is_none_of_ours_any_more_is_deleted() {
        let mut fold = complete(["a"]);
        let kind = Kind::Service;
        let headless = Read {
            key: key(kind, "a"),
            outcome: Ok(Converted {
                object: None,
                dropped: Vec::new(),
            }),
        };
        tell(&mut fold, kind, News::Changed(headless));

        assert_eq!(changes(&mut fold), ["-a"]);
    }

    #[test]
    fn a_complaint_ends_with_the_object_that_a_new_list_does_not_name() {
        let mut fold = complete(["a"]);
        let kind = Kind::Service;
        tell(&mut fold, kind, News::Changed(rejected(kind, "never-good")));
        assert_eq!(problems(&mut fold).len(), 1);

        assert_eq!(list(&mut fold, kind, ["a"]), Then::GoOn);
        assert_eq!(problems(&mut fold), [""; 0]);
    }

    #[test]
    fn a_server_that_is_away_is_one_problem_that_says_since_when() {
        let mut fold = complete(["a"]);
        for (second, kind) in KINDS.into_iter().enumerate() {
            let second = i64::try_from(second).unwrap();
            let refused = News::Failed("connection refused".to_owned());
            assert_eq!(fold.tell(kind, refused, at(second)), Then::GoOn);
        }
        let away = [
            "https://server: cannot watch Services, EndpointSlices, Nodes, ServiceCIDRs since \
             2027-01-15T08:00:00Z: connection refused; what was heard before keeps serving",
        ];
        let batch = take(&mut fold).unwrap();
        assert!(batch.complete && batch.apply.is_empty() && batch.delete.is_empty());
        assert_eq!(
            batch
                .problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            away
        );

        // An hour later it is still the same problem, and so nothing to say.
        for kind in KINDS {
            tell(&mut fold, kind, News::ListBegins);
            let refused = News::Failed("connection refused".to_owned());
            assert_eq!(fold.tell(kind, refused, at(3600)), Then::GoOn);
        }
        assert_eq!(take(&mut fold), None);

        for kind in KINDS {
            tell(&mut fold, kind, News::Answered);
        }
        assert_eq!(problems(&mut fold), [""; 0]);
    }

    #[test]
    fn problems_are_told_before_everything_is_complete() {
        let mut fold = Fold::new("https://server");
        tell(&mut fold, Kind::Node, News::Failed("forbidden".to_owned()));

        let batch = take(&mut fold).unwrap();
        assert!(!batch.complete);
        assert_eq!(batch.problems.len(), 1);
        assert_eq!(take(&mut fold), None);
    }
}
