//! Which endpoints of a Service port this node uses, and why: kube-proxy's rules, one function each.
//!
//! A list is never computed apart from its reasons: an endpoint is in a list exactly if its [`Why`]
//! for that list says so, so what an operator reads is what the kernel does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use lb_common::{
    addr::{Addr, Port},
    tables::{Hints, List},
};

use crate::model::{
    endpoint::{Endpoint, EndpointAddr, Merged},
    service::Asks,
};

/// The node for which we choose.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    pub node: &'a str,
    /// `None` when the node has no zone label, or is not known.
    pub zone: Option<&'a str>,
}

/// Which of its two lists a Service port ever uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uses {
    pub cluster: bool,
    pub local: bool,
}

/// The outcome for one Service port and family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub uses: Uses,
    /// Some endpoint of the cluster could serve, though perhaps none that this node may use. Without
    /// any, connections are refused; with some, they are dropped so that clients try elsewhere.
    pub has_any: bool,
    pub topology: Topology,
    /// Every endpoint, used or not, in the order of their addresses.
    pub endpoints: Vec<Chosen>,
}

impl Choice {
    /// The members of a list in the order of their addresses; `None` if the port never uses it.
    #[must_use]
    pub fn list(&self, list: List) -> Option<Vec<&Chosen>> {
        let used = match list {
            List::Cluster => self.uses.cluster,
            List::Local => self.uses.local,
        };
        used.then(|| self.members(list).collect())
    }

    fn members(&self, list: List) -> impl Iterator<Item = &Chosen> {
        self.endpoints
            .iter()
            .filter(move |endpoint| endpoint.is_in(list))
    }

    /// What became of hints, which only ever narrow the cluster list.
    #[must_use]
    pub fn hints(&self) -> Hints {
        match self.uses.cluster {
            true => self.topology.hints(),
            false => Hints::None,
        }
    }

    /// Why hints do not narrow the list though somebody gave them or asked for them.
    #[must_use]
    pub fn why_no_hints(&self) -> Option<String> {
        if !self.uses.cluster {
            return None;
        }
        match &self.topology {
            Topology::Ignored(why) => Some(why.to_string()),
            Topology::Missing(why) => Some(why.to_string()),
            Topology::Unhinted | Topology::SameNode | Topology::SameZone(_) => None,
        }
    }

    #[must_use]
    pub fn is_empty(&self, list: List) -> bool {
        self.members(list).next().is_none()
    }
}

/// One endpoint and its place in the lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    pub at: EndpointAddr,
    /// Where it is, for figures; never what decided.
    pub zone: Option<String>,
    /// On this node.
    pub is_local: bool,
    /// Ready or draining: able to take connections if the lists ask for it.
    pub usable: bool,
    /// Ready or serving, terminating or not: flows that it has may stay.
    pub keeps_flows: bool,
    pub reason: Reason,
}

impl Chosen {
    #[must_use]
    pub fn addr(&self) -> Addr {
        self.at.addr
    }

    #[must_use]
    pub fn port(&self) -> Port {
        self.at.port
    }

    #[must_use]
    pub fn is_in(&self, list: List) -> bool {
        let why = match list {
            List::Cluster => &self.reason.cluster,
            List::Local => &self.reason.local,
        };
        why.as_ref().is_some_and(Why::is_used)
    }
}

/// Choose. `endpoints` are all of this Service port and family; what the Service `asks` changes the
/// reasons and never the choice.
#[must_use]
pub fn choose(
    endpoints: &Merged<'_>,
    viewer: Viewer<'_>,
    uses: Uses,
    asks: Option<Asks>,
) -> Choice {
    let topology = topology(endpoints, viewer, asks);
    let cluster = ClusterRule {
        topology: &topology,
        viewer,
        any_ready: endpoints.values().any(|endpoint| endpoint.ready),
    };
    let local = LocalRule {
        node: viewer.node,
        any_ready: endpoints
            .values()
            .any(|e| e.ready && is_local(e, viewer.node)),
    };
    let chosen = endpoints
        .iter()
        .map(|(at, endpoint)| Chosen {
            at: *at,
            zone: endpoint.zone.clone(),
            is_local: is_local(endpoint, viewer.node),
            usable: is_usable(endpoint),
            keeps_flows: endpoint.ready || endpoint.serving,
            reason: Reason {
                cluster: uses.cluster.then(|| cluster.judge(endpoint)),
                local: uses.local.then(|| local.judge(endpoint)),
            },
        })
        .collect();
    Choice {
        uses,
        has_any: endpoints.values().any(|endpoint| is_usable(endpoint)),
        topology,
        endpoints: chosen,
    }
}

