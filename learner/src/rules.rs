//! What the config says, in the terms of the maths.

use config::RunConfig;
use flow::{
    AdamWSettings, ClippedObjective, EmaSettings, FlowError, NoiseGrid, Schedule, SchedulerConfig,
    TransitionCoefficients, drawable_steps, step_weights, trained_steps,
};
use models::{Activations, TextToImageModel};

use crate::error::LearnerError;

/// The trained steps of an iteration, and what of them does not depend on any trajectory.
#[derive(Clone, Debug)]
pub struct TrainedSteps {
    /// Positions in the schedule, rising.
    pub steps: Vec<usize>,
    /// Of each, its random move.
    pub coefficients: Vec<TransitionCoefficients>,
    /// Of each, its weight in the policy loss.
    pub weights: Vec<f32>,
}

impl TrainedSteps {
    /// The trained steps of `iteration`.
    ///
    /// # Errors
    /// If the config's branch steps or noise level do not suit the schedule.
    pub fn new(config: &RunConfig, schedule: &Schedule, iteration: u32) -> Result<Self, FlowError> {
        let sampling = &config.sampling;
        let steps = trained_steps(&sampling.branch_steps, sampling.steps, config.run.seed, iteration)?;
        let transitions = |steps: &[usize]| -> Result<Vec<TransitionCoefficients>, FlowError> {
            steps.iter().map(|step| transition(config, schedule, *step)).collect()
        };
        let coefficients = transitions(&steps)?;
        let drawable = transitions(&drawable_steps(&sampling.branch_steps, sampling.steps)?)?;
        let weights = step_weights(config.training.step_weight, &coefficients, &drawable);
        Ok(Self { steps, coefficients, weights: weights.into_iter().map(|weight| weight as f32).collect() })
    }

    /// The steps as the wire counts them.
    pub fn on_the_wire(&self) -> Vec<u32> {
        self.steps.iter().map(|step| *step as u32).collect()
    }
}

/// The noise levels of the run's trajectories.
///
/// # Errors
/// If the model's scheduler settings are not supported.
pub fn schedule(config: &RunConfig, model: &dyn TextToImageModel) -> Result<Schedule, LearnerError> {
    let scheduler = SchedulerConfig::read(model.scheduler_config())?;
    let grid = NoiseGrid::of_pipeline(model.passes_noise_levels());
    let sampling = &config.sampling;
    let sequence_length = model.image_sequence_length(sampling.height, sampling.width);
    Ok(Schedule::new(&scheduler, grid, sampling.steps, sequence_length)?)
}

/// Standard deviation of the random move at every step but the last, which is never random.
///
/// # Errors
/// If the noise level does not suit the step rule.
pub fn move_stds(config: &RunConfig, schedule: &Schedule) -> Result<Vec<f32>, FlowError> {
    let std = |step| Ok(transition(config, schedule, step)?.std as f32);
    (0..schedule.steps().saturating_sub(1)).map(std).collect()
}

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

fn transition(
    config: &RunConfig,
    schedule: &Schedule,
    step: usize,
) -> Result<TransitionCoefficients, FlowError> {
    TransitionCoefficients::new(config.sampling.step_rule, schedule, step, config.sampling.noise_level)
}
