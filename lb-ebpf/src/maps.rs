//! Every map, and `Maps`, which reads them for `select`. Values are copied out: no reference into a map
//! outlives the call that made it.
#![expect(unsafe_code, reason = "map look-ups hand out pointers")]

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    mem::offset_of,
    ptr,
};

use aya_ebpf::{
    Global,
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_sock},
    btf_maps::{Array, HashMap, PerCpuArray, SkStorage},
    helpers::bpf_sk_storage_get,
    macros::btf_map,
    programs::SockAddrContext,
};
use lb_common::{
    addr::Addr,
    reason::Reason,
    select::{Remembered, Tables},
    tables::{
        AFFINITY_MAX, Affinity, AffinityKey, Backend, BackendIndex, CELLS_MIN, FRONTENDS_MAX,
        Frontend, FrontendKey, List, Membership, Name, Ring, SERVICE_CIDRS_MAX,
        SERVICE_CIDRS_PER_FAMILY, Service, ServiceCidr, ServiceIndex, Slot, Socket, Stats, Status,
        ZONES_MAX, ZoneName,
    },
};

const MMAP: usize = BPF_F_MMAPABLE as usize;
const CELLS: usize = CELLS_MIN as usize;

// Capacities are placeholders where the agent sets them from the cluster's size at load time.
#[btf_map]
static FRONTENDS: HashMap<
    FrontendKey,
    Frontend,
    { FRONTENDS_MAX as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
#[btf_map]
static SERVICES: Array<Service, CELLS, MMAP> = Array::new();
#[btf_map]
static SLOTS: Array<Slot, CELLS, MMAP> = Array::new();
#[btf_map]
static BACKENDS: Array<Backend, CELLS, MMAP> = Array::new();
#[btf_map]
static BACKEND_STATS: Array<Stats, CELLS, MMAP> = Array::new();
#[btf_map]
static SERVICE_STATS: Array<Stats, CELLS, MMAP> = Array::new();
#[btf_map]
static NAMES: Array<Name, CELLS, MMAP> = Array::new();
#[btf_map]
static ZONES: Array<ZoneName, { ZONES_MAX as usize }, MMAP> = Array::new();
#[btf_map]
static SERVICE_CIDRS: Ranges = Array::new();
#[btf_map]
static AFFINITY: HashMap<
    AffinityKey,
    Affinity,
    { AFFINITY_MAX as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
#[btf_map]
static SOCKETS: SkStorage<Socket> = SkStorage::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, { Reason::COUNT as usize }> = PerCpuArray::new();
#[btf_map]
static STATUS: Array<Status, 1, MMAP> = Array::new();

/// Whether this kernel lets these hooks set the error that the caller sees (6.1). The agent probes and
/// sets it at load time; the verifier then removes the branch that is not taken.
#[unsafe(no_mangle)]
static SET_RETVAL: Global<u8> = Global::new(0);

/// A licence the kernel counts as GPL-compatible, so that all helpers are allowed. The sources are
/// Apache-2.0; the object may be distributed under either licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Ranges of addresses: IPv4 from 0, IPv6 from `SERVICE_CIDRS_PER_FAMILY`.
pub(crate) type Ranges = Array<ServiceCidr, { SERVICE_CIDRS_MAX as usize }, MMAP>;

/// Whether one of the ranges holds the address.
#[inline(always)]
pub(crate) fn hold(ranges: &Ranges, addr: Addr) -> bool {
    let first = if addr.is_v4() {
        0
    } else {
        SERVICE_CIDRS_PER_FAMILY
    };
    for offset in 0..SERVICE_CIDRS_PER_FAMILY {
        match ranges.get(first + offset) {
            Some(cidr) if cidr.used == 0 => return false,
            Some(cidr) if cidr.contains(addr) => return true,
            Some(_) => {}
            None => return false,
        }
    }
    false
}

/// The maps, as `select` reads them.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontend_after(key, || {})
    }

    #[inline(always)]
    fn ring(&self, service: ServiceIndex, list: List) -> Option<Ring> {
        let cell = SERVICES.get_ptr(service.0)?;
        let offset = match list {
            List::Cluster => offset_of!(Service, cluster),
            List::Local => offset_of!(Service, local),
        };
        let word = cell.cast::<u64>().wrapping_byte_add(offset);
        // SAFETY: points to a ring in a live array element, 8 bytes aligned to 8. Reading it as a struct
        // compiles to several loads, between which the agent may publish.
        let word = unsafe { ptr::read_volatile(word) };
        Some(Ring::from_word(word))
    }

    #[inline(always)]
    fn affinity_secs(&self, service: ServiceIndex) -> u32 {
        SERVICES.get(service.0).map_or(0, |cell| cell.affinity_secs)
    }

    /// Read twice, as a look-up of `FRONTENDS` is: the memory of an entry that was swept may be another
    /// client's.
    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let first = affinity_words(AFFINITY.get_ptr(key)?);
        let second = affinity_words(AFFINITY.get_ptr(key)?);
        (first[0] == second[0]).then(|| bytemuck::cast(first))
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<Slot> {
        SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, index: BackendIndex) -> Option<Backend> {
        let cell = BACKENDS.get_ptr(index.0)?;
        let membership = membership(cell);
        // SAFETY: `cell` points to a live array element, which is not rewritten before this program ends
        // if its membership calls it live; every bit pattern is a Backend.
        let backend = unsafe { ptr::read(cell) };
        Some(Backend {
            membership,
            ..backend
        })
    }

    #[inline(always)]
    fn in_service_cidr(&self, addr: Addr) -> bool {
        hold(&SERVICE_CIDRS, addr)
    }
}

