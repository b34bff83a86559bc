//! The contract between agent and kernel.
