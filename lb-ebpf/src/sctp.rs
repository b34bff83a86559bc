//! SCTP's checksum, CRC-32c over the whole packet. It covers the ports and no address, and cannot be
//! adapted: when a port changes it is computed again. Of a packet in parts that cannot be done, as no part
//! has all of it, and the parts are dropped.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::classifier, programs::TcContext};
use lb_common::{crc32c, reason::Reason, wire::Part};

use crate::{
    calls::handed_over,
    packet::{Packet, Unwritable, View},
    verdict::{Outcome, finish_packet},
};

/// Longest packet whose checksum is computed: what fits into a frame of 9,000 bytes.
const CHUNKS_MAX: usize = 9_024 / CHUNK;
const CHUNK: usize = 16;

const SUM_AT: usize = 8;

#[classifier]
pub(crate) fn nh_sctp(ctx: TcContext) -> i32 {
    let mut packet = Packet::new(ctx);
    let Some(left) = handed_over() else {
        return finish_packet(&packet, Outcome::Drop(Reason::DropUnwritable));
    };
    let outcome = match sum(&mut packet, &left.view) {
        Ok(()) => Outcome::Rewritten(left.reason),
        Err(Unwritable) => Outcome::Drop(Reason::DropUnwritable),
    };
    finish_packet(&packet, outcome)
}

/// Computes the checksum and writes it. A packet that came from this machine has none yet (zero), and
/// gets it from the kernel when it leaves.
#[inline(always)]
fn sum(packet: &mut Packet, view: &View) -> Result<(), Unwritable> {
    if !matches!(view.part, Part::Whole) {
        return Err(Unwritable);
    }
    let l4 = view.l4();
    let at = l4 + SUM_AT;
    let old: [u8; 4] = packet.load(at).ok_or(Unwritable)?;
    if u32::from_ne_bytes(old) == 0 {
        return Ok(());
    }
    packet.store(at, &[0u8; 4])?;
    let end = view.end();
    let mut sum = crc32c::BEGIN;
    let mut from = l4;
    for _ in 0..CHUNKS_MAX {
        if from + CHUNK > end {
            break;
        }
        let chunk: [u8; CHUNK] = packet.load(from).ok_or(Unwritable)?;
        for byte in chunk {
            sum = crc32c::add(sum, byte);
        }
        from += CHUNK;
    }
    for _ in 0..CHUNK {
        if from >= end {
            break;
        }
        sum = crc32c::add(sum, packet.load(from).ok_or(Unwritable)?);
        from += 1;
    }
    if from < end {
        return Err(Unwritable);
    }
    packet.store(at, &crc32c::end(sum))
}
