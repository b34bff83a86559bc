//! What the kernel has counted, with names put on: for each Service port, what clients on this node did
//! with it and with each of its backends. Apart from `set.rs`, as nothing is looked up in it.

use std::collections::BTreeMap;

use lb_common::tables::{Backend, BackendIndex, Name, Stats, ZoneName};

use crate::{
    model::name::ServicePortId,
    tables::{
        dump::{BackendView, backend_view},
        programmed::parse_name,
    },
};

/// The cells that say what was counted, and of whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsCells {
    pub names: Vec<Name>,
    pub zones: Vec<ZoneName>,
    pub backends: Vec<Backend>,
    pub backend_stats: Vec<Stats>,
    pub service_stats: Vec<Stats>,
}

/// What was counted of one Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStats {
    pub id: ServicePortId,
    /// Of its backends and of those that it no longer has; `active` only of the former.
    pub total: Stats,
    /// By address.
    pub backends: Vec<BackendStats>,
}

/// What was counted of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendStats {
    pub backend: BackendView,
    pub stats: Stats,
}

impl StatsCells {
    /// Every Service port, by name.
    #[must_use]
    pub fn by_service(&self) -> Vec<ServiceStats> {
        let mut backends = self.backends_by_service();
        let cells = (0..).zip(self.names.iter().zip(&self.service_stats));
        let services = cells.filter_map(|(index, (name, gone))| {
            let id = parse_name(name)?;
            let backends = backends.remove(&index).unwrap_or_default();
            let mut total = *gone;
            for backend in &backends {
                total += backend.stats;
            }
            Some(ServiceStats {
                id,
                total,
                backends,
            })
        });
        let mut services: Vec<_> = services.collect();
        services.sort_by(|a, b| a.id.cmp(&b.id));
        services
    }

    fn backends_by_service(&self) -> BTreeMap<u32, Vec<BackendStats>> {
        let mut services: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        let cells = (0..).zip(self.backends.iter().zip(&self.backend_stats));
        for (index, (cell, stats)) in cells.filter(|(_, (cell, _))| cell.membership.lists != 0) {
            let backend = BackendStats {
                backend: backend_view(&self.zones, BackendIndex(index), *cell),
                stats: *stats,
            };
            services.entry(cell.service).or_default().push(backend);
        }
        for backends in services.values_mut() {
            backends.sort_by_key(|of| (of.backend.cell.addr, of.backend.cell.port));
        }
        services
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use lb_common::{
        addr::{Addr, Proto},
        tables::Membership,
        text::Text,
    };

    use super::*;

    #[test]
    fn a_service_sums_its_backends_and_those_it_had() {
        let cells = StatsCells {
            names: vec![Name::zeroed(), name("default/web:http")],
            zones: Vec::new(),
            backends: vec![backend(1, 2), backend(0, 3), backend(1, 1)],
            backend_stats: vec![connections(30), connections(500), connections(70)],
            service_stats: vec![connections(900), connections(8)],
        };

        let services = cells.by_service();

        assert_eq!(services.len(), 1, "an index without a name is nobody's");
        assert_eq!(services[0].id.to_string(), "default/web:http");
        assert_eq!(services[0].total, connections(108));
        let backends = services[0].backends.iter().map(|of| of.stats.connections);
        assert_eq!(backends.collect::<Vec<_>>(), [70, 30], "by address");
    }

    #[test]
    fn a_free_cell_is_no_backend_whatever_it_has_counted() {
        let free = Backend {
            membership: Membership::zeroed(),
            ..backend(0, 1)
        };
        let cells = StatsCells {
            names: vec![name("default/web")],
            zones: Vec::new(),
            backends: vec![free],
            backend_stats: vec![connections(5)],
            service_stats: vec![Stats::default()],
        };

        let services = cells.by_service();

        assert_eq!(services[0].total, Stats::default());
        assert_eq!(services[0].backends, []);
    }

    fn name(text: &str) -> Name {
        Name {
            text: Text::new(text),
            proto: Proto::TCP.0,
            family: 4,
            ..Name::zeroed()
        }
    }

    fn backend(service: u32, last: u8) -> Backend {
        Backend {
            addr: Addr::v4([10, 0, 1, last]),
            service,
            membership: Membership {
                lists: Membership::CLUSTER,
                generation: 1,
            },
            ..Backend::zeroed()
        }
    }

    fn connections(connections: u64) -> Stats {
        Stats {
            connections,
            ..Stats::default()
        }
    }
}
