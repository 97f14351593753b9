//! What learner and rollout worker hold in memory, part by part, reckoned from a run config and what model and rewards are.
//!
//! Weights and optimizer state are counted. What a CPU process holds besides, and how many copies of a token's features are
//! alive, is calibrated by measurements of the SD3 family on a CPU (docs/measurements.md); in float32 on a CPU the merged
//! copy of adapted weights, and further versions that a learner publishes or a worker keeps, are part of what is calibrated.
//! On a card nothing has been measured yet: parts that rest on such numbers say so.

mod activations;
mod learner;
mod parts;
mod process;
mod rewards;
mod sizes;
mod worker;

use crate::{ModelInspection, RewardInspection, RunConfig};
pub use parts::{MemoryPart, MemoryPlace, MemoryPlan, total_bytes};
pub use sizes::trained_parameters;
pub(crate) use sizes::{dtype_bytes, version_bytes};

/// Reckons the memory of one learner and one worker, with the rewards that the worker computes itself.
pub fn memory_plan(config: &RunConfig, model: &ModelInspection, rewards: &[RewardInspection]) -> MemoryPlan {
    MemoryPlan {
        learner: learner::parts(config, model),
        worker: worker::parts(config, model, rewards),
        embedding: worker::parts_in_embedding(config, model, rewards),
    }
}
