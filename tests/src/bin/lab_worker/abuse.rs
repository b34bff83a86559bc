//! A client that does with sockets whatever they allow: threads that share them, calls in random order
//! and at the wrong time. What the kernel programs count must be right in the end all the same.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use lb_tests::protocol::{Abuse, Family, Transport};
use rustix::{
    io::{Result, ioctl_fionbio},
    net::{
        RecvFlags, SendFlags, Shutdown, connect, connect_unspec, listen, recv, send, sendto,
        shutdown, sockopt::set_socket_linger,
    },
};
use serde_json::Value;

use crate::client::open;

/// Sockets at a time: few, so that calls meet on one.
const SOCKETS: usize = 12;

type Shared = Mutex<Vec<Arc<OwnedFd>>>;

pub(crate) fn abuse(abuse: &Abuse) -> Result<Value> {
    let sockets = Shared::default();
    thread::scope(|scope| {
        for thread in 0..abuse.threads {
            let mut random = fastrand::Rng::with_seed(abuse.seed + u64::from(thread));
            let sockets = &sockets;
            scope.spawn(move || {
                for _ in 0..abuse.calls {
                    one_call(sockets, &abuse.targets, &mut random);
                }
            });
        }
    });
    Ok(Value::Null)
}

fn one_call(sockets: &Shared, targets: &[SocketAddr], random: &mut fastrand::Rng) {
    let target = targets[random.usize(..targets.len())];
    let Some(socket) = pick(sockets, random) else {
        return add(sockets, target, random);
    };
    // Most of these are wrong for the socket as it is, and that is the matter.
    let _ = match random.u8(..20) {
        0..7 => connect(&socket, &target),
        7 => connect_unspec(&socket),
        8..10 => send(&socket, b"hi\n", SendFlags::NOSIGNAL).map(drop),
        10..13 => sendto(&socket, b"hi\n", SendFlags::NOSIGNAL, &target).map(drop),
        13 => recv(&socket, &mut [0_u8; 512], RecvFlags::empty()).map(drop),
        14 => shutdown(&socket, Shutdown::Both),
        15 => listen(&socket, 1),
        16 => set_socket_linger(&socket, Some(Duration::ZERO)),
        17 => rustix::io::dup(&socket).map(|twin| keep(sockets, twin)),
        _ => {
            remove(sockets, &socket);
            Ok(())
        }
    };
}

/// One of the shared sockets; another thread may have it too, and may have taken it off the list.
fn pick(sockets: &Shared, random: &mut fastrand::Rng) -> Option<Arc<OwnedFd>> {
    let sockets = lock(sockets);
    let at = random.usize(..sockets.len().max(SOCKETS));
    sockets.get(at).cloned()
}

/// Of the target's family, so that calls with it can succeed. No call of it blocks.
fn add(sockets: &Shared, target: SocketAddr, random: &mut fastrand::Rng) {
    let transport = if random.bool() {
        Transport::Tcp
    } else {
        Transport::Udp
    };
    let socket = non_blocking(transport, Family::of(target));
    keep(sockets, socket.expect("a socket can be opened"));
}

fn non_blocking(transport: Transport, family: Family) -> Result<OwnedFd> {
    let socket = open(transport, family)?;
    ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

fn keep(sockets: &Shared, socket: OwnedFd) {
    lock(sockets).push(Arc::new(socket));
}

/// The last who has it closes it.
fn remove(sockets: &Shared, socket: &Arc<OwnedFd>) {
    lock(sockets).retain(|other| !Arc::ptr_eq(other, socket));
}

fn lock(sockets: &Shared) -> std::sync::MutexGuard<'_, Vec<Arc<OwnedFd>>> {
    sockets.lock().unwrap_or_else(PoisonError::into_inner)
}
