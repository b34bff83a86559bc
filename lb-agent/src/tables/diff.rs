//! From what is programmed to what is wanted: the operations, in an order in which every look-up, after
//! each single one of them, sees wholly the old or wholly the new list.
//!
//! 1. *unlink*: addresses that nobody answers at any more;
//! 2. *prepare*: names, backends and slots, in cells that no reader reaches;
//! 3. *publish*: one word per list that changed;
//! 4. *link*: addresses, each replaced atomically;
//! 5. *settle*: which lists each backend is in, for sockets that remember one;
//! 6. a grace period, then [`Programmed::retire`] gives back what nobody reads any more.
//!
//! A Service port keeps its index, and so its backends' cells, except where no single word could make the
//! switch: when a traffic policy changes, and when an address passes from one port to another whose lists
//! change too. Then the port gets a fresh index with everything in place, and each of its addresses moves there atomically.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytemuck::Zeroable;
use lb_common::tables::{
    Backend, BackendIndex, Frontend, FrontendKey, Kind, List, Membership, RING_LEN_MAX, Ring,
    Service, ServiceIndex, Slot, names,
};

use crate::{
    model::name::ServicePortId,
    tables::{
        build::{BackendKey, Desired, DesiredPort},
        op::Op,
        programmed::{Placed, PlacedBackend, Programmed, name_cell, zone_cell},
    },
};

/// A Service port that stays as it was, because there is no room for what it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full {
    pub id: ServicePortId,
    pub lacking: Lacking,
    /// Whether the port is served at all.
    pub is_served: bool,
}

/// What there is no room in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking {
    /// A map, and the flag that gives it more cells.
    Cells {
        map: &'static str,
        capacity: u32,
        flag: &'static str,
    },
    /// One list, whose length is 16 bits.
    List { len: usize },
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = &self.id;
        let state = if self.is_served {
            "it is served as it was"
        } else {
            "it is not served"
        };
        write!(f, "{id} ({} {}): ", id.family, id.proto)?;
        match self.lacking {
            Lacking::Cells {
                map,
                capacity,
                flag,
            } => write!(
                f,
                "{map} is full ({capacity} cells); {state}. It grows by itself, unless {flag} holds it at \
                 that: start the agent with more, or without the flag"
            ),
            Lacking::List { len } => write!(
                f,
                "{len} endpoints in one list, which holds {RING_LEN_MAX}; {state}. Spread them over \
                 several Services"
            ),
        }
    }
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    pub ops: Vec<Op>,
    pub full: Vec<Full>,
}

/// Compares what `want` touched since the last call, and changes `have` as if all operations had
/// succeeded. If one does not: `Programmed::restore`, `Desired::touch_all`, and compare again.
pub fn diff(have: &mut Programmed, want: &mut Desired) -> Diff {
    let touched = want.take_touched();
    let mut ports = touched.ports;
    let mut keys = touched.keys;
    if touched.all {
        ports.extend(have.ports.keys().chain(want.ports().keys()).cloned());
        keys.extend(have.frontends.keys().chain(want.keys()));
    }

    let mut work = Work {
        passing: ports_that_pass_addresses(have, want, &keys),
        ..Work::default()
    };
    for id in &ports {
        match want.ports().get(id) {
            Some(port) => work.place(have, id, port),
            None => work.remove(have, id),
        }
    }
    keys.extend(
        work.moved
            .iter()
            .flat_map(|id| want.ports()[id].frontends.keys()),
    );
    work.addresses(have, want, &keys);
    work.strays(have);
    if touched.cidrs || touched.all {
        work.service_cidrs(have, want);
    }
    work.finish()
}

/// The operations, by the phase they belong to.
#[derive(Default)]
struct Work {
    unlink: Vec<Op>,
    prepare: Vec<Op>,
    publish: Vec<Op>,
    link: Vec<Op>,
    settle: Vec<Op>,
    full: Vec<Full>,
    /// Ports between which an address passes.
    passing: BTreeSet<ServicePortId>,
    /// Ports that got another index: all their addresses must follow.
    moved: Vec<ServicePortId>,
}

/// Cells taken for a port, before anything is written.
struct Taken {
    backends: BTreeMap<BackendKey, BackendIndex>,
    rings: Vec<NewRing>,
}

struct NewRing {
    list: List,
    ring: Ring,
    members: Vec<BackendIndex>,
}

impl Work {
    fn finish(self) -> Diff {
        let phases = [
            self.unlink,
            self.prepare,
            self.publish,
            self.link,
            self.settle,
        ];
        Diff {
            ops: phases.into_iter().flatten().collect(),
            full: self.full,
        }
    }

