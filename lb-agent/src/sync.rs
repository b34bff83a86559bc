//! Keeps the maps equal to what is wanted. No clock, and no kernel but behind the [`MapStore`], so that
//! tests drive the very code that a node runs, with a store that fails.
//!
//! ```text
//! batch ─ fold ─▶ Wanted ─ diff ─▶ operations ─▶ MapStore
//!                  ▲                    │
//!                  └── touch all ◀── failed: read the maps back
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use crate::{
    datapath::store::{MapStore, StoreError},
    model::{
        Model,
        endpoint::Moment,
        name::{Family, ServiceName},
        service_port::Traffic,
        state::{Changed, Settings},
    },
    source::{Batch, Problem},
    tables::{
        Op,
        build::Desired,
        diff::{Full, diff},
        programmed::Programmed,
        set::Capacities,
    },
};

/// What the cluster wants of this node, folded from batches.
#[derive(Clone, Debug)]
pub struct Wanted {
    model: Model,
    desired: Desired,
    problems: Vec<Problem>,
    /// Service ranges for which there is no cell.
    ranges_left_out: Vec<String>,
    /// For whom this node has no endpoint though others have: an entry for each Service port.
    without_local: BTreeMap<ServiceName, Vec<(Traffic, Family)>>,
    complete: bool,
}

impl Wanted {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let mut desired = Desired::new();
        let no_room = desired.set_service_cidrs(&BTreeSet::new());
        debug_assert!(no_room.is_empty(), "none need no room");
        Self {
            model: Model::new(settings),
            desired,
            problems: Vec::new(),
            ranges_left_out: Vec::new(),
            without_local: BTreeMap::new(),
            complete: false,
        }
    }

    /// Takes in what changed, and rebuilds the Services that it concerns.
    pub fn fold(&mut self, batch: Batch) {
        let mut changed = Changed::default();
        for key in &batch.delete {
            changed.merge(self.model.delete(key));
        }
        for object in batch.apply {
            changed.merge(self.model.apply(object));
        }
        self.problems = batch.problems;
        self.complete = batch.complete;
        self.rebuild(&changed);
    }

    fn rebuild(&mut self, changed: &Changed) {
        let mut services = changed.services.clone();
        if changed.everything {
            services.extend(self.model.services().cloned());
        }
        for service in &services {
            self.rebuild_one(service);
        }
        if changed.cidrs {
            let left_out = self.desired.set_service_cidrs(&self.model.service_cidrs());
            self.ranges_left_out = left_out.iter().map(ToString::to_string).collect();
        }
    }

    fn rebuild_one(&mut self, service: &ServiceName) {
        let ports = self.model.service_ports(service);
        self.desired.replace(service, &ports, self.model.zone());
        let lacking = ports.iter().flat_map(|port| {
            let lacking = Traffic::BOTH.into_iter().filter(|of| port.lacks_local(*of));
            lacking.map(|traffic| (traffic, port.id.family))
        });
        let lacking: Vec<_> = lacking.collect();
        if lacking.is_empty() {
            self.without_local.remove(service);
        } else {
            self.without_local.insert(service.clone(), lacking);
        }
    }

    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// How many Service ports have endpoints, and none for this traffic, which is bound to this node.
    #[must_use]
    pub fn without_local(&self, traffic: Traffic, family: Family) -> usize {
        let ports = self.without_local.values().flatten();
        ports.filter(|of| **of == (traffic, family)).count()
    }

    /// Whether the source has told everything once. Nothing may be made or pruned before.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// How large maps for this should be.
    #[must_use]
    pub fn capacities(&self) -> Capacities {
        self.desired.capacities()
    }

    /// What could not be used or has no room, each with its remedy.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let ranges = self.ranges_left_out.iter().map(|range| {
            format!(
                "the Service range {range} is left out, as each family has room for four; an address in \
                 it that no Service has is passed on. Remove ServiceCIDRs that are not needed"
            )
        });
        self.problems
            .iter()
            .map(ToString::to_string)
            .chain(ranges)
            .collect()
    }
}

