//! The laws of the tables, on random sequences of changes: a look-up is never between two states, a
//! change at a time leads where building anew does, and what an agent leaves when it is killed between
//! two operations is finished by the next.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::{
    addr::{Addr, Port, Proto},
    select::{Decision, Draw, Flow, Origin, Remembered, select},
    tables::{Client, FrontendKey, Hints, Kind, Locality, Membership, Ring, Service},
};
use proptest::{prelude::*, sample::subsequence};

use super::{
    Op, TableSet,
    build::{BackendKey, Desired, DesiredPort},
    diff::{Diff, diff},
    dump,
    programmed::Programmed,
    set::Capacities,
};
use crate::model::name::{Family, ServiceName, ServicePortId};

const PORTS: usize = 4;
const ADDRESSES: u8 = 6;

/// One change: what a Service port wants from here on; nothing if it is deleted.
type Change = (usize, Option<DesiredPort>);

fn id(number: usize) -> ServicePortId {
    ServicePortId {
        service: ServiceName {
            namespace: "default".into(),
            name: format!("web-{}", number / 2),
        },
        port: format!("p{number}"),
        proto: Proto::TCP,
        family: Family::V4,
    }
}

fn frontend_key(number: u8) -> FrontendKey {
    FrontendKey::new(Addr::v4([10, 96, 0, number]), Port(80), Proto::TCP)
}

fn backend_key(number: u8) -> BackendKey {
    let zone = (!number.is_multiple_of(3)).then(|| format!("zone-{}", number % 3).into());
    let locality = Locality::from_cell(number % 4);
    BackendKey {
        addr: Addr::v4([10, 1, 0, number]),
        port: Port(8080),
        zone,
        locality,
    }
}

fn desired_port() -> impl Strategy<Value = DesiredPort> {
    let keys: Vec<u8> = (0..ADDRESSES).collect();
    let frontends = subsequence(keys, 0..=3);
    let backends = prop::collection::btree_map(0..8_u8, 1..8_u32, 0..6);
    let flags = 0..=(Service::INTERNAL_LOCAL | Service::EXTERNAL_LOCAL);
    let answers = (Ring::REJECT..=Ring::DROP, Ring::REJECT..=Ring::DROP);
    (frontends, backends, flags, answers, 0..2_u32).prop_map(
        |(frontends, backends, flags, (cluster_on_empty, local_on_empty), affinity_secs)| {
            let kind = |number: u8| {
                if number < 4 {
                    Kind::ClusterIp
                } else {
                    Kind::ExternalIp
                }
            };
            let frontends = frontends.into_iter().map(|n| (frontend_key(n), kind(n)));
            let backends = backends
                .into_iter()
                .map(|(n, lists)| (backend_key(n), lists));
            DesiredPort {
                frontends: frontends.collect(),
                flags,
                affinity_secs,
                backends: backends.collect(),
                cluster_on_empty,
                local_on_empty,
            }
        },
    )
}

fn changes() -> impl Strategy<Value = Vec<Vec<Change>>> {
    let change = (0..PORTS, prop::option::weighted(0.8, desired_port()));
    prop::collection::vec(prop::collection::vec(change, 1..4), 1..12)
}

fn change(want: &mut Desired, changes: &[Change]) {
    for (number, port) in changes {
        want.remove(&id(*number));
        if let Some(port) = port {
            want.insert(id(*number), port.clone());
        }
    }
}

struct Fixed(u32);

impl Draw for Fixed {
    fn random(&self) -> u32 {
        self.0
    }

    fn remembered(&self) -> Option<Remembered> {
        None
    }

    fn client(&self) -> Client {
        Client(0)
    }

    fn now_nanos(&self) -> u64 {
        0
    }
}

/// Everything that a client at one address can meet.
fn reach(tables: &TableSet, key: FrontendKey, origin: Origin) -> BTreeSet<String> {
    let flow = Flow {
        addr: key.addr,
        port: Port(key.port),
        proto: Proto(key.proto),
        origin,
    };
    (0..16_u32)
        .map(|step| match select(tables, &flow, &Fixed(step << 28)) {
            Decision::Forward(to) => format!("{}", to.backend.addr),
            other @ (Decision::NotAService | Decision::Reject(_) | Decision::Drop(_)) => {
                other.reason().name().to_owned()
            }
        })
        .collect()
}

type View = BTreeMap<(FrontendKey, bool), BTreeSet<String>>;

fn view(tables: &TableSet) -> View {
    let flows = (0..ADDRESSES).flat_map(|n| [(frontend_key(n), true), (frontend_key(n), false)]);
    flows
        .map(|(key, outside)| {
            let origin = if outside {
                Origin::Outside
            } else {
                Origin::Node
            };
            ((key, outside), reach(tables, key, origin))
        })
        .collect()
}

