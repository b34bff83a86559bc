//! One Service port in one family with everything resolved: what the tables are built from.

use std::fmt;

use lb_common::{
    addr::{Addr, Port},
    select::Origin,
    tables::{Kind, List},
};

use crate::model::{
    endpoint::{Slice, merge},
    name::{Family, ServicePortId},
    policy::{Choice, Uses, Viewer, choose},
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
    pub kind: Kind,
    /// `None` for a NodePort: it answers at whatever addresses the node has.
    pub addr: Option<Addr>,
    pub port: Port,
}

/// A kind of frontend as Kubernetes spells it.
#[must_use]
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::ClusterIp => "ClusterIP",
        Kind::NodePort => "NodePort",
        Kind::LoadBalancer => "LoadBalancer",
        Kind::ExternalIp => "ExternalIP",
    }
}

/// Where clients are: each has a policy of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// In the cluster, to the `ClusterIP`.
    Internal,
    /// Outside, to the other kinds of address.
    External,
}

impl Traffic {
    pub const BOTH: [Self; 2] = [Self::Internal, Self::External];
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Internal => "internal",
            Self::External => "external",
        })
    }
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
    /// clients from outside only: those on this node reach the whole cluster list.
    #[must_use]
    pub fn list_for(&self, kind: Kind, origin: Origin) -> List {
        let policy = match (kind, origin) {
            (Kind::ClusterIp, _) => self.internal_policy,
            (_, Origin::Outside) => self.external_policy,
            (_, Origin::Node) => Policy::Cluster,
        };
        match policy {
            Policy::Cluster => List::Cluster,
            Policy::Local => List::Local,
        }
    }

    /// Whether the cluster has endpoints, and this node, to which the policy binds this traffic, none.
    #[must_use]
    pub fn lacks_local(&self, traffic: Traffic) -> bool {
        let policy = match traffic {
            Traffic::Internal => self.internal_policy,
            Traffic::External => self.external_policy,
        };
        let choice = &self.choice;
        let is_bound = policy == Policy::Local && choice.uses.local;
        is_bound && choice.has_any && choice.is_empty(List::Local)
    }

    #[must_use]
    pub fn verdict(&self, kind: Kind, origin: Origin) -> Verdict {
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
        choice: choose(&endpoints, viewer, uses(service, half, port), service.asks),
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
        kind: Kind::NodePort,
        addr: None,
        port,
    });
    let external = half.external_ips.iter().filter(|_| external_ips);

    std::iter::once(&half.cluster_ip)
        .map(at(Kind::ClusterIp))
        .chain(node_port)
        .chain(half.load_balancer_ips.iter().map(at(Kind::LoadBalancer)))
        .chain(external.map(at(Kind::ExternalIp)))
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
