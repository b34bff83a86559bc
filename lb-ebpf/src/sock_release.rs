//! cgroup sock_release: a UDP socket is closed by its last owner, be it that the process was killed, and
//! is active at no backend any more. TCP goes on after that, and ends in `sock_ops.rs`.
#![forbid(unsafe_code)]

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};

use crate::{connect::uncount_all, tcp::Released};

const PROCEED: i32 = 1;

#[cgroup_sock(sock_release)]
pub(crate) fn nh_sock_release(ctx: SockContext) -> i32 {
    if let Some(socket) = Released::new(ctx).memory_mut() {
        uncount_all(socket);
    }
    PROCEED
}
