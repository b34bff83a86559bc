//! The law of the whole agent below its source: whatever changed in whatever order, whatever failed, and
//! whenever an agent was replaced, clients end up with what a fresh agent would give them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use lb_agent::{
    datapath::{
        fake::{FakeMaps, FaultyMaps},
        store::MapStore,
    },
    model::{
        Object, ObjectKey,
        endpoint::{Endpoint, Slice, SlicePort},
        name::{Family, ServiceName, SliceName},
        object::{Node, ServiceCidr},
        service::{Cidr, Half, Policy, PortSpec, Service},
        state::Settings,
    },
    source::Batch,
    sync::{Engine, SyncReport, Wanted},
    tables::{dump, programmed::Programmed, set::Capacities},
};
use lb_common::addr::{Addr, Port, Proto};
use proptest::{
    prelude::*,
    sample::{select, subsequence},
};

/// What happens between two syncs.
#[derive(Clone, Debug)]
struct Step {
    /// Objects that appear or change, or disappear.
    changes: Vec<(Object, bool)>,
    /// Another agent takes over.
    restart: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_where_a_fresh_agent_begins(steps in steps(), seed: u64) {
        let mut objects = BTreeMap::new();
        let mut engine = start(&objects, FaultyMaps::new(Capacities::default(), seed));
        for Step { changes, restart } in steps {
            engine.fold(batch(&mut objects, changes));
            if restart {
                engine = start(&objects, engine.store().clone());
            }
            // It may fail, and the next change comes before all is well again.
            let _failed = engine.sync(&mut SyncReport::default());
        }
        converge(&mut engine);
        let mut fresh = start(&objects, FakeMaps::new(Capacities::default()));
        converge(&mut fresh);

        prop_assert_eq!(served(&engine), served(&fresh));
        prop_assert_eq!(&Programmed::restore(&engine.store().maps.tables), engine.programmed());
        let mut next = start(&objects, engine.store().clone());
        prop_assert_eq!(converge(&mut next), 0, "operations of an agent that follows");
        next.fold(Batch { delete: objects.into_keys().collect(), ..Batch::default() });
        converge(&mut next);
        prop_assert_eq!(served(&next), "", "deletion frees everything");
    }
}

fn start<S: MapStore>(objects: &BTreeMap<ObjectKey, Object>, store: S) -> Engine<S> {
    let mut wanted = Wanted::new(Settings {
        node: "me".to_owned(),
        zone: None,
        external_ips: true,
    });
    wanted.fold(Batch {
        apply: objects.values().cloned().collect(),
        complete: true,
        ..Batch::default()
    });
    Engine::start(wanted, store).unwrap()
}

fn batch(objects: &mut BTreeMap<ObjectKey, Object>, changes: Vec<(Object, bool)>) -> Batch {
    let mut batch = Batch {
        complete: true,
        ..Batch::default()
    };
    // A source names an object once in a batch.
    let changes: BTreeMap<_, _> = changes
        .into_iter()
        .map(|change| (change.0.key(), change))
        .collect();
    for (key, (object, is_there)) in changes {
        if is_there {
            objects.insert(key, object.clone());
            batch.apply.push(object);
        } else if objects.remove(&key).is_some() {
            batch.delete.push(key);
        }
    }
    batch
}

/// A Service port that needs a fresh index must get all of it in one attempt. With one operation in ten
/// failing, fifty in a row succeed once in two hundred attempts.
const ATTEMPTS: usize = 20_000;

/// Syncs until nothing fails. Returns how many operations that took.
fn converge<S: MapStore>(engine: &mut Engine<S>) -> u64 {
    let mut report = SyncReport::default();
    let done = (0..ATTEMPTS).any(|_| engine.sync(&mut report).is_ok());
    assert!(done, "one sync of {ATTEMPTS} goes through");
    assert_eq!(report.full, []);
    report.ops
}

/// What clients meet, without the indices, which depend on what was there before.
fn served<S: MapStore>(engine: &Engine<S>) -> String {
    let tables = engine.store().dump().unwrap();
    let ports: String = dump::services(&tables)
        .iter()
        .map(ToString::to_string)
        .collect();
    let ranges = tables.service_cidrs.iter().filter(|cidr| cidr.used != 0);
    ports
        + &ranges
            .map(|range| format!("{range:?}\n"))
            .collect::<String>()
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = (objects(), prop::bool::weighted(0.75));
    let step = (
        prop::collection::vec(change, 1..5),
        prop::bool::weighted(0.2),
    );
    let step = step.prop_map(|(changes, restart)| Step { changes, restart });
    prop::collection::vec(step, 1..16)
}