/// Ready is asked alone: serving and terminating do not matter for a ready endpoint.
fn is_usable(endpoint: &Endpoint) -> bool {
    endpoint.ready || endpoint.is_draining()
}

/// An endpoint without a node name is on no node.
fn is_local(endpoint: &Endpoint, node: &str) -> bool {
    !node.is_empty() && endpoint.node.as_deref() == Some(node)
}

/// How hints narrow the cluster list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// No ready endpoint has a hint.
    Unhinted,
    /// Only the endpoints hinted for this node.
    SameNode,
    /// Only the endpoints hinted for this zone.
    SameZone(String),
    /// There are hints, and they cannot be followed.
    Ignored(Ignored),
    /// The Service asks for hints, and no ready endpoint has one.
    Missing(Missing),
}

impl Topology {
    /// In one word, as the tables hold it.
    #[must_use]
    pub fn hints(&self) -> Hints {
        match self {
            Self::Unhinted => Hints::None,
            Self::SameNode => Hints::Node,
            Self::SameZone(_) => Hints::Zone,
            Self::Ignored(Ignored::NoZone) => Hints::NodeHasNoZone,
            Self::Ignored(Ignored::ZoneUnhinted(_)) => Hints::EndpointUnhinted,
            Self::Ignored(Ignored::ZoneUncovered(_)) => Hints::ZoneUncovered,
            Self::Ignored(Ignored::NodeUnhinted(_)) => Hints::EndpointUnhintedNode,
            Self::Ignored(Ignored::NodeUncovered) => Hints::NodeUncovered,
            Self::Missing(Missing::NoZone(_)) => Hints::EndpointHasNoZone,
            Self::Missing(Missing::Auto { .. }) => Hints::Uneven,
            Self::Missing(Missing::Other(_)) => Hints::NotGiven,
        }
    }
}

/// Why hints are not followed. One reason suffices to ignore all of them, so the first is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ignored {
    NoZone,
    ZoneUnhinted(EndpointAddr),
    ZoneUncovered(String),
    NodeUnhinted(EndpointAddr),
    NodeUncovered,
}

/// Why the control plane has given no hints, as far as the endpoints tell. It sees all Nodes, and this
/// node does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// This ready endpoint has no zone, because its Node has none.
    NoZone(EndpointAddr),
    /// `topology-mode: Auto`, with so many ready endpoints in each zone.
    Auto { zones: BTreeMap<String, usize> },
    /// Not yet given, or the slices are made by somebody who gives none.
    Other(Asks),
}

/// Node hints first, then zone hints. Only ready endpoints have a say: one that is unready or
/// draining neither vetoes the hints nor counts as an endpoint for this place.
fn topology(endpoints: &Merged<'_>, viewer: Viewer<'_>, asks: Option<Asks>) -> Topology {
    let ready = || endpoints.iter().filter(|(_, endpoint)| endpoint.ready);
    let by_node = follow(
        ready().map(|(at, endpoint)| (*at, &endpoint.for_nodes)),
        viewer.node,
    );
    // To kube-proxy the zone of a node without one is the empty name, and a hint may name it.
    let zone = viewer.zone.unwrap_or_default();
    let by_zone = follow(
        ready().map(|(at, endpoint)| (*at, &endpoint.for_zones)),
        zone,
    );

    match (by_node, by_zone) {
        (Places::Covered, _) => Topology::SameNode,
        (_, Places::Covered) => Topology::SameZone(zone.to_owned()),
        (_, Places::Missing(_) | Places::Uncovered) if zone.is_empty() => {
            Topology::Ignored(Ignored::NoZone)
        }
        (_, Places::Missing(at)) => Topology::Ignored(Ignored::ZoneUnhinted(at)),
        (_, Places::Uncovered) => Topology::Ignored(Ignored::ZoneUncovered(zone.to_owned())),
        (Places::Missing(at), Places::None) => Topology::Ignored(Ignored::NodeUnhinted(at)),
        (Places::Uncovered, Places::None) => Topology::Ignored(Ignored::NodeUncovered),
        (Places::None, Places::None) => unhinted(endpoints, asks),
    }
}

