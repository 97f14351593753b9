//! The coordinator: who belongs to a run, who does which task, and keeping the processes alive. Never links libtorch.
//!
//! Reading order: [`tasks`] and [`membership`] decide, [`run_state`] puts them together, [`server`] speaks gRPC,
//! [`launch`] runs processes, [`up`] ties the knot, [`view`] is what is shown.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod tasks;
mod tenancy;

pub mod membership;

pub mod catalog;
mod drawn_tasks;
pub mod rank_groups;
pub mod results;
pub mod run_state;
pub mod server;
mod waiting_room;
mod weights_relay;
mod wire;

pub mod cards;
pub mod checkpoint_list;
pub mod entrance;
pub mod events;
pub mod fingerprint;
pub mod input_record;
pub mod inputs;
pub mod kept_inputs;
pub mod launch;
pub mod learner_half;
pub mod lost_files;
pub mod member_name;
pub mod opening;
pub mod resume;
pub mod run_files;
pub mod run_place;
pub mod run_record;
pub mod up;

pub mod account;
pub mod admin;
pub mod advice;
pub mod branch;
pub mod cli;
pub mod config_file;
pub mod detach;
pub mod device_kinds;
pub mod display;
pub mod error;
pub mod examination;
pub(crate) mod export_stream;
pub mod exported;
mod file_streams;
pub mod history;
pub mod inspection;
pub mod living_members;
pub mod log_questions;
pub mod logs;
mod logs_elsewhere;
pub mod metrics;
pub mod placement;
pub mod planning;
pub mod rates;
pub mod remote_run;
mod shown_metrics;
#[cfg(test)]
mod stand_ins;
pub mod status;
pub mod view;