/// Applies one operation at a time; after each, every look-up is as in `old` or as in `new`.
fn apply_watched(tables: &mut TableSet, ops: &[Op], old: &View, new: &View) {
    for op in ops {
        tables.apply(op);
        for (flow, reached) in view(tables) {
            assert!(
                reached == old[&flow] || reached == new[&flow],
                "after {op:?}\n{flow:?} reaches {reached:?}, neither {:?} nor {:?}",
                old[&flow],
                new[&flow],
            );
        }
    }
}

fn applied(tables: &TableSet, ops: &[Op]) -> TableSet {
    let mut after = tables.clone();
    ops.iter().for_each(|op| after.apply(op));
    after
}

/// The tables of an agent that sees only the end.
fn rebuilt(wanted: &BTreeMap<usize, DesiredPort>) -> TableSet {
    let mut want = Desired::new();
    for (number, port) in wanted {
        want.insert(id(*number), port.clone());
    }
    let tables = TableSet::new(Capacities::default());
    let mut have = Programmed::restore(&tables);
    let Diff { ops, full } = diff(&mut have, &mut want);
    assert_eq!(full, []);
    applied(&tables, &ops)
}

/// Names, lists and addresses, without indices.
fn text(tables: &TableSet) -> String {
    dump::services(tables)
        .iter()
        .map(ToString::to_string)
        .collect()
}

proptest! {
    #[test]
    fn every_lookup_is_wholly_old_or_wholly_new_after_each_operation(batches in changes()) {
        let mut tables = TableSet::new(Capacities::default());
        let mut have = Programmed::restore(&tables);
        let mut want = Desired::new();
        for batch in batches {
            change(&mut want, &batch);
            let Diff { ops, .. } = diff(&mut have, &mut want);
            let (old, new) = (view(&tables), view(&applied(&tables, &ops)));
            apply_watched(&mut tables, &ops, &old, &new);
            apply_watched(&mut tables, &have.retire(), &new, &new);
            prop_assert_eq!(&Programmed::restore(&tables), &have, "what is read back differs");
        }
    }

    #[test]
    fn one_change_at_a_time_leads_where_building_anew_does(batches in changes()) {
        let mut tables = TableSet::new(Capacities::default());
        let mut have = Programmed::restore(&tables);
        let mut want = Desired::new();
        let mut wanted = BTreeMap::new();
        for batch in batches {
            change(&mut want, &batch);
            for (number, port) in batch {
                wanted.remove(&number);
                wanted.extend(port.map(|port| (number, port)));
            }
            let ops = diff(&mut have, &mut want).ops;
            tables = applied(&tables, &ops);
            tables = applied(&tables, &have.retire());
        }
        let rebuilt = rebuilt(&wanted);
        prop_assert_eq!(view(&tables), view(&rebuilt));
        prop_assert_eq!(text(&tables), text(&rebuilt));
    }

    #[test]
    fn what_a_killed_agent_left_is_finished_by_the_next(
        batches in changes(),
        kills in prop::collection::vec(0..40_usize, 12),
    ) {
        let mut tables = TableSet::new(Capacities::default());
        let mut want = Desired::new();
        let mut wanted = BTreeMap::new();
        for (batch, kill) in batches.into_iter().zip(kills) {
            let mut have = Programmed::restore(&tables);
            want.touch_all();
            change(&mut want, &batch);
            for (number, port) in batch {
                wanted.remove(&number);
                wanted.extend(port.map(|port| (number, port)));
            }
            let mut ops = diff(&mut have, &mut want).ops;
            ops.extend(have.retire());
            tables = applied(&tables, &ops[..kill.min(ops.len())]);
        }
        let mut have = Programmed::restore(&tables);
        want.touch_all();
        let ops = diff(&mut have, &mut want).ops;
        tables = applied(&tables, &ops);
        tables = applied(&tables, &have.retire());

        prop_assert_eq!(view(&tables), view(&rebuilt(&wanted)));
        prop_assert_eq!(&Programmed::restore(&tables), &have);
        prop_assert_eq!(&have.strays, &vec![], "cells that nobody owns");
        want.touch_all();
        prop_assert_eq!(diff(&mut have.clone(), &mut want).ops, vec![], "not at rest");
    }

    #[test]
    fn a_full_map_leaves_each_service_as_it_was_or_as_it_should_be(
        batches in changes(),
        (services, slots, backends, frontends) in (1..5_u32, 1..12_u32, 1..12_u32, 1..8_u32),
    ) {
        let mut tables = TableSet::new(Capacities { frontends, services, slots, backends });
        let mut have = Programmed::restore(&tables);
        let mut want = Desired::new();
        for batch in batches {
            change(&mut want, &batch);
            let Diff { ops, full } = diff(&mut have, &mut want);
            let (old, new) = (view(&tables), view(&applied(&tables, &ops)));
            apply_watched(&mut tables, &ops, &old, &new);
            apply_watched(&mut tables, &have.retire(), &new, &new);
            prop_assert_eq!(&Programmed::restore(&tables), &have);
            for port in full {
                want.touch(&port.id);
            }
        }
        for number in 0..PORTS {
            want.remove(&id(number));
        }
        let ops = diff(&mut have, &mut want).ops;
        tables = applied(&tables, &ops);
        tables = applied(&tables, &have.retire());
        prop_assert_eq!(text(&tables), "", "deletion frees everything");
        prop_assert_eq!(have.arena.used(), 0);
    }
}