/// Without a ready endpoint nobody can have given a hint.
fn unhinted(endpoints: &Merged<'_>, asks: Option<Asks>) -> Topology {
    let ready = || endpoints.iter().filter(|(_, endpoint)| endpoint.ready);
    let Some(asks) = asks.filter(|_| ready().next().is_some()) else {
        return Topology::Unhinted;
    };
    if let Some((at, _)) = ready().find(|(_, endpoint)| endpoint.zone.is_none()) {
        return Topology::Missing(Missing::NoZone(*at));
    }
    match asks {
        Asks::Auto => {
            let mut zones = BTreeMap::new();
            for zone in ready().filter_map(|(_, endpoint)| endpoint.zone.clone()) {
                *zones.entry(zone).or_default() += 1;
            }
            Topology::Missing(Missing::Auto { zones })
        }
        Asks::SameZone | Asks::SameNode => Topology::Missing(Missing::Other(asks)),
    }
}

/// What the hints of one kind amount to.
enum Places {
    /// Nobody has one.
    None,
    /// Some have one, and this endpoint does not.
    Missing(EndpointAddr),
    /// All have one, and none is for here.
    Uncovered,
    /// All have one, and at least one is for here.
    Covered,
}

/// What one kind of hint says about `here`.
fn follow<'a>(
    hints: impl Iterator<Item = (EndpointAddr, &'a BTreeSet<String>)> + Clone,
    here: &str,
) -> Places {
    if hints.clone().all(|(_, places)| places.is_empty()) {
        return Places::None;
    }
    if let Some((at, _)) = hints.clone().find(|(_, places)| places.is_empty()) {
        return Places::Missing(at);
    }
    if hints.clone().any(|(_, places)| places.contains(here)) {
        return Places::Covered;
    }
    Places::Uncovered
}

/// Membership of the cluster list.
struct ClusterRule<'a> {
    topology: &'a Topology,
    viewer: Viewer<'a>,
    any_ready: bool,
}

impl ClusterRule<'_> {
    fn judge(&self, endpoint: &Endpoint) -> Why {
        if endpoint.ready {
            return self.by_hints(endpoint);
        }
        // With something ready the filtered list is not empty either: hints are followed only if a
        // ready endpoint is hinted for here. So this is the only case of the draining fallback.
        if endpoint.is_draining() && !self.any_ready {
            return Why::DrainingFallback(List::Cluster);
        }
        unusable(endpoint)
    }

    fn by_hints(&self, endpoint: &Endpoint) -> Why {
        match self.topology {
            Topology::Unhinted | Topology::Missing(_) => Why::Ready,
            Topology::Ignored(ignored) => Why::ReadyHintsIgnored(ignored.clone()),
            Topology::SameNode if endpoint.for_nodes.contains(self.viewer.node) => {
                Why::HintedForNode
            }
            Topology::SameNode => Why::OtherNodes(endpoint.for_nodes.clone()),
            Topology::SameZone(zone) if endpoint.for_zones.contains(zone) => {
                Why::HintedForZone(zone.clone())
            }
            Topology::SameZone(zone) => Why::OtherZones {
                hinted: endpoint.for_zones.clone(),
                here: zone.clone(),
            },
        }
    }
}

