//! The lab: simulated nodes with pods, real sockets and real agents on one kernel.
//!
//! A *node* is a cgroup v2 folder, because socket hooks attach to cgroups. A *pod* is a network
//! namespace with an address of its own plus a worker process that lives in this namespace and in
//! its node's cgroup, because cgroup membership belongs to a process. Traffic is made by asking the
//! worker. Everything hangs on a [`Lab`]; dropping it undoes everything, also when a test panics.
//!
//! ```no_run
//! use lb_tests::{Lab, Serve};
//!
//! let lab = Lab::new();
//! let node = lab.node("a");
//! let server = node.pod("10.0.1.5");
//! server.serve(Serve::Tcp, 8080);
//! let client = node.pod("10.0.1.9");
//!
//! let socket = client.tcp(server.at(8080)).unwrap();
//!
//! assert_eq!(socket.ask("hi").unwrap().server, server.at(8080));
//! ```
//!
//! What breaks in the lab itself is a panic that names the thing and the remedy: a broken test bed
//! is a failed test. What a test asks about, such as the errno of a connect, is a value.

pub mod agent;
pub mod cgroup;
pub mod cluster;
pub mod container;
pub mod http;
pub mod journey;
pub mod kind;
pub mod lab;
pub mod netns;
pub mod objects;
pub mod protocol;
pub mod scene;
pub mod stress;
pub mod sweep;
pub mod traffic;
pub mod veth;
pub mod wait;
pub mod worker;

pub use agent::Agent;
pub use cluster::Cluster;
pub use lab::{Lab, Node, Pod};
pub use objects::Objects;
pub use protocol::Serve;

use std::fmt;

/// The value, or a panic with the whole chain of causes. For the lab's own failures only.
#[track_caller]
pub(crate) fn must<T, E: fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}

/// Says on standard output that a test did not run, in the form the test runner counts.
#[expect(clippy::print_stdout, reason = "the test runner reads it there")]
pub fn skip(name: &str, reason: &str) {
    println!("SKIP {name}: {reason}");
}