    /// Brings one port to what is wanted, or leaves it as it is if there is no room.
    fn place(&mut self, have: &mut Programmed, id: &ServicePortId, want: &DesiredPort) {
        let known = have.ports.get(id);
        let is_served = known.is_some();
        let stays = known.is_some_and(|placed| policies(placed.cell.flags) == policies(want.flags))
            && (!self.passing.contains(id)
                || known.is_some_and(|placed| is_as_wanted(placed, want)));
        let place = if stays {
            have.ports.remove(id)
        } else {
            fresh(have)
        };
        let Some(mut placed) = place else {
            let lacking = Lacking::Cells {
                map: names::SERVICES,
                capacity: have.service_ids.limit(),
                flag: "--capacity-services",
            };
            return self.full(id, lacking, is_served);
        };
        let taken = match take(have, &placed, want) {
            Ok(taken) => taken,
            Err(lacking) => {
                give_back(have, id, placed, stays);
                return self.full(id, lacking, is_served);
            }
        };
        if !stays {
            self.prepare.push(Op::WriteName {
                service: placed.index,
                name: name_cell(id),
            });
            self.moved.push(id.clone());
            self.remove(have, id);
        }
        self.write_backends(have, id, &mut placed, want, &taken.backends);
        self.publish_rings(have, &mut placed, taken.rings);
        self.publish_settings(&mut placed, want);
        self.settle(have, &mut placed, want);
        have.ports.insert(id.clone(), placed);
    }

    /// Takes one port out. Its cells keep their content until nobody can be reading them.
    fn remove(&mut self, have: &mut Programmed, id: &ServicePortId) {
        let Some(placed) = have.ports.remove(id) else {
            return;
        };
        for backend in placed.backends.values() {
            self.drop_backend(have, *backend);
        }
        have.retiring.services.push((placed.index, placed.cell));
    }

    fn write_backends(
        &mut self,
        have: &mut Programmed,
        id: &ServicePortId,
        placed: &mut Placed,
        want: &DesiredPort,
        taken: &BTreeMap<BackendKey, BackendIndex>,
    ) {
        for (key, index) in taken {
            let (zone, is_new) = have.zones.id(key.zone.as_ref());
            if is_new && let Some(label) = &key.zone {
                self.prepare.push(Op::WriteZone {
                    zone,
                    name: zone_cell(label),
                });
            }
            let generation = &mut have.generations[index.0 as usize];
            *generation = Membership::next_generation(*generation);
            let membership = Membership {
                lists: want.backends[key],
                generation: *generation,
            };
            let backend = Backend {
                addr: key.addr,
                service: placed.index.0,
                port: key.port.0,
                zone: zone.0,
                proto: id.proto.0,
                locality: key.locality as u8,
                pad: [0; 6],
                membership,
            };
            self.prepare.push(Op::WriteBackend {
                index: *index,
                backend,
            });
            placed.backends.insert(
                key.clone(),
                PlacedBackend {
                    index: *index,
                    membership,
                },
            );
        }
    }

    fn publish_rings(&mut self, have: &mut Programmed, placed: &mut Placed, rings: Vec<NewRing>) {
        for NewRing {
            list,
            ring,
            members,
        } in rings
        {
            let slots: Vec<Slot> = members
                .iter()
                .map(|backend| Slot {
                    backend: backend.0,
                    service: placed.index.0,
                })
                .collect();
            if !slots.is_empty() {
                self.prepare.push(Op::WriteSlots {
                    base: ring.base,
                    slots,
                });
            }
            self.publish.push(Op::PublishRing {
                service: placed.index,
                list,
                ring,
            });
            let old = placed.cell.ring(list);
            have.retiring
                .slots
                .extend((old.len > 0).then_some((old.base, u32::from(old.len))));
            placed.set_ring(list, ring, members);
        }
    }

    fn publish_settings(&mut self, placed: &mut Placed, want: &DesiredPort) {
        let (affinity_secs, flags) = (want.affinity_secs, want.flags);
        if (placed.cell.affinity_secs, placed.cell.flags) != (affinity_secs, flags) {
            (placed.cell.affinity_secs, placed.cell.flags) = (affinity_secs, flags);
            self.publish.push(Op::PublishSettings {
                service: placed.index,
                affinity_secs,
                flags,
            });
        }
    }