/// Membership of the local list. Hints never narrow it, and it falls back to draining endpoints of
/// this node even while others are ready elsewhere.
struct LocalRule<'a> {
    node: &'a str,
    any_ready: bool,
}

impl LocalRule<'_> {
    fn judge(&self, endpoint: &Endpoint) -> Why {
        if !is_local(endpoint, self.node) {
            return Why::NotOnThisNode;
        }
        if endpoint.ready {
            return Why::ReadyHere;
        }
        if endpoint.is_draining() && !self.any_ready {
            return Why::DrainingFallback(List::Local);
        }
        unusable(endpoint)
    }
}

fn unusable(endpoint: &Endpoint) -> Why {
    if endpoint.is_draining() {
        Why::Draining
    } else if endpoint.terminating {
        Why::Terminated
    } else {
        Why::NotReady
    }
}

/// Why an endpoint is in a list, or is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    Ready,
    ReadyHintsIgnored(Ignored),
    ReadyHere,
    HintedForNode,
    HintedForZone(String),
    DrainingFallback(List),
    OtherNodes(BTreeSet<String>),
    OtherZones {
        hinted: BTreeSet<String>,
        here: String,
    },
    NotOnThisNode,
    NotReady,
    Draining,
    Terminated,
}

impl Why {
    #[must_use]
    pub fn is_used(&self) -> bool {
        match self {
            Self::Ready
            | Self::ReadyHintsIgnored(_)
            | Self::ReadyHere
            | Self::HintedForNode
            | Self::HintedForZone(_)
            | Self::DrainingFallback(_) => true,
            Self::OtherNodes(_)
            | Self::OtherZones { .. }
            | Self::NotOnThisNode
            | Self::NotReady
            | Self::Draining
            | Self::Terminated => false,
        }
    }
}

/// The two lists' answers for one endpoint; `None` for a list that the port never uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub cluster: Option<Why>,
    pub local: Option<Why>,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.cluster, &self.local) {
            (Some(cluster), Some(local)) => of_both(cluster, local, f),
            (Some(why), None) | (None, Some(why)) if why.is_used() => why.fmt(f),
            (Some(why), None) | (None, Some(why)) => write!(f, "not used: {why}"),
            (None, None) => f.write_str("not used: the Service port uses no list"),
        }
    }
}

fn of_both(cluster: &Why, local: &Why, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match (cluster.is_used(), local.is_used()) {
        (true, true) => write!(f, "cluster: {cluster}; local: {local}"),
        (true, false) => write!(f, "cluster: {cluster}; not local: {local}"),
        (false, true) => write!(f, "local: {local}; not cluster: {cluster}"),
        (false, false) if cluster == local => write!(f, "not used: {cluster}"),
        (false, false) => write!(f, "not used: {cluster}; {local}"),
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::ReadyHintsIgnored(why) => write!(f, "ready, {why}"),
            Self::ReadyHere => f.write_str("ready on this node"),
            Self::HintedForNode => f.write_str("ready, hinted for this node"),
            Self::HintedForZone(zone) => write!(f, "ready, hinted for zone {zone}"),
            Self::DrainingFallback(List::Cluster) => {
                f.write_str("draining fallback: nothing is ready")
            }
            Self::DrainingFallback(List::Local) => {
                f.write_str("draining fallback: nothing is ready on this node")
            }
            Self::OtherNodes(hinted) => {
                write!(f, "hinted for {}, not this node", places("node", hinted))
            }
            Self::OtherZones { hinted, here } => {
                write!(
                    f,
                    "hinted for {}, this node is in {here}",
                    places("zone", hinted)
                )
            }
            Self::NotOnThisNode => f.write_str("not on this node"),
            Self::NotReady => f.write_str("not ready"),
            Self::Draining => f.write_str("draining, and others are ready"),
            Self::Terminated => f.write_str("terminating and not serving"),
        }
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoZone => f.write_str("zone hints ignored: this node has no zone"),
            Self::ZoneUnhinted(at) => write!(f, "zone hints ignored: {at} has none"),
            Self::ZoneUncovered(zone) => {
                write!(
                    f,
                    "zone hints ignored: no ready endpoint is hinted for zone {zone}"
                )
            }
            Self::NodeUnhinted(at) => write!(f, "node hints ignored: {at} has none"),
            Self::NodeUncovered => {
                f.write_str("node hints ignored: no ready endpoint is hinted for this node")
            }
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoZone(at) => write!(f, "no hints: {at} has no zone, as its Node has none"),
            Self::Auto { zones } => {
                let zones = zones
                    .iter()
                    .map(|(zone, count)| format!("zone {zone}: {count}"));
                let zones = zones.collect::<Vec<_>>().join(", ");
                write!(
                    f,
                    "no hints: topology-mode Auto found the endpoints too few or too uneven ({zones}); \
                     see the events of the Service"
                )
            }
            Self::Other(asks) => write!(
                f,
                "no hints: {asks} asks for them, and who makes the EndpointSlices gives none"
            ),
        }
    }
}