/// What one sync did.
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// Operations that were carried out.
    pub ops: u64,
    /// Service ports that found no room and are served as they were.
    pub full: Vec<Full>,
}

/// What is wanted, what is programmed, and where.
pub struct Engine<S> {
    wanted: Wanted,
    have: Programmed,
    store: S,
    full: Vec<Full>,
    /// An operation failed, so `have` may differ from the maps.
    in_doubt: bool,
    /// The maps were read back, and no grace period has passed since: a cell that looks free may have
    /// been given up a moment ago, by an agent that was killed or a sync that failed.
    unsettled: bool,
}

impl<S: MapStore> Engine<S> {
    /// Starts from what the maps hold: nothing, or what an earlier agent has left.
    ///
    /// # Errors
    ///
    /// The maps cannot be read.
    pub fn start(wanted: Wanted, store: S) -> Result<Self, StoreError> {
        Ok(Self {
            have: Programmed::restore(&store.dump()?),
            wanted,
            store,
            full: Vec::new(),
            in_doubt: false,
            unsettled: true,
        })
    }

    pub fn fold(&mut self, batch: Batch) {
        self.wanted.fold(batch);
    }

    /// See [`Model::take_triggers`].
    pub fn take_triggers(&mut self) -> Vec<(Family, Moment)> {
        self.wanted.model.take_triggers()
    }

    #[must_use]
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    #[must_use]
    pub fn programmed(&self) -> &Programmed {
        &self.have
    }

    pub fn store(&self) -> &S {
        &self.store
    }

    /// Goes on in maps that hold what these held, and have room for more.
    ///
    /// # Errors
    ///
    /// They cannot be read.
    pub fn move_to(&mut self, store: S) -> Result<(), StoreError> {
        self.have = Programmed::restore(&store.dump()?);
        self.store = store;
        self.unsettled = true;
        self.wanted.desired.touch_all();
        Ok(())
    }

    /// For what is not kept in step with objects.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Programs what is wanted. `report` counts also what was done before an error.
    ///
    /// # Errors
    ///
    /// An operation failed: what it belongs to is as it was, or as it should be. The next call reads the
    /// maps back and goes on from there.
    pub fn sync(&mut self, report: &mut SyncReport) -> Result<(), StoreError> {
        if mem::replace(&mut self.in_doubt, true) {
            self.have = Programmed::restore(&self.store.dump()?);
            self.unsettled = true;
            self.pass_one_by_one(report)?;
        }
        if self.pass(report)? && !self.full.is_empty() {
            // What this pass freed may be what the others lacked.
            self.pass(report)?;
        }
        self.in_doubt = false;
        report.full.clone_from(&self.full);
        Ok(())
    }

    /// Brings the Service ports to what is wanted one after the other, so that each attempt keeps what it
    /// achieved, and a store that often fails is still brought to its end. Ports that are to go come
    /// last: until then another may take their addresses over.
    fn pass_one_by_one(&mut self, report: &mut SyncReport) -> Result<(), StoreError> {
        self.give_back(report)?;
        let wanted = self.wanted.desired.ports().keys();
        let ids: Vec<_> = wanted.chain(self.have.ports().keys()).cloned().collect();
        for id in &ids {
            self.wanted.desired.touch_only(id);
            let ops = diff(&mut self.have, &mut self.wanted.desired).ops;
            self.settle_before(&ops)?;
            self.apply(&ops, report)?;
        }
        self.wanted.desired.touch_all();
        Ok(())
    }

    /// Waits, if need be, before operations may write to cells that look free.
    fn settle_before(&mut self, ops: &[Op]) -> Result<(), StoreError> {
        if self.unsettled && !ops.is_empty() {
            self.store.grace()?;
            self.unsettled = false;
        }
        Ok(())
    }

    /// One diff, carried out. Returns whether it gave cells back.
    fn pass(&mut self, report: &mut SyncReport) -> Result<bool, StoreError> {
        for full in mem::take(&mut self.full) {
            self.wanted.desired.touch(&full.id);
        }
        let diff = diff(&mut self.have, &mut self.wanted.desired);
        self.full = diff.full;
        self.settle_before(&diff.ops)?;
        self.apply(&diff.ops, report)?;
        if !self.have.needs_grace() {
            return Ok(false);
        }
        self.store.grace()?;
        let freed = self.have.retire();
        self.apply(&freed, report)?;
        Ok(true)
    }