/// Few names, so that histories often meet the same object again.
fn objects() -> impl Strategy<Value = Object> {
    prop_oneof![
        4 => services().prop_map(Object::from),
        6 => slices().prop_map(Object::from),
        1 => zones().prop_map(|zone| Object::Node(Node { name: "me".to_owned(), zone, ..Node::default() })),
        1 => cidrs().prop_map(Object::ServiceCidr),
    ]
}

fn name() -> impl Strategy<Value = ServiceName> {
    select(vec!["web", "api", "dns"]).prop_map(|name| ServiceName {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    })
}

fn zones() -> impl Strategy<Value = Option<String>> {
    select(vec![None, Some("a".to_owned()), Some("b".to_owned())])
}

/// Ports by number in the list, each always with the same name and protocol.
const PORTS: [(&str, Proto); 3] = [("http", Proto::TCP), ("", Proto::TCP), ("dns", Proto::UDP)];

fn services() -> impl Strategy<Value = Service> {
    let policies = || select(vec![Policy::Cluster, Policy::Local]);
    let ports = subsequence(PORTS.to_vec(), 1..=3);
    let families = subsequence(Family::BOTH.to_vec(), 1..=2);
    let affinity_secs = select(vec![None, Some(10_800)]);
    // Few addresses and one number, so that Services meet at one.
    (
        name(),
        1..4_u8,
        families,
        ports,
        policies(),
        policies(),
        affinity_secs,
    )
        .prop_map(
            |(name, address, families, ports, internal_policy, external_policy, affinity_secs)| {
                let halves = families
                    .into_iter()
                    .map(|family| (family, half(family, address)));
                let ports = ports.into_iter().map(|(name, proto)| PortSpec {
                    name: name.to_owned(),
                    proto,
                    port: Port(if name.is_empty() { 443 } else { 53 }),
                    node_port: None,
                });
                Service {
                    name,
                    halves: halves.collect(),
                    ports: ports.collect(),
                    internal_policy,
                    external_policy,
                    affinity_secs,
                    asks: None,
                }
            },
        )
}

fn half(family: Family, address: u8) -> Half {
    Half {
        cluster_ip: at(family, [10, 96, 0, address]),
        load_balancer_ips: BTreeSet::new(),
        external_ips: BTreeSet::new(),
        source_ranges: BTreeSet::new(),
    }
}

fn slices() -> impl Strategy<Value = Slice> {
    let names = select(vec!["s1", "s2", "s3", "s4"]);
    let families = select(Family::BOTH.to_vec());
    let ports = prop::collection::vec((select(PORTS.to_vec()), 8080..8082_u16), 1..3);
    (
        names,
        name(),
        families,
        ports,
        prop::collection::vec(endpoints(), 0..5),
    )
        .prop_map(|(slice, service, family, ports, mut endpoints)| {
            for endpoint in &mut endpoints {
                let [.., last] = endpoint.addr.bytes;
                endpoint.addr = at(family, [10, 1, 0, last]);
            }
            let ports = ports.into_iter().map(|((name, proto), port)| SlicePort {
                name: name.to_owned(),
                proto,
                port: Port(port),
            });
            Slice {
                name: SliceName {
                    namespace: "default".to_owned(),
                    name: slice.to_owned(),
                },
                service,
                family,
                ports: ports.collect(),
                endpoints,
                triggered: None,
            }
        })
}

fn endpoints() -> impl Strategy<Value = Endpoint> {
    let nodes = select(vec![None, Some("me".to_owned()), Some("you".to_owned())]);
    let conditions = (
        prop::bool::weighted(0.7),
        any::<bool>(),
        prop::bool::weighted(0.3),
    );
    let hints = (zones(), nodes.clone());
    (1..6_u8, conditions, nodes, zones(), hints).prop_map(
        |(last, (ready, serving, terminating), node, zone, (for_zones, for_nodes))| Endpoint {
            addr: Addr::v4([10, 1, 0, last]),
            ready,
            serving,
            terminating,
            node,
            zone,
            for_nodes: for_nodes.into_iter().collect(),
            for_zones: for_zones.into_iter().collect(),
        },
    )
}

fn cidrs() -> impl Strategy<Value = ServiceCidr> {
    (select(vec!["one", "two"]), 16..24_u8).prop_map(|(name, prefix_len)| ServiceCidr {
        name: name.to_owned(),
        cidrs: Family::BOTH
            .iter()
            .filter_map(|family| Cidr::new(at(*family, [10, 96, 0, 0]), prefix_len))
            .collect(),
    })
}

/// The address with these bytes at its end.
fn at(family: Family, [a, b, c, d]: [u8; 4]) -> Addr {
    match family {
        Family::V4 => Addr::v4([a, b, c, d]),
        Family::V6 => Addr {
            bytes: [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d],
        },
    }
}