/// `zone a`, or `zones a, b`.
fn places(what: &str, names: &BTreeSet<String>) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    let names = names
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    format!("{what}{plural} {names}")
}

#[cfg(test)]
mod tests {
    use lb_common::addr::{Addr, Port};

    use super::*;

    /// An endpoint in a few words: conditions, `on NODE`, `in ZONE`, `zones A+B`, `nodes N+M`.
    fn endpoint(text: &str) -> Endpoint {
        let words: Vec<_> = text.split(' ').collect();
        let after = |word| {
            let at = words.iter().position(|found| *found == word)?;
            Some(words[at + 1])
        };
        let names = |word| {
            let names = after(word).into_iter().flat_map(|names| names.split('+'));
            names.map(str::to_owned).collect()
        };
        Endpoint {
            addr: Addr::v4([10, 0, 0, 0]),
            ready: words.contains(&"ready"),
            serving: words.contains(&"draining"),
            terminating: words.contains(&"draining") || words.contains(&"terminated"),
            node: after("on").map(str::to_owned),
            zone: after("in").map(str::to_owned),
            for_nodes: names("nodes"),
            for_zones: names("zones"),
        }
    }

    /// The reasons for endpoints at `10.0.0.1:80`, `10.0.0.2:80` and so on, on node `me` in zone `a`.
    fn reasons(endpoints: &[&str], zone: Option<&str>, uses: Uses) -> Vec<String> {
        let choice = choice(endpoints, zone, uses, None);
        let chosen = choice.endpoints.iter();
        chosen.map(|chosen| chosen.reason.to_string()).collect()
    }

    fn choice(endpoints: &[&str], zone: Option<&str>, uses: Uses, asks: Option<Asks>) -> Choice {
        let endpoints: Vec<_> = endpoints.iter().map(|text| endpoint(text)).collect();
        let at = |i: u8| EndpointAddr {
            addr: Addr::v4([10, 0, 0, i]),
            port: Port(80),
        };
        let merged: Merged<'_> = (1..).map(at).zip(&endpoints).collect();
        choose(&merged, Viewer { node: "me", zone }, uses, asks)
    }

    const CLUSTER: Uses = Uses {
        cluster: true,
        local: false,
    };
    const LOCAL: Uses = Uses {
        cluster: false,
        local: true,
    };
    const BOTH: Uses = Uses {
        cluster: true,
        local: true,
    };

