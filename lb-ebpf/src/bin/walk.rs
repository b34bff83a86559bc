//! The readers of the stress tests, by the same code as the product's programs: one loads a ring word
//! once and walks all its slots, the other looks an address up. Run by BPF_PROG_TEST_RUN while whole
//! lists are swapped, and addresses come and go.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    feature(core_intrinsics),
    expect(internal_features, reason = "maps.rs")
)]

#[cfg(target_arch = "bpf")]
#[path = "../flows.rs"]
#[allow(
    dead_code,
    reason = "the agent's maps are opened all at once, and the walker needs none of these"
)]
mod flows;
#[cfg(target_arch = "bpf")]
#[path = "../maps.rs"]
#[allow(dead_code, reason = "the walker reads the tables and needs no socket")]
mod maps;

#[cfg(target_arch = "bpf")]
mod walk {
    #![expect(unsafe_code, reason = "its own counters")]

    use aya_ebpf::{
        btf_maps::PerCpuArray,
        helpers::bpf_ktime_get_ns,
        macros::{btf_map, classifier},
        programs::TcContext,
    };
    use lb_common::{
        addr::{Addr, Port, Proto},
        select::Tables,
        tables::{BackendIndex, FrontendKey, List, Ring, ServiceIndex},
    };

    use super::maps::Maps;

    /// Longest list that a walk follows.
    const SLOTS_MAX: u32 = 64;

    /// One walk in so many is slow.
    const SLOW_EVERY: u64 = 4096;

    /// Looks at the clock of a slow walk: some 200 µs, long enough for the writer to come round to the
    /// cells of the list whose word was loaded.
    const SLOW_STEPS: u32 = 8192;

    /// What a walk found; the index into `WALKS`.
    #[derive(Clone, Copy, PartialEq, Eq)]
    #[repr(u32)]
    enum Found {
        /// Every slot was of one list.
        Whole = 0,
        /// Nothing is published yet.
        Nothing = 1,
        /// Slots of two lists, or of another Service.
        Mixture = 2,
    }

    #[btf_map]
    static WALKS: PerCpuArray<u64, 3> = PerCpuArray::new();

    #[classifier]
    pub(crate) fn nh_walk(_ctx: TcContext) -> i32 {
        let walks = WALKS.get(Found::Whole as u32).copied().unwrap_or(0);
        count(walk(walks % SLOW_EVERY == 0))
    }

    /// Service 1 answers at this address, and Service 2 at another.
    const LOOKED_UP: FrontendKey = FrontendKey::new(Addr::v4([10, 96, 0, 1]), Port(80), Proto::TCP);

    /// Looks at the clock between a look-up and its first reading: some 5 µs, long enough for the entry
    /// to be removed and its memory to be another's.
    const PAUSE_STEPS: u32 = 128;

    #[classifier]
    pub(crate) fn nh_look_up(_ctx: TcContext) -> i32 {
        let frontend = Maps.frontend_after(&LOOKED_UP, || dawdle(PAUSE_STEPS));
        count(match frontend {
            None => Found::Nothing,
            Some(frontend) if frontend.service == 1 => Found::Whole,
            Some(_) => Found::Mixture,
        })
    }

    #[inline(always)]
    fn count(found: Found) -> i32 {
        if let Some(count) = WALKS.get_ptr_mut(found as u32) {
            // SAFETY: this CPU's live, aligned cell; a TC program is not preempted by another.
            unsafe { *count += 1 };
        }
        found as i32
    }

    /// A list is told from another by the port, which all its backends share.
    #[inline(always)]
    fn walk(slowly: bool) -> Found {
        let Some(ring) = Maps.ring(ServiceIndex(0), List::Cluster) else {
            return Found::Nothing;
        };
        if ring.len == 0 {
            return Found::Nothing;
        }
        if slowly {
            dawdle(SLOW_STEPS);
        }
        let mut list = None;
        for offset in 0..SLOTS_MAX {
            if offset >= u32::from(ring.len) {
                break;
            }
            match port(ring, offset) {
                Ok(port) if *list.get_or_insert(port) == port => {}
                Ok(_) => return Found::Mixture,
                Err(found) => return found,
            }
        }
        Found::Whole
    }

    #[inline(always)]
    fn dawdle(steps: u32) {
        for _ in 0..steps {
            // SAFETY: the helper takes no argument and may be called anywhere.
            unsafe { bpf_ktime_get_ns() };
        }
    }

    #[inline(always)]
    fn port(ring: Ring, offset: u32) -> Result<u16, Found> {
        let slot = Maps
            .slot(ring.base.wrapping_add(offset))
            .ok_or(Found::Mixture)?;
        let backend = Maps
            .backend(BackendIndex(slot.backend))
            .ok_or(Found::Mixture)?;
        if slot.service != 0 || backend.service != 0 {
            return Err(Found::Mixture);
        }
        Ok(backend.port)
    }
}

/// Nothing panics here: the verifier would refuse the endless loop.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
