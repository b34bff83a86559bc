//! One Service port in one family with everything resolved: what the tables are built from.

use std::fmt;

use lb_common::addr::{Addr, Port};

use crate::model::{
    endpoint::{Slice, merge},
    name::{Family, ServicePortId},
    policy::{Choice, List, Uses, Viewer, choose},
    service::{Cidr, Half, Policy, PortSpec, Service},
};

/// One Service port and family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub id: ServicePortId,
    /// Sorted by kind, then address.
    pub frontends: Vec<Frontend>,
    pub internal_policy: Policy,
    pub external_policy: Policy,
    pub affinity_secs: Option<u32>,
    /// Who may reach the load balancer addresses, and no other kind; empty means everybody.
    pub source_ranges: Vec<Cidr>,
    pub choice: Choice,
}

/// An address and port that clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    pub kind: FrontendKind,
    /// `None` for a NodePort: it answers at whatever addresses the node has.
    pub addr: Option<Addr>,
    pub port: Port,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalIp,
}

impl fmt::Display for FrontendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalIp => "ExternalIP",
        })
    }
}

/// Where a flow began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    Host,
    Pod,
    Outside,
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Forward,
    /// Refused at once: no endpoint in the cluster could serve.
    Reject,
    /// Silently lost: endpoints exist, none that may be used here, so the client should try elsewhere.
    Drop,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Forward => "forward",
            Self::Reject => "reject",
            Self::Drop => "drop",
        })
    }
}

impl ServicePort {
    /// The list that serves a flow to a frontend of this kind.
    ///
    /// Neither policy applies to the other kind of address. `externalTrafficPolicy: Local` binds
    /// clients from outside only: pods and this host reach the whole cluster list.
    #[must_use]
    pub fn list_for(&self, kind: FrontendKind, origin: Origin) -> List {
        let policy = match (kind, origin) {
            (FrontendKind::ClusterIp, _) => self.internal_policy,
            (_, Origin::Outside) => self.external_policy,
            (_, Origin::Host | Origin::Pod) => Policy::Cluster,
        };
        match policy {
            Policy::Cluster => List::Cluster,
            Policy::Local => List::Local,
        }
    }

    #[must_use]
    pub fn verdict(&self, kind: FrontendKind, origin: Origin) -> Verdict {
        if !self.choice.has_any {
            Verdict::Reject
        } else if self.choice.is_empty(self.list_for(kind, origin)) {
            Verdict::Drop
        } else {
            Verdict::Forward
        }
    }
}

/// Resolve one port of one half of a Service.
#[must_use]
pub(crate) fn resolve<'a>(
    service: &Service,
    (family, half): (Family, &Half),
    port: &PortSpec,
    slices: impl Iterator<Item = &'a Slice>,
    viewer: Viewer<'_>,
    external_ips: bool,
) -> ServicePort {
    let endpoints = merge(slices, family, &port.name, port.proto);
    ServicePort {
        id: ServicePortId {
            service: service.name.clone(),
            port: port.name.clone(),
            proto: port.proto,
            family,
        },
        frontends: frontends(half, port, external_ips),
        internal_policy: service.internal_policy,
        external_policy: service.external_policy,
        affinity_secs: service.affinity_secs,
        source_ranges: half.source_ranges.iter().copied().collect(),
        choice: choose(&endpoints, viewer, uses(service, half, port)),
    }
}

fn frontends(half: &Half, port: &PortSpec, external_ips: bool) -> Vec<Frontend> {
    let at = |kind| {
        move |addr: &Addr| Frontend {
            kind,
            addr: Some(*addr),
            port: port.port,
        }
    };
    let node_port = port.node_port.map(|port| Frontend {
        kind: FrontendKind::NodePort,
        addr: None,
        port,
    });
    let external = half.external_ips.iter().filter(|_| external_ips);

    std::iter::once(&half.cluster_ip)
        .map(at(FrontendKind::ClusterIp))
        .chain(node_port)
        .chain(
            half.load_balancer_ips
                .iter()
                .map(at(FrontendKind::LoadBalancer)),
        )
        .chain(external.map(at(FrontendKind::ExternalIp)))
        .collect()
}

fn uses(service: &Service, half: &Half, port: &PortSpec) -> Uses {
    // External IPs count here even where the node ignores them, as in kube-proxy.
    let externally_accessible = port.node_port.is_some()
        || !half.load_balancer_ips.is_empty()
        || !half.external_ips.is_empty();
    let internal_local = service.internal_policy == Policy::Local;
    let external_local = service.external_policy == Policy::Local;
    Uses {
        cluster: !internal_local || externally_accessible,
        local: internal_local || (external_local && externally_accessible),
    }
}