    #[test]
    fn every_endpoint_says_why_it_is_used_or_not() {
        let cases: &[(&[&str], Option<&str>, Uses, &[&str])] = &[
            (
                &["ready", "unready", "draining", "terminated"],
                Some("a"),
                CLUSTER,
                &[
                    "ready",
                    "not used: not ready",
                    "not used: draining, and others are ready",
                    "not used: terminating and not serving",
                ],
            ),
            (
                &["draining zones b", "unready"],
                Some("a"),
                CLUSTER,
                &["draining fallback: nothing is ready", "not used: not ready"],
            ),
            (
                &["ready zones a+b", "ready zones c", "ready zones b+c"],
                Some("a"),
                CLUSTER,
                &[
                    "ready, hinted for zone a",
                    "not used: hinted for zone c, this node is in a",
                    "not used: hinted for zones b, c, this node is in a",
                ],
            ),
            (
                &["ready nodes me zones c", "ready nodes you zones a"],
                Some("a"),
                CLUSTER,
                &[
                    "ready, hinted for this node",
                    "not used: hinted for node you, not this node",
                ],
            ),
            (
                &["ready zones a", "ready"],
                Some("a"),
                CLUSTER,
                &[
                    "ready, zone hints ignored: 10.0.0.2:80 has none",
                    "ready, zone hints ignored: 10.0.0.2:80 has none",
                ],
            ),
            (
                &["ready zones c"],
                Some("a"),
                CLUSTER,
                &["ready, zone hints ignored: no ready endpoint is hinted for zone a"],
            ),
            (
                &["ready zones a"],
                None,
                CLUSTER,
                &["ready, zone hints ignored: this node has no zone"],
            ),
            (
                &["ready nodes you"],
                Some("a"),
                CLUSTER,
                &["ready, node hints ignored: no ready endpoint is hinted for this node"],
            ),
            (
                &["ready nodes me", "ready"],
                Some("a"),
                CLUSTER,
                &[
                    "ready, node hints ignored: 10.0.0.2:80 has none",
                    "ready, node hints ignored: 10.0.0.2:80 has none",
                ],
            ),
            (
                &["ready on me", "ready on you", "ready", "draining on me"],
                Some("a"),
                LOCAL,
                &[
                    "ready on this node",
                    "not used: not on this node",
                    "not used: not on this node",
                    "not used: draining, and others are ready",
                ],
            ),
            (
                &["draining on me", "ready on you"],
                Some("a"),
                BOTH,
                &[
                    "local: draining fallback: nothing is ready on this node; \
                     not cluster: draining, and others are ready",
                    "cluster: ready; not local: not on this node",
                ],
            ),
            (
                &[
                    "ready on me zones c",
                    "ready on you zones a",
                    "unready on you",
                    "unready on me",
                ],
                Some("a"),
                BOTH,
                &[
                    "local: ready on this node; not cluster: hinted for zone c, this node is in a",
                    "cluster: ready, hinted for zone a; not local: not on this node",
                    "not used: not ready; not on this node",
                    "not used: not ready",
                ],
            ),
        ];
        for (endpoints, zone, uses, expected) in cases {
            assert_eq!(reasons(endpoints, *zone, *uses), *expected, "{endpoints:?}");
        }
    }

    #[test]
    fn a_service_that_asks_for_hints_and_has_none_says_why() {
        for (endpoints, asks, expected) in [
            (&["ready in a"][..], None, None),
            (&["unready in a"], Some(Asks::Auto), None),
            (&["ready in a zones a"], Some(Asks::Auto), None),
            (
                &["ready in a", "ready"],
                Some(Asks::SameZone),
                Some("no hints: 10.0.0.2:80 has no zone, as its Node has none"),
            ),
            (
                &["ready in a", "ready in c", "ready in a", "unready"],
                Some(Asks::Auto),
                Some(
                    "no hints: topology-mode Auto found the endpoints too few or too uneven \
                     (zone a: 2, zone c: 1); see the events of the Service",
                ),
            ),
            (
                &["ready in a"],
                Some(Asks::SameNode),
                Some(
                    "no hints: trafficDistribution: PreferSameNode asks for them, and who makes the \
                     EndpointSlices gives none",
                ),
            ),
        ] {
            let choice = choice(endpoints, Some("a"), CLUSTER, asks);

            let why = choice.why_no_hints();
            assert_eq!(why.as_deref(), expected, "{endpoints:?} {asks:?}");
        }
    }

    #[test]
    fn a_node_without_a_name_has_no_local_endpoints() {
        let nowhere = endpoint("ready on ");

        assert!(!is_local(&nowhere, ""));
    }
}
