//! What users do to Services on a real cluster, each followed by real connects from pods on several
//! nodes: the objects are changed by the API, the control plane's own controllers write the slices, and
//! real agents follow them. One control plane serves all scenarios.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod endpoints;
mod service;
mod stage;
mod topology;