    /// What agents left that were killed or failed, and no address leads to.
    fn give_back(&mut self, report: &mut SyncReport) -> Result<(), StoreError> {
        let left = self.have.retire_unlinked();
        self.settle_before(&left)?;
        self.apply(&left, report)
    }

    fn apply(&mut self, ops: &[Op], report: &mut SyncReport) -> Result<(), StoreError> {
        for op in ops {
            self.store.apply(op)?;
            report.ops += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::{
        datapath::fake::{FakeMaps, FaultyMaps},
        source::document,
        tables::{TableSet, dump},
    };

    #[test]
    fn what_is_programmed_converges_whatever_fails() {
        for seed in 0..50 {
            let maps = FaultyMaps::new(Capacities::default(), seed);
            let mut engine = Engine::start(wanted(&web(9)), maps).unwrap();
            sync_until_done(&mut engine);
            engine.fold(batch(&web(3)));
            sync_until_done(&mut engine);

            assert_eq!(
                served(&engine.store().maps),
                served(programmed(&web(3)).store()),
                "seed {seed}"
            );
        }
    }

    #[test]
    fn cells_of_a_killed_agent_are_not_reused_before_a_grace_period() {
        let first = programmed(&web(9));
        let mut second = Engine::start(wanted(&web(2)), Journal::of(first.store)).unwrap();
        second.sync(&mut SyncReport::default()).unwrap();

        let journal = &second.store().journal;
        assert_eq!(journal.first().map(String::as_str), Some("grace"));
    }

    #[test]
    fn an_agent_that_finds_what_it_wants_changes_nothing() {
        let first = programmed(&web(5));
        let mut second = Engine::start(wanted(&web(5)), first.store).unwrap();

        assert_eq!(sync(&mut second).ops, 0);
    }

    #[test]
    fn an_agent_that_died_at_any_operation_is_followed_by_one_that_finishes() {
        let change = programmed(&web(9)).sync_ops(&web(2));
        for survived in 0..change.len() {
            let mut maps = programmed(&web(9)).store;
            change[..survived]
                .iter()
                .for_each(|op| maps.tables.apply(op));
            let mut next = Engine::start(wanted(&web(2)), maps).unwrap();
            sync(&mut next);

            assert_eq!(served(next.store()), served(programmed(&web(2)).store()));
        }
    }

    #[test]
    fn a_service_without_room_is_served_as_it_was_until_there_is_room() {
        let small = FakeMaps::new(Capacities {
            backends: 4,
            ..Capacities::default()
        });
        let mut engine = Engine::start(wanted(&web(3)), small).unwrap();
        sync(&mut engine);
        let before = served(engine.store());

        engine.fold(batch(&web(9)));
        let report = sync(&mut engine);
        assert_eq!(report.full.len(), 1);
        assert!(report.full[0].to_string().contains("--capacity-backends"));
        assert_eq!(served(engine.store()), before);

        engine.fold(batch(&web(4)));
        let report = sync(&mut engine);
        assert_eq!(report.full, []);
        assert_eq!(served(engine.store()), served(programmed(&web(4)).store()));
    }

    #[test]
    fn service_ports_without_a_local_endpoint_are_counted_for_the_traffic_that_needs_one() {
        let local = web(3).replace("spec:", "spec:\n  internalTrafficPolicy: Local");
        let mut here = local.clone();
        here.push_str("- {addresses: [10.0.1.9], nodeName: n1}\n");
        let count = |yaml: &str, traffic, family| wanted(yaml).without_local(traffic, family);

        assert_eq!(count(&local, Traffic::Internal, Family::V4), 1);
        assert_eq!(count(&local, Traffic::Internal, Family::V6), 0);
        assert_eq!(count(&local, Traffic::External, Family::V4), 0);
        for other in [
            &here,
            &web(3),
            &local.replace("ready: true", "ready: false, serving: false"),
        ] {
            assert_eq!(count(other, Traffic::Internal, Family::V4), 0, "{other}");
        }

        let mut changed = wanted(&local);
        changed.fold(batch(&here));
        assert_eq!(changed.without_local(Traffic::Internal, Family::V4), 0);
    }

    #[test]
    fn what_found_no_room_is_served_in_larger_maps_and_the_rest_stays() {
        let small = FakeMaps::new(Capacities {
            backends: 4,
            ..Capacities::default()
        });
        let mut engine = Engine::start(wanted(&web(3)), small).unwrap();
        sync(&mut engine);
        engine.fold(batch(&web(9)));
        assert_eq!(sync(&mut engine).full.len(), 1);

        let mut larger = engine.store().clone();
        larger.tables.backends.resize(64, Zeroable::zeroed());
        let before = larger.tables.backends[..4].to_vec();
        engine.move_to(larger).unwrap();
        let report = sync(&mut engine);

        assert_eq!(report.full, []);
        assert_eq!(served(engine.store()), served(programmed(&web(9)).store()));
        assert_eq!(engine.store().tables.backends[..3], before[..3]);
    }

    /// Maps that note what was asked of them.
    struct Journal {
        maps: FakeMaps,
        journal: Vec<String>,
    }

    impl Journal {
        fn of(maps: FakeMaps) -> Self {
            let journal = Vec::new();
            Self { maps, journal }
        }
    }

    impl MapStore for Journal {
        fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
            self.journal.push(format!("{op:?}"));
            self.maps.apply(op)
        }

        fn grace(&mut self) -> Result<(), StoreError> {
            self.journal.push("grace".to_owned());
            self.maps.grace()
        }

        fn dump(&self) -> Result<TableSet, StoreError> {
            self.maps.dump()
        }
    }

    impl Engine<FakeMaps> {
        /// The operations that these objects take, without carrying them out.
        fn sync_ops(mut self, yaml: &str) -> Vec<Op> {
            self.fold(batch(yaml));
            diff(&mut self.have, &mut self.wanted.desired).ops
        }
    }

    /// A Service with this many endpoints, of which none is another node's or zone's.
    fn web(endpoints: usize) -> String {
        let endpoints: String = (1..=endpoints)
            .map(|last| format!("- {{addresses: [10.0.1.{last}], conditions: {{ready: true}}}}\n"))
            .collect();
        format!(
            "apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default}}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ipFamilies: [IPv4]
  ports: [{{name: http, port: 80, protocol: TCP}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: 8080, protocol: TCP}}]
endpoints:
{endpoints}"
        )
    }

