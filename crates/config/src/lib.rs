//! What a run is told to do: the run config, its validation, the prompts, the tasks and their cost. Never links libtorch.

mod notation;
mod run_config;

pub use run_config::*;
