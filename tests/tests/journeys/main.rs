//! Packet journeys: a packet in, and out come the verdict, the packet to the byte, and exactly the
//! counters that moved.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bed;
mod icmp;
mod masquerade;
mod memory;
mod packets;
mod services;
mod shapes;
