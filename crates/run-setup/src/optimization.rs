//! Loss and optimizer of a run.

use config::RunConfig;
use flow::{AdamWSettings, ClippedObjective, EmaSettings};
use models::Activations;

/// The clipped objective.
pub fn objective(config: &RunConfig) -> ClippedObjective {
    let training = &config.training;
    let side = |own: f64| if own > 0.0 { own } else { training.clip_range };
    ClippedObjective {
        clip_below: side(training.clip_range_lt),
        clip_above: side(training.clip_range_gt),
        advantage_clip: training.advantage_clip,
    }
}

/// The optimizer's settings.
pub fn optimizer(config: &RunConfig) -> AdamWSettings {
    let training = &config.training;
    AdamWSettings {
        lr: training.learning_rate,
        beta1: training.adam_beta1,
        beta2: training.adam_beta2,
        epsilon: training.adam_epsilon,
        weight_decay: training.weight_decay,
    }
}

/// Where the backward pass gets the network's activations from.
pub fn activations(config: &RunConfig) -> Activations {
    match config.training.gradient_checkpointing {
        true => Activations::Recomputed,
        false => Activations::Kept,
    }
}

/// The moving average's settings.
pub fn average(config: &RunConfig) -> EmaSettings {
    EmaSettings { decay: config.ema.decay, interval: config.ema.interval }
}
