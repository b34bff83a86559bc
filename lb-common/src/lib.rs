//! The contract between agent and kernel.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod addr;
