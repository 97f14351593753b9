//! The learner: receives trajectories, turns them into updates of the policy, publishes it, keeps the run's truth.
//!
//! Read in this order:
//!
//! 1. [`trainer`]: an iteration as a stream of tasks; [`gradient`]: what a task adds to an update.
//! 2. [`run`]: iterations, evaluations and checkpoints from the start of a run to its end; [`reward_hacking`]: when it ends
//!    before.
//! 3. [`server`], [`receive`], [`inbox`]: how outcomes get from workers to the trainer; [`publications`]: how weights
//!    get to workers.
//! 4. [`serve`]: the process around it. [`parity`]: its numbers against recorded ones. [`pretrain`]: how the shipped model
//!    came to be.
//!
//! One thread owns the network and all that is computed with it. Everything else moves bytes and names.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod checkpoint;
pub mod embeddings;
pub mod error;
pub mod evaluation;
pub mod export;
pub mod export_checkpoint;
mod font;
pub mod gradient;
pub mod grid;
pub mod inbox;
pub mod journal;
pub mod metrics;
mod numbers;
pub mod outcome;
pub mod parity;
pub mod policy;
pub mod pretrain;
pub mod progress;
pub mod publications;
pub mod push_gate;
pub mod receive;
pub mod records;
pub mod reward_hacking;
pub mod run;
mod saving;
pub mod serve;
pub mod server;
mod settling;
pub mod tensorboard;
mod trained_tensors;
pub mod trainer;