    /// Backends that stay learn which lists they are in; those that go lose their membership.
    fn settle(&mut self, have: &mut Programmed, placed: &mut Placed, want: &DesiredPort) {
        for (key, backend) in &mut placed.backends {
            let lists = want.backends.get(key).copied().unwrap_or(0);
            if lists != 0 && lists != backend.membership.lists {
                backend.membership.lists = lists;
                let PlacedBackend { index, membership } = *backend;
                self.settle
                    .push(Op::PublishMembership { index, membership });
            }
        }
        let gone = placed
            .backends
            .extract_if(.., |key, _| !want.backends.contains_key(key));
        for (_, backend) in gone.collect::<Vec<_>>() {
            self.drop_backend(have, backend);
        }
    }

    fn drop_backend(&mut self, have: &mut Programmed, backend: PlacedBackend) {
        let membership = Membership {
            lists: 0,
            ..backend.membership
        };
        self.settle.push(Op::PublishMembership {
            index: backend.index,
            membership,
        });
        have.retiring.backends.push(backend.index);
    }

    /// Every touched address goes to whom it belongs. Where its owner found no room, it stays as it
    /// was, unless whom it leads to is gone.
    fn addresses(&mut self, have: &mut Programmed, want: &Desired, keys: &BTreeSet<FrontendKey>) {
        let gone: BTreeSet<u32> = have
            .retiring
            .services
            .iter()
            .map(|(index, _)| index.0)
            .collect();
        let mut links = Vec::new();
        for key in keys {
            let owner = want.owner(key);
            let answer = owner.and_then(|(kind, id)| Some((frontend(have, kind, id)?, id)));
            let leads_nowhere = |now: &Frontend| owner.is_none() || gone.contains(&now.service);
            match answer {
                Some((frontend, id)) => links.push((*key, frontend, id)),
                None if have.frontends.get(key).is_some_and(leads_nowhere) => {
                    have.frontends.remove(key);
                    self.unlink.push(Op::DeleteFrontend { key: *key });
                }
                None => {}
            }
        }
        // Marks last: a marked address refuses the ports that it does not have yet.
        links.sort_by_key(|(key, ..)| key.is_address());
        for (key, frontend, id) in links {
            self.link(have, key, frontend, id);
        }
    }

    fn link(
        &mut self,
        have: &mut Programmed,
        key: FrontendKey,
        frontend: Frontend,
        id: &ServicePortId,
    ) {
        let is_new = !have.frontends.contains_key(&key);
        if is_new && have.frontends.len() >= have.frontends_max as usize {
            let lacking = Lacking::Cells {
                map: names::FRONTENDS,
                capacity: have.frontends_max,
                flag: "--capacity-frontends",
            };
            self.full(id, lacking, false);
        } else if have.frontends.insert(key, frontend) != Some(frontend) {
            self.link.push(Op::PutFrontend { key, frontend });
        }
    }

    fn strays(&mut self, have: &mut Programmed) {
        for stray in std::mem::take(&mut have.strays) {
            self.drop_backend(have, stray.backend);
        }
    }

    fn service_cidrs(&mut self, have: &mut Programmed, want: &Desired) {
        for (at, (have, want)) in (0..).zip(have.service_cidrs.iter_mut().zip(want.service_cidrs()))
        {
            if have != want {
                *have = *want;
                self.settle.push(Op::WriteCidr { at, cidr: *want });
            }
        }
    }

    fn full(&mut self, id: &ServicePortId, lacking: Lacking, is_served: bool) {
        self.full.push(Full {
            id: id.clone(),
            lacking,
            is_served,
        });
    }
}

/// The ports that give or take an address that answers before and after.
fn ports_that_pass_addresses(
    have: &Programmed,
    want: &Desired,
    keys: &BTreeSet<FrontendKey>,
) -> BTreeSet<ServicePortId> {
    let mut takers = BTreeSet::new();
    let mut givers = BTreeSet::new();
    for key in keys.iter().filter(|key| !key.is_address()) {
        let (Some(now), Some((_, owner))) = (have.frontends.get(key), want.owner(key)) else {
            continue;
        };
        if have
            .ports
            .get(owner)
            .is_none_or(|placed| placed.index != now.service())
        {
            takers.insert(owner.clone());
            givers.insert(now.service());
        }
    }
    if !givers.is_empty() {
        let giving = have
            .ports
            .iter()
            .filter(|(_, placed)| givers.contains(&placed.index));
        takers.extend(giving.map(|(id, _)| id.clone()));
    }
    takers
}

