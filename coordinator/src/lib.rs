//! The coordinator: who belongs to a run, who does which task, and keeping the processes alive. Never links libtorch.
//!
//! Reading order: [`tasks`] and [`membership`] decide, [`run_state`] puts them together, [`server`] speaks gRPC,
//! [`launch`] runs processes, [`up`] ties the knot.

pub mod tasks;

pub mod membership;

pub mod catalog;
pub mod run_state;
pub mod server;

pub mod fingerprint;
pub mod inputs;
pub mod launch;
pub mod opening;
pub mod resume;
pub mod run_record;
pub mod up;

pub mod account;
pub mod admin;
pub mod cli;
pub mod config_file;
pub mod display;
pub mod error;
pub mod inspection;
pub mod planning;
pub mod rates;
pub mod status;