    fn batch(yaml: &str) -> Batch {
        let contents = document::parse("web.yaml", yaml).expect("the test's YAML is good");
        assert_eq!(contents.problems, []);
        Batch {
            apply: contents.objects.into_values().collect(),
            complete: true,
            ..Batch::default()
        }
    }

    fn wanted(yaml: &str) -> Wanted {
        let mut wanted = Wanted::new(Settings {
            node: "n1".to_owned(),
            zone: None,
            external_ips: true,
        });
        wanted.fold(batch(yaml));
        wanted
    }

    fn programmed(yaml: &str) -> Engine<FakeMaps> {
        let maps = FakeMaps::new(Capacities::default());
        let mut engine = Engine::start(wanted(yaml), maps).unwrap();
        sync(&mut engine);
        engine
    }

    fn sync(engine: &mut Engine<FakeMaps>) -> SyncReport {
        let mut report = SyncReport::default();
        engine.sync(&mut report).unwrap();
        report
    }

    fn sync_until_done(engine: &mut Engine<FaultyMaps>) {
        let done = (0..1000).any(|_| engine.sync(&mut SyncReport::default()).is_ok());
        assert!(done, "a sync in a thousand goes through");
    }

    /// What clients meet, without the indices, which depend on what was there before.
    fn served(maps: &FakeMaps) -> String {
        dump::services(&maps.tables)
            .iter()
            .map(ToString::to_string)
            .collect()
    }
}