/// Readings of an entry, of which two in a row must agree.
const READINGS: usize = 4;

impl Maps {
    /// Looks an address up until two readings agree. Since 6.1 the kernel gives the memory of a removed
    /// entry to the next new one at once, so what is read after a look-up may be another address's.
    /// `pause` is what the stress test does in between.
    #[inline(always)]
    pub(crate) fn frontend_after(
        &self,
        key: &FrontendKey,
        pause: impl FnOnce(),
    ) -> Option<Frontend> {
        let first = FRONTENDS.get_ptr(key)?;
        pause();
        let mut last = frontend_word(first);
        for _ in 1..READINGS {
            let next = frontend_word(FRONTENDS.get_ptr(key)?);
            if next == last {
                return Some(bytemuck::cast(next));
            }
            last = next;
        }
        None
    }

    /// Adds one to a reason's counter.
    #[inline(always)]
    pub(crate) fn count(&self, reason: Reason) {
        if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
            // SAFETY: points to this CPU's live, aligned 64-bit cell. Atomic, as a cgroup program may
            // be preempted by another on the same CPU.
            unsafe { add(counter, 1) };
        }
    }

    /// Adds one to a reason's counter, in a program that nothing preempts but what adds atomically.
    #[inline(always)]
    pub(crate) fn count_packet(&self, reason: Reason) {
        if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
            // SAFETY: points to this CPU's live, aligned 64-bit cell.
            let count = unsafe { ptr::read_volatile(counter) };
            // SAFETY: as above. A cgroup program is interrupted between instructions only, and adds by
            // one; a packet program is not interrupted by another.
            unsafe { ptr::write_volatile(counter, count.wrapping_add(1)) };
        }
    }

    /// The figures of a backend that this very program has found in a list.
    #[inline(always)]
    pub(crate) fn stats_of(&self, backend: BackendIndex) -> Option<Figures> {
        Some(Figures(BACKEND_STATS.get_ptr_mut(backend.0)?))
    }

    /// The figures of a backend that a socket was given earlier; `None` if the cell was given up since.
    /// It stays that of the same backend until this program ends: the agent takes a cell's membership
    /// away, waits for its readers, and only then sets the figures to zero.
    #[inline(always)]
    pub(crate) fn stats_if_same(&self, given: Remembered) -> Option<Figures> {
        let now = membership(BACKENDS.get_ptr(given.backend.0)?);
        if now.lists == 0 || now.generation != given.generation {
            return None;
        }
        self.stats_of(given.backend)
    }

    /// Makes a client's entry. Returns whether it did: not if there is one by now, or no room.
    #[inline(always)]
    pub(crate) fn add_affinity(&self, key: &AffinityKey, given: &Affinity) -> bool {
        AFFINITY.insert(key, given, u64::from(BPF_NOEXIST)).is_ok()
    }

    /// Replaces a client's entry. Returns whether it did: not if the entry was swept and its room taken.
    #[inline(always)]
    pub(crate) fn replace_affinity(&self, key: &AffinityKey, given: &Affinity) -> bool {
        AFFINITY.insert(key, given, u64::from(BPF_ANY)).is_ok()
    }

    /// Writes down that a client used its entry.
    #[inline(always)]
    pub(crate) fn refresh_affinity(&self, key: &AffinityKey, used_nanos: u64) {
        if let Some(entry) = AFFINITY.get_ptr_mut(key) {
            let word = entry
                .cast::<u64>()
                .wrapping_byte_add(offset_of!(Affinity, used_nanos));
            // SAFETY: a field of an element that stays mapped while a program runs, 8 bytes aligned to 8.
            // If the entry was swept this very moment, another client's entry is used a little longer.
            unsafe { ptr::write_volatile(word, used_nanos) };
        }
    }

    /// Whether the programs may set the caller's error.
    #[inline(always)]
    pub(crate) fn can_set_retval(&self) -> bool {
        SET_RETVAL.load() != 0
    }

    /// What the socket asked for so far.
    #[inline(always)]
    pub(crate) fn socket<'a>(&self, ctx: &'a SockAddrContext) -> Option<&'a Socket> {
        // SAFETY: the kernel passes a live context, whose socket's storage lives as long as the call.
        let value = unsafe { SOCKETS.get_ptr_mut(ctx) };
        // SAFETY: null or a live Socket, which nobody else changes: the kernel holds the socket's lock
        // while a hook runs.
        unsafe { value.as_ref() }
    }

    /// The same, to be changed; made on first use. `None`: no memory.
    #[inline(always)]
    pub(crate) fn socket_mut<'a>(&self, ctx: &'a mut SockAddrContext) -> Option<&'a mut Socket> {
        // SAFETY: as in `socket`; a new value is zeroed by the kernel.
        let value = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None) };
        // SAFETY: as in `socket`; this program has no other reference to it.
        unsafe { value.as_mut() }
    }

    /// What a socket asked for so far, to be changed, in hooks that are given the socket itself.
    ///
    /// # Safety
    ///
    /// `sock` is what the kernel gave this program, or null, and nobody else uses the socket's memory
    /// while the result lives.
    #[inline(always)]
    pub(crate) unsafe fn memory_of<'a>(&self, sock: *mut bpf_sock) -> Option<&'a mut Socket> {
        if sock.is_null() {
            return None;
        }
        let map = (&raw const SOCKETS).cast_mut().cast();
        // SAFETY: the map is one of sockets' storage, `sock` is the caller's promise, and nothing is made.
        let value = unsafe { bpf_sk_storage_get(map, sock.cast(), ptr::null_mut(), 0) };
        // SAFETY: null or a live Socket, and the caller promises that it is ours alone.
        unsafe { value.cast::<Socket>().as_mut() }
    }
}

