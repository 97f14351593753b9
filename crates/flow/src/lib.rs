//! The maths of online reinforcement learning for flow-matching models, and nothing else: no files, no sockets, no clock.
//!
//! Read in this order:
//!
//! 1. [`schedule`]: the noise levels a sampler walks through.
//! 2. [`step`]: one move between two of them, deterministic or random, and how likely it was.
//! 3. [`advantage`], [`gdpo`], [`weight`], [`objective`]: from rewards to a loss.
//! 4. [`adamw`], [`ema`]: from a loss to new parameters.
//!
//! The random numbers come from the crate `noise`, and where a trajectory branches from `config::RolloutPlan`. Settings have
//! the types of the run config. Everything here is deterministic: equal inputs on the same kind of device give equal bits.

pub mod adamw;
pub mod advantage;
pub mod ema;
mod error;
pub mod gdpo;
pub mod objective;
pub mod schedule;
pub mod step;
mod transfer;
pub mod weight;

pub use adamw::{AdamW, AdamWSettings, clip_gradient_norm};
pub use advantage::{GroupStatistics, SeedRewards, advantages, group_statistics};
pub use ema::{Ema, EmaSettings};
pub use error::FlowError;
pub use gdpo::{WeightedRewards, gdpo_advantages};
pub use objective::{ClippedObjective, PolicyLoss, kl_divergence};
pub use schedule::{NoiseGrid, Schedule, SchedulerConfig, TimeShift};
pub use step::{
    TransitionCoefficients, TransitionRows, log_probability, log_ratio, next_latents, next_latents_on_host,
    ode_step, repeat_for_branches, transition_mean,
};
pub use transfer::{host_copy, upload};
pub use weight::step_weights;
