//! The tables as people read them: one block per Service port, by name and without an index. Two table
//! sets that serve the same clients the same way read the same.

use std::{collections::BTreeMap, fmt};

use lb_common::{
    addr::{Port, Proto, socket_addr},
    select::Tables,
    tables::{
        Backend, BackendIndex, Frontend, FrontendKey, Hints, List, Locality, Membership, Ring,
        ServiceIndex, ZoneName,
    },
};

use crate::{
    model::name::ServicePortId,
    tables::{programmed::parse_name, set::TableSet},
};

/// One Service port as the kernel serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    pub id: ServicePortId,
    pub index: ServiceIndex,
    pub affinity_secs: u32,
    pub hints: Hints,
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// `None`: the port never uses this list.
    pub cluster: Option<ListView>,
    pub local: Option<ListView>,
    /// Backends that take no new flows here and may keep those they have.
    pub kept: Vec<BackendView>,
}

/// A list as a client meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListView {
    pub on_empty: OnEmpty,
    pub backends: Vec<BackendView>,
}

/// The answer of an empty list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnEmpty {
    Reject,
    Drop,
}

impl fmt::Display for OnEmpty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Reject => "reject",
            Self::Drop => "drop",
        })
    }
}

/// A backend with its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendView {
    pub index: BackendIndex,
    pub cell: Backend,
    pub zone: String,
    pub locality: Locality,
}

impl fmt::Display for BackendView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zone = if self.zone.is_empty() {
            "-"
        } else {
            &self.zone
        };
        write!(
            f,
            "{} zone={zone} {}",
            socket_addr(self.cell.addr, Port(self.cell.port)),
            locality_name(self.locality)
        )
    }
}

/// How far a backend is, in one word.
#[must_use]
pub fn locality_name(locality: Locality) -> &'static str {
    match locality {
        Locality::Unknown => "unknown",
        Locality::Node => "node",
        Locality::Zone => "zone",
        Locality::Other => "other-zone",
    }
}

/// For sorting: the nearest first.
#[must_use]
pub fn distance(locality: Locality) -> u8 {
    match locality {
        Locality::Node => 0,
        Locality::Zone => 1,
        Locality::Unknown => 2,
        Locality::Other => 3,
    }
}

/// What became of topology hints, in one word.
#[must_use]
pub fn hints_name(hints: Hints) -> &'static str {
    match hints {
        Hints::None => "none",
        Hints::Node => "node",
        Hints::Zone => "zone",
        Hints::NodeHasNoZone => "ignored-node-without-zone",
        Hints::EndpointUnhinted => "ignored-endpoint-without-zone-hint",
        Hints::ZoneUncovered => "ignored-no-endpoint-for-zone",
        Hints::EndpointUnhintedNode => "ignored-endpoint-without-node-hint",
        Hints::NodeUncovered => "ignored-no-endpoint-for-node",
        Hints::EndpointHasNoZone => "missing-endpoint-without-zone",
        Hints::Uneven => "missing-too-few-or-uneven",
        Hints::NotGiven => "missing",
    }
}

/// Why hints do not narrow the list, though somebody gave them or asked for them. `plan` knows more.
#[must_use]
pub fn why_no_hints(hints: Hints) -> Option<&'static str> {
    Some(match hints {
        Hints::None | Hints::Node | Hints::Zone => return None,
        Hints::NodeHasNoZone => "zone hints ignored: this node has no zone",
        Hints::EndpointUnhinted => "zone hints ignored: a ready endpoint has none",
        Hints::ZoneUncovered => "zone hints ignored: no ready endpoint is hinted for this zone",
        Hints::EndpointUnhintedNode => "node hints ignored: a ready endpoint has none",
        Hints::NodeUncovered => "node hints ignored: no ready endpoint is hinted for this node",
        Hints::EndpointHasNoZone => "no hints: a ready endpoint has no zone, as its Node has none",
        Hints::Uneven => {
            "no hints: topology-mode Auto found the endpoints too few or too uneven; see the events \
             of the Service"
        }
        Hints::NotGiven => {
            "no hints: the Service asks for them, and who makes the EndpointSlices gives none"
        }
    })
}

/// Every Service port, by name.
#[must_use]
pub fn services(tables: &TableSet) -> Vec<ServiceView> {
    let mut frontends: BTreeMap<u32, Vec<(FrontendKey, Frontend)>> = BTreeMap::new();
    for (key, frontend) in &tables.frontends {
        if !key.is_address() {
            frontends
                .entry(frontend.service)
                .or_default()
                .push((*key, *frontend));
        }
    }
    let mut kept: BTreeMap<u32, Vec<BackendView>> = BTreeMap::new();
    for (index, cell) in (0..).zip(&tables.backends) {
        if cell.membership.lists == Membership::SERVING {
            let view = backend_view(&tables.zones, BackendIndex(index), *cell);
            kept.entry(cell.service).or_default().push(view);
        }
    }
    for backends in kept.values_mut() {
        backends.sort_by_key(|backend| (backend.cell.addr, backend.cell.port));
    }
    let mut services: Vec<ServiceView> = (0..)
        .zip(tables.names.iter().zip(&tables.services))
        .filter_map(|(index, (name, cell))| {
            Some(ServiceView {
                id: parse_name(name)?,
                index: ServiceIndex(index),
                affinity_secs: cell.affinity_secs,
                hints: Hints::of(cell.flags).unwrap_or(Hints::None),
                frontends: frontends.remove(&index).unwrap_or_default(),
                cluster: list_view(tables, cell.cluster),
                local: list_view(tables, cell.local),
                kept: kept.remove(&index).unwrap_or_default(),
            })
        })
        .collect();
    services.sort_by(|a, b| a.id.cmp(&b.id));
    services
}

fn list_view(tables: &TableSet, ring: Ring) -> Option<ListView> {
    let on_empty = match ring.on_empty {
        Ring::REJECT => OnEmpty::Reject,
        Ring::DROP => OnEmpty::Drop,
        _ => return None,
    };
    let slots = (0..u32::from(ring.len)).filter_map(|at| tables.slot(ring.base + at));
    let backends = slots.filter_map(|slot| {
        let index = BackendIndex(slot.backend);
        Some(backend_view(&tables.zones, index, tables.backend(index)?))
    });
    Some(ListView {
        on_empty,
        backends: backends.collect(),
    })
}

pub(super) fn backend_view(zones: &[ZoneName], index: BackendIndex, cell: Backend) -> BackendView {
    let zone = zones.get(usize::from(cell.zone));
    BackendView {
        index,
        zone: zone
            .map(|zone| zone.text.as_str().to_owned())
            .unwrap_or_default(),
        locality: Locality::from_cell(cell.locality),
        cell,
    }
}

impl fmt::Display for ServiceView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {} {}", self.id, self.id.proto, self.id.family)?;
        for (key, frontend) in &self.frontends {
            let policy = if frontend.flags & Frontend::LOCAL != 0 {
                "Local"
            } else {
                "Cluster"
            };
            let addr = socket_addr(key.addr, Port(key.port));
            writeln!(f, "  {addr} {} policy={policy}", Proto(key.proto))?;
        }
        for (list, view) in [(List::Cluster, &self.cluster), (List::Local, &self.local)] {
            let Some(view) = view else { continue };
            let name = match list {
                List::Cluster => "cluster",
                List::Local => "local",
            };
            writeln!(f, "  {name}, empty={}", view.on_empty)?;
            for backend in &view.backends {
                writeln!(f, "    {backend}")?;
            }
        }
        for backend in &self.kept {
            writeln!(f, "  keeps flows: {backend}")?;
        }
        Ok(())
    }
}