#[test]
fn a_backend_that_leaves_the_lists_keeps_its_flows_while_it_serves() {
    let mut tables = TableSet::new(Capacities::default());
    let mut have = Programmed::restore(&tables);
    let mut want = Desired::new();
    let port = |lists| DesiredPort {
        frontends: BTreeMap::from([(frontend_key(1), Kind::ClusterIp)]),
        flags: 0,
        affinity_secs: 0,
        backends: BTreeMap::from([(backend_key(1), lists)]),
        cluster_on_empty: Ring::REJECT,
        local_on_empty: Ring::UNUSED,
    };
    change(
        &mut want,
        &[(0, Some(port(Membership::CLUSTER | Membership::SERVING)))],
    );
    tables = applied(&tables, &diff(&mut have, &mut want).ops);
    let before = tables.backends[0].membership;

    change(&mut want, &[(0, Some(port(Membership::SERVING)))]);
    tables = applied(&tables, &diff(&mut have, &mut want).ops);

    assert_eq!(tables.backends[0].membership.generation, before.generation);
    assert!(tables.backends[0].is_serving());
    assert_eq!(
        view(&tables)[&(frontend_key(1), false)],
        BTreeSet::from(["reject-no-endpoints".into()])
    );
}

#[test]
fn what_is_told_of_hints_changes_in_place() {
    let mut have = Programmed::restore(&TableSet::new(Capacities::default()));
    let mut want = Desired::new();
    let port = |hints: Hints| DesiredPort {
        frontends: BTreeMap::from([(frontend_key(1), Kind::ClusterIp)]),
        flags: Service::INTERNAL_LOCAL | hints.as_flags(),
        affinity_secs: 0,
        backends: BTreeMap::from([(backend_key(1), Membership::CLUSTER)]),
        cluster_on_empty: Ring::REJECT,
        local_on_empty: Ring::UNUSED,
    };
    for hints in Hints::ALL {
        change(&mut want, &[(0, Some(port(hints)))]);
        let ops = diff(&mut have, &mut want).ops;

        let placed = have.ports().values().next().unwrap();
        assert_eq!(Hints::of(placed.cell.flags), Some(hints));
        let in_place = matches!(ops[..], [Op::PublishSettings { .. }]);
        assert_eq!(in_place, hints != Hints::None, "{ops:?}");
    }
}

#[test]
fn a_list_longer_than_a_ring_is_left_out_and_said() {
    let mut have = Programmed::restore(&TableSet::new(Capacities {
        slots: 1 << 18,
        backends: 1 << 18,
        ..Capacities::default()
    }));
    let mut want = Desired::new();
    let backends = (0..=u16::MAX).map(|number| {
        let [high, low] = number.to_be_bytes();
        let addr = Addr::v4([10, 2, high, low]);
        let key = BackendKey {
            addr,
            ..backend_key(0)
        };
        (key, Membership::CLUSTER)
    });
    let port = DesiredPort {
        frontends: BTreeMap::from([(frontend_key(1), Kind::ClusterIp)]),
        flags: 0,
        affinity_secs: 0,
        backends: backends.collect(),
        cluster_on_empty: Ring::REJECT,
        local_on_empty: Ring::UNUSED,
    };
    change(&mut want, &[(0, Some(port))]);
    let Diff { ops, full } = diff(&mut have, &mut want);

    assert_eq!(ops, []);
    let said = full[0].to_string();
    assert!(
        said.contains("65536 endpoints in one list, which holds 65535; it is not served"),
        "{said}"
    );
    assert_eq!(have.backend_ids.available(), 1 << 18, "nothing is kept");
}
