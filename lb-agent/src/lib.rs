//! The agent as a library, in reading order: objects come from a source, become a model, the model
//! becomes desired tables, the difference to what is programmed becomes map operations, and the
//! datapath carries them out. The vitals say how that goes.

pub mod source;

pub mod api;

pub mod model;

pub mod tables;

pub mod datapath;

pub mod sync;

pub mod vitals;

pub mod config;

pub mod agent;

pub mod cli;
