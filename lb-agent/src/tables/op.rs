//! One change to one map. The datapath carries operations out one by one, in the order that `diff` gave
//! them.

use lb_common::tables::{
    Backend, BackendIndex, Frontend, FrontendKey, List, Membership, Name, Ring, ServiceCidr,
    ServiceIndex, Slot, ZoneId, ZoneName,
};

/// One map operation. `Write…` fills cells that no reader uses; `Publish…` is one aligned 64-bit store
/// that readers see at once; `Put` and `Delete` are atomic in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Says whose cells a service index stands for, with figures that begin at zero; an empty name frees
    /// it.
    WriteName { service: ServiceIndex, name: Name },
    /// Gives a zone its id, for good.
    WriteZone { zone: ZoneId, name: ZoneName },
    /// Fills a free backend cell: its figures with zeros, its membership last.
    WriteBackend {
        index: BackendIndex,
        backend: Backend,
    },
    /// Fills free slots.
    WriteSlots { base: u32, slots: Vec<Slot> },
    /// Fills or clears a range of ClusterIPs, its `used` last or first.
    WriteCidr { at: u32, cidr: ServiceCidr },
    /// Replaces a Service port's list.
    PublishRing {
        service: ServiceIndex,
        list: List,
        ring: Ring,
    },
    /// Replaces a Service port's affinity time-out and flags.
    PublishSettings {
        service: ServiceIndex,
        affinity_secs: u32,
        flags: u32,
    },
    /// Says which lists a backend is in; none frees the cell.
    PublishMembership {
        index: BackendIndex,
        membership: Membership,
    },
    /// Adds the figures of a backend that is gone to those of its Service port.
    KeepStats { backend: BackendIndex },
    /// Makes an address answer, or answer for another Service port.
    PutFrontend {
        key: FrontendKey,
        frontend: Frontend,
    },
    /// Makes an address answer no more.
    DeleteFrontend { key: FrontendKey },
}
