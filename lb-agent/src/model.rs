//! What the cluster wants, as plain values: Services, EndpointSlices, this node and the Service
//! ranges go in; [`ServicePort`]s with their endpoint choice come out.
//!
//! Pure: no Kubernetes client, no kernel, no file, no clock, so that every rule of endpoint choice
//! is a function that a test can call. `api` fills it, `tables` reads it.

pub mod endpoint;
pub mod name;
pub mod object;
pub mod policy;
pub mod service;
pub mod service_port;
pub mod state;

pub use object::{Object, ObjectKey};
pub use service_port::ServicePort;
pub use state::Model;
