//! The maps of the packet path, and `Flows`, which reads and writes them. All that is written here is
//! written by one kind of program: packet programs are not preempted by each other on a CPU.
#![expect(unsafe_code, reason = "map look-ups hand out pointers")]

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use lb_common::{
    addr::{Addr, Port},
    flow::{
        FLOW_HINTS_MAX, FLOWS_MAX, FRAGMENTS_MAX, FlowKey, FragmentKey, FragmentPorts, Half,
        INTERFACES_MAX, Node, YOUNG_MAX,
    },
};

use crate::maps::{Ranges, hold};

const MMAP: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
static FLOWS: HashMap<FlowKey, Half, { FLOWS_MAX as usize }, NO_PREALLOC> = HashMap::new();
#[btf_map]
static FLOW_HINTS: Array<u64, { FLOW_HINTS_MAX as usize }, MMAP> = Array::new();
#[btf_map]
static YOUNG: PerCpuArray<FlowKey, { YOUNG_MAX as usize }> = PerCpuArray::new();
#[btf_map]
static YOUNG_NEXT: PerCpuArray<u32, 1> = PerCpuArray::new();
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { FRAGMENTS_MAX as usize }> =
    LruHashMap::new();
#[btf_map]
static NODE: Array<Node, 1, MMAP> = Array::new();
#[btf_map]
static POD_CIDRS: Ranges = Array::new();
#[btf_map]
static INTERFACES: HashMap<u32, u32, { INTERFACES_MAX as usize }, NO_PREALLOC> = HashMap::new();

/// The maps of the packet path.
pub(crate) struct Flows;

/// One half of a flow, found.
pub(crate) struct Found {
    pub(crate) half: Half,
    cell: *mut Half,
}

/// An entry could not be made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is one with this key.
    Exists,
    /// There is no room.
    Full,
}

/// A word that says "about a second", to compare times of use.
const SECOND: u64 = 1_000_000_000;

impl Flows {
    /// The half with this key. Most packets belong to no flow: a counter says so without a look-up.
    #[inline(always)]
    pub(crate) fn find(&self, key: &FlowKey) -> Option<Found> {
        let check = key.check();
        if FLOW_HINTS.get(key.hint()).is_none_or(|flows| *flows == 0) {
            return None;
        }
        let cell = FLOWS.get_ptr_mut(key)?;
        // SAFETY: an element stays mapped while a program runs; every bit pattern is a Half.
        let half = unsafe { ptr::read_volatile(cell) };
        // SAFETY: the first field of the same element.
        let still = unsafe { ptr::read_volatile(cell.cast::<u32>()) };
        (still == check).then_some(Found { half, cell })
    }

    /// Makes both halves of a flow, or neither.
    #[inline(never)]
    pub(crate) fn add_pair(&self, key: &FlowKey, half: &Half) -> Result<(), Refused> {
        let (other_key, other) = half.other(key);
        self.add(key, half)?;
        let done = self.add(&other_key, &other);
        if done.is_err() {
            self.remove(key);
        }
        done
    }

    /// The counter goes up before the entry is there, and down after it has gone, so that it is never
    /// zero where there is one.
    #[inline(always)]
    pub(crate) fn add(&self, key: &FlowKey, half: &Half) -> Result<(), Refused> {
        const EXISTS: i32 = -17;
        let hint = key.hint();
        count(hint, 1);
        match FLOWS.insert(key, half, u64::from(BPF_NOEXIST)) {
            Ok(()) => Ok(()),
            Err(error) => {
                count(hint, u64::MAX);
                Err(if error == EXISTS {
                    Refused::Exists
                } else {
                    Refused::Full
                })
            }
        }
    }

    /// Removes one half.
    #[inline(always)]
    pub(crate) fn remove(&self, key: &FlowKey) {
        if FLOWS.remove(key).is_ok() {
            count(key.hint(), u64::MAX);
        }
    }

    /// Puts a flow among the young ones of this CPU, and returns the one whose place it takes.
    #[inline(always)]
    pub(crate) fn begin(&self, key: &FlowKey) -> Option<FlowKey> {
        let next = YOUNG_NEXT.get_ptr_mut(0)?;
        // SAFETY: this CPU's cell, which no other program touches while this one runs.
        let at = unsafe { next.read() };
        // SAFETY: as above.
        unsafe { next.write(at.wrapping_add(1)) };
        let place = YOUNG.get_ptr_mut(at % YOUNG_MAX)?;
        // SAFETY: as above.
        let oldest = unsafe { place.read() };
        // SAFETY: as above.
        unsafe { place.write(*key) };
        (oldest.proto != 0).then_some(oldest)
    }

    /// Remembers the ports of a packet that comes in parts.
    #[inline(always)]
    pub(crate) fn keep_ports(&self, key: &FragmentKey, ports: (Port, Port)) {
        let ports = FragmentPorts {
            source: ports.0.0,
            destination: ports.1.0,
        };
        // If there is no memory, the later parts are lost, and the packet is sent again.
        let _ = FRAGMENTS.insert(key, ports, u64::from(BPF_ANY));
    }

    /// The ports that the first part had.
    #[inline(always)]
    pub(crate) fn ports(&self, key: &FragmentKey) -> Option<(Port, Port)> {
        // SAFETY: the value is copied at once, and any other part's would only go astray.
        let ports = unsafe { FRAGMENTS.get(key) }?;
        Some((Port(ports.source), Port(ports.destination)))
    }

    /// What is known of this node.
    #[inline(always)]
    pub(crate) fn node(&self) -> Option<&'static Node> {
        NODE.get(0)
    }

    /// Whether an address is in a range of pods.
    #[inline(always)]
    pub(crate) fn in_pod_cidr(&self, addr: Addr) -> bool {
        hold(&POD_CIDRS, addr)
    }

    /// What is known of an interface.
    #[inline(always)]
    pub(crate) fn interface(&self, index: u32) -> u32 {
        // SAFETY: the value is copied at once.
        unsafe { INTERFACES.get(index) }.copied().unwrap_or(0)
    }
}

impl Found {
    /// Writes down that a packet of this direction came by. Two CPUs at once may lose a bit of `seen`:
    /// then a flow that is over is remembered longer.
    #[inline(always)]
    pub(crate) fn touch(&self, seen: u32, now_nanos: u64) {
        if self.half.seen | seen != self.half.seen {
            // SAFETY: the element stays mapped while this program runs. If it has gone to another flow
            // this very moment, that one is remembered a little longer or shorter.
            let field = unsafe { &raw mut (*self.cell).seen };
            // SAFETY: as above.
            unsafe { ptr::write_volatile(field, self.half.seen | seen) };
        }
        if now_nanos.wrapping_sub(self.half.used_nanos) > SECOND {
            // SAFETY: as above.
            let field = unsafe { &raw mut (*self.cell).used_nanos };
            // SAFETY: as above.
            unsafe { ptr::write_volatile(field, now_nanos) };
        }
    }
}

/// Adds to a cell of `FLOW_HINTS`.
#[inline(always)]
fn count(hint: u32, number: u64) {
    if let Some(cell) = FLOW_HINTS.get_ptr_mut(hint) {
        // SAFETY: a live, aligned cell; CPUs and the agent add to it at once.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(cell, number) };
    }
}
