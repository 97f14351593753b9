//! The learner: receives trajectories, turns them into updates of the policy, publishes it, keeps the run's truth.
//!
//! Read in this order:
//!
//! 1. [`training`]: an iteration as a stream of tasks, and what a task adds to an update.
//! 2. [`run`]: iterations, evaluations and checkpoints from the start of a run to its end; [`records`]: what is written of it.
//! 3. [`ranks`]: how several processes do that together. [`exchange`]: how outcomes get from workers to the trainer, and weights
//!    to workers.
//! 4. [`serve`]: the process around it, and [`half`]: the files of the run that it has. [`parity`]: its numbers against
//!    recorded ones. [`pretrain`]: how the shipped model
//!    came to be.
//!
//! Each knows those after it in this list, never those before: serve, run, records, training, ranks, exchange.
//!
//! One thread owns the network and all that is computed with it. Everything else moves bytes and names.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod error;
pub mod exchange;
pub mod half;
pub mod metrics;
pub mod parity;
pub mod pretrain;
pub mod progress;
pub mod ranks;
pub mod records;
pub mod run;
pub mod serve;
pub mod training;
