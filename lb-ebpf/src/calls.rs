//! From one packet program to another that is attached nowhere: what packets seldom need would not fit
//! into one program's stack, nor into what the verifier looks at in one go. A call does not return. What
//! was read of the packet is handed over in memory of this CPU, on which no other packet program runs
//! meanwhile.
#![expect(unsafe_code, reason = "a call leaves the program")]

use aya_ebpf::{
    btf_maps::{PerCpuArray, ProgramArray},
    macros::btf_map,
    programs::TcContext,
};
use lb_common::{
    addr::Addr,
    flow::{Call, FlowKey, Half},
    reason::Reason,
};

use crate::{
    packet::{Packet, View},
    verdict::{Outcome, finish_packet},
};

#[btf_map]
static CALLS: ProgramArray<{ Call::ALL.len() }> = ProgramArray::new();
#[btf_map]
static HANDED_OVER: PerCpuArray<HandedOver, 1> = PerCpuArray::new();

/// What the called program goes on with.
#[repr(C)]
pub(crate) struct HandedOver {
    pub(crate) view: View,
    /// What is to be counted in the end.
    pub(crate) reason: Reason,
    /// The flow, where one was decided for.
    pub(crate) half: Half,
    /// What hides the client; nobody: zeros.
    pub(crate) behind: Addr,
    /// 1: something must.
    pub(crate) hides: u32,
    /// A flow that may have to be given up.
    pub(crate) in_the_way: FlowKey,
    /// How often one was given up because it was in the way.
    pub(crate) tries: u32,
}

/// Goes on in another program, with the headers and a reason. Comes back, with the verdict, only if that
/// program is missing, and never is as long as the agent fills `CALLS` before it attaches anything.
#[inline(always)]
pub(crate) fn call_with(packet: &Packet, which: Call, view: &View, reason: Reason) -> i32 {
    if let Some(left) = hand_over() {
        left.view = *view;
        left.reason = reason;
    }
    call(packet, which)
}

/// What the next program goes on with, to be written.
#[inline(always)]
pub(crate) fn hand_over() -> Option<&'static mut HandedOver> {
    let cell = HANDED_OVER.get_ptr_mut(0)?;
    // SAFETY: this CPU's cell, which no other program touches while this one runs; callers keep one
    // reference at a time. It begins as zeros, which are a HandedOver.
    Some(unsafe { &mut *cell })
}

/// Goes on in another program.
#[inline(always)]
pub(crate) fn call(packet: &Packet, which: Call) -> i32 {
    // SAFETY: nothing here waits to be dropped.
    unsafe { CALLS.tail_call(&TcContext::new(packet.context()), which as u32) };
    finish_packet(packet, Outcome::Drop(Reason::DropUnwritable))
}

/// What the calling program has left.
#[inline(always)]
pub(crate) fn handed_over() -> Option<&'static HandedOver> {
    let cell = HANDED_OVER.get_ptr(0)?;
    // SAFETY: this CPU's cell, which nobody writes while this program runs unless by calling another. It
    // begins as zeros, which are a HandedOver.
    Some(unsafe { &*cell })
}
