//! cgroup sock_ops: what becomes of the TCP connections that connect has translated. Here and not in
//! connect, because only TCP knows whether a connection came about, when it ended and what it carried. It
//! runs a few times for each TCP socket below the cgroup; those that asked for no Service cost a compare,
//! and one look-up that finds nothing when they connect.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::sock_ops, programs::SockOpsContext};
use lb_common::{select::Remembered, tables::BackendIndex};

use crate::{
    maps::Maps,
    tcp::{Event, Remembering, Tcp},
};

/// Leaves the kernel's own answer to each question as it is.
const PROCEED: u32 = 1;

#[sock_ops]
pub(crate) fn nh_sock_ops(ctx: SockOpsContext) -> u32 {
    let mut tcp = Tcp::new(ctx);
    if let Some(event) = tcp.event()
        && let Some(mut socket) = tcp.remembering()
    {
        match event {
            Event::Connect => connect(&mut socket),
            Event::Close { was_established } => close(&mut socket, was_established),
        }
    }
    PROCEED
}

/// A connection begins, and is active from its first packet on.
#[inline(always)]
fn connect(socket: &mut Remembering<'_>) {
    let Some(given) = given(socket) else {
        return;
    };
    let Some(figures) = Maps.stats_if_same(given) else {
        return;
    };
    figures.opened();
    socket.memory.count(0);
    socket.follow();
}

/// The backend that connect chose. A socket may have asked for a Service earlier and for something else
/// this time: then it goes elsewhere.
#[inline(always)]
fn given(socket: &Remembering<'_>) -> Option<Remembered> {
    let (addr, port) = socket.peer();
    let chosen = &socket.memory.peers[0];
    (chosen.backend_addr == addr && chosen.backend_port == port.0).then_some(Remembered {
        backend: BackendIndex(chosen.backend),
        generation: chosen.generation,
    })
}

/// It ends: by FIN, by RST, by time, or because nobody answered. The kernel comes here once for each
/// connection, however it ends and whether or not its owner still lives.
#[inline(always)]
fn close(socket: &mut Remembering<'_>, was_established: bool) {
    let Some(given) = socket.memory.uncount(0) else {
        return;
    };
    let Some(figures) = Maps.stats_if_same(given) else {
        return;
    };
    figures.closed();
    if was_established {
        let (out, in_) = socket.bytes();
        figures.carried(out, in_);
    } else {
        figures.failed();
    }
}
