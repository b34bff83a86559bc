//! Cells of the maps that further hooks bring, agreed on before the first of them is written: what a
//! socket, a Service or a packet keeps must fit beside what [`crate::tables`] holds. The object of this
//! schema has none of these maps.

use bytemuck::{Pod, Zeroable};

use crate::{addr::Addr, flow::FlowKey};

macro_rules! assert_size {
    ($cell:ty, $bytes:literal) => {
        const _: () = assert!(size_of::<$cell>() == $bytes);
    };
}

/// Cell of `CURSORS` (array), by service index: where round robin goes on. A step lost between two CPUs
/// does no harm, so it is loaded and stored plainly: 5.10 has no fetch-and-add. Writer and reader: hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Cursor {
    /// Slots given out.
    pub next: u64,
}

assert_size!(Cursor, 8);

/// Value of `PODS` (hash), by network namespace cookie (u64): the addresses of a pod, learnt from its
/// traffic, as a connect has no source address yet. Writers: sock_ops, packet programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PodAddresses {
    /// IPv4, mapped; zeros: not known.
    pub v4: Addr,
    /// IPv6; zeros: not known.
    pub v6: Addr,
}

assert_size!(PodAddresses, 32);

/// Key of `NODE_ADDRESSES` (hash, value u32 flags): an address of this node at which NodePorts answer.
/// Writer: agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct NodeAddress {
    /// One of this node's own.
    pub addr: Addr,
}

assert_size!(NodeAddress, 16);

/// Key of `SOURCE_RANGES` (LPM trie, value u32, unused): who may reach a load balancer address. Looked
/// at only when the Service carries the flag. Writer: agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SourceRange {
    /// Bits that count, of `service` and `client` together.
    pub prefix_len: u32,
    /// Index into `SERVICES`, big endian, as a trie compares bytes.
    pub service: [u8; 4],
    /// The client's range.
    pub client: Addr,
}

assert_size!(SourceRange, 24);

/// Record of `EVENTS` (ring buffer): one sampled decision. Off unless somebody listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Event {
    /// Nanoseconds since boot.
    pub at_nanos: u64,
    /// The socket's cookie; 0: a packet.
    pub socket: u64,
    /// What was asked for, and by which protocol.
    pub flow: FlowKey,
    /// Index into `SERVICES`.
    pub service: u32,
    /// Index into `BACKENDS`.
    pub backend: u32,
    /// [`crate::reason::Reason`].
    pub reason: u32,
    /// Zero.
    pub pad: u32,
}

assert_size!(Event, 72);