/// What an address of a port holds; `None` if the port found no room: then the address stays as it is.
fn frontend(have: &Programmed, kind: Kind, id: &ServicePortId) -> Option<Frontend> {
    let placed = have.ports.get(id)?;
    let policy = match kind {
        Kind::ClusterIp => Service::INTERNAL_LOCAL,
        Kind::NodePort | Kind::LoadBalancer | Kind::ExternalIp => Service::EXTERNAL_LOCAL,
    };
    Some(Frontend::new(
        placed.index,
        kind,
        placed.cell.flags & policy != 0,
    ))
}

/// Of the flags, those that no single word could change together with the lists.
fn policies(flags: u32) -> u32 {
    flags & Service::POLICIES
}

fn fresh(have: &mut Programmed) -> Option<Placed> {
    have.service_ids
        .take()
        .map(|index| Placed::new(ServiceIndex(index)))
}

/// Undoes `fresh`, or puts an unchanged port back.
fn give_back(have: &mut Programmed, id: &ServicePortId, placed: Placed, stays: bool) {
    if stays {
        have.ports.insert(id.clone(), placed);
    } else {
        have.service_ids.free(placed.index.0);
    }
}

/// Whether the port has its lists already. Then an address that passes is all that changes, and one
/// operation makes the switch.
fn is_as_wanted(placed: &Placed, want: &DesiredPort) -> bool {
    let backends = want.backends.iter();
    let index_of = |key| placed.backends.get(key).map(|backend| backend.index);
    placed.cell.affinity_secs == want.affinity_secs
        && List::ALL.iter().all(|list| {
            let members = placed.members(*list).iter().map(|index| Some(*index));
            placed.cell.ring(*list).on_empty == want.on_empty(*list)
                && want.members(*list).map(index_of).eq(members)
        })
        && backends.clone().all(|(key, lists)| {
            let backend = placed.backends.get(key);
            backend.is_some_and(|backend| backend.membership.lists == *lists)
        })
        && backends.len() == placed.backends.len()
}

/// Takes all the cells that the wanted port needs beyond those it has, or none.
fn take(have: &mut Programmed, placed: &Placed, want: &DesiredPort) -> Result<Taken, Lacking> {
    let new: Vec<&BackendKey> = want
        .backends
        .keys()
        .filter(|key| !placed.backends.contains_key(*key))
        .collect();
    if new.len() > have.backend_ids.available() {
        return Err(Lacking::Cells {
            map: names::BACKENDS,
            capacity: have.backend_ids.limit(),
            flag: "--capacity-backends",
        });
    }
    let mut taken = Taken {
        backends: BTreeMap::new(),
        rings: Vec::new(),
    };
    for key in new {
        let index = have.backend_ids.take().expect("as many are available");
        taken.backends.insert(key.clone(), BackendIndex(index));
    }
    for list in List::ALL {
        match new_ring(have, placed, want, list, &taken.backends) {
            Ok(ring) => taken.rings.extend(ring),
            Err(lacking) => {
                release(have, &taken);
                return Err(lacking);
            }
        }
    }
    Ok(taken)
}

fn release(have: &mut Programmed, taken: &Taken) {
    for index in taken.backends.values() {
        have.backend_ids.free(index.0);
    }
    for NewRing { ring, .. } in &taken.rings {
        have.arena.free(ring.base, u32::from(ring.len));
    }
}

/// The ring that a list needs; `None` if it has it.
fn new_ring(
    have: &mut Programmed,
    placed: &Placed,
    want: &DesiredPort,
    list: List,
    new: &BTreeMap<BackendKey, BackendIndex>,
) -> Result<Option<NewRing>, Lacking> {
    let index_of = |key: &BackendKey| match placed.backends.get(key) {
        Some(backend) => backend.index,
        None => new[key],
    };
    let members: Vec<BackendIndex> = want.members(list).map(index_of).collect();
    let old = placed.cell.ring(list);
    if members == placed.members(list) && old.on_empty == want.on_empty(list) {
        return Ok(None);
    }
    let Ok(len) = u16::try_from(members.len()) else {
        return Err(Lacking::List { len: members.len() });
    };
    let base = have.arena.take(u32::from(len)).ok_or(Lacking::Cells {
        map: names::SLOTS,
        capacity: have.arena.limit(),
        flag: "--capacity-slots",
    })?;
    let ring = Ring {
        base,
        len,
        on_empty: want.on_empty(list),
        ..Ring::zeroed()
    };
    Ok(Some(NewRing {
        list,
        ring,
        members,
    }))
}