/// One backend's figures, in the map. Sums over sockets of all CPUs, so every change is an atomic add.
#[derive(Clone, Copy)]
pub(crate) struct Figures(*mut Stats);

impl Figures {
    /// A connection or a UDP flow begins.
    #[inline(always)]
    pub(crate) fn opened(self) {
        self.add(offset_of!(Stats, connections), 1);
        self.add(offset_of!(Stats, active), 1);
    }

    /// One ends that `opened` has counted.
    #[inline(always)]
    pub(crate) fn closed(self) {
        self.add(offset_of!(Stats, active), u64::MAX);
    }

    /// It was never established.
    #[inline(always)]
    pub(crate) fn failed(self) {
        self.add(offset_of!(Stats, failures), 1);
    }

    /// What it carried.
    #[inline(always)]
    pub(crate) fn carried(self, out: u64, in_: u64) {
        self.add(offset_of!(Stats, bytes_out), out);
        self.add(offset_of!(Stats, bytes_in), in_);
    }

    #[inline(always)]
    fn add(self, offset: usize, number: u64) {
        let word = self.0.cast::<u64>().wrapping_byte_add(offset);
        // SAFETY: a field of a live array element, 8 bytes aligned to 8.
        unsafe { add(word, number) };
    }
}

/// Adds atomically, around zero. The result is unused: 5.10 has no fetch.
///
/// # Safety
///
/// `word` points to a live, aligned 64-bit word of a map.
#[inline(always)]
unsafe fn add(word: *mut u64, number: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(word, number) };
}

/// A backend's membership, read at once.
#[inline(always)]
fn membership(cell: *const Backend) -> Membership {
    let offset = offset_of!(Backend, membership);
    let word = cell.cast::<u64>().wrapping_byte_add(offset);
    // SAFETY: points into a live array element; a membership is 8 bytes aligned to 8.
    bytemuck::cast(unsafe { ptr::read_volatile(word) })
}

#[inline(always)]
fn frontend_word(value: *const Frontend) -> u64 {
    // SAFETY: an 8-byte aligned element of a hash, which stays mapped while a program runs. One 64-bit
    // load takes it whole, even while the agent replaces it.
    unsafe { ptr::read_volatile(value.cast::<u64>()) }
}

#[inline(always)]
fn affinity_words(entry: *const Affinity) -> [u64; 2] {
    let words = entry.cast::<u64>();
    // SAFETY: the first of two words of an element that stays mapped while a program runs.
    let given = unsafe { ptr::read_volatile(words) };
    // SAFETY: the second.
    let used = unsafe { ptr::read_volatile(words.wrapping_add(1)) };
    [given, used]
}
