//! The noise levels that a model is sampled along: its family's grid, bent as its scheduler's configuration says.

use config::RunConfig;
use flow::{FlowError, NoiseGrid, Schedule, SchedulerConfig};
use models::TextToImageModel;

/// What lays out the schedules of a model, whatever the steps and the size of the images.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseLevels {
    scheduler: SchedulerConfig,
    grid: NoiseGrid,
}

impl NoiseLevels {
    /// Those of an opened model.
    ///
    /// # Errors
    /// If its scheduler's configuration has a key that is not supported or a value that cannot be used.
    pub fn of(model: &dyn TextToImageModel) -> Result<Self, FlowError> {
        let scheduler = SchedulerConfig::read(model.scheduler_config())?;
        Ok(Self { scheduler, grid: NoiseGrid::of_pipeline(model.passes_noise_levels()) })
    }

    /// The schedule of images of so many packed tokens.
    ///
    /// # Errors
    /// If there are fewer than two steps, or the noise levels do not fall.
    pub fn schedule(&self, steps: usize, image_seq_len: usize) -> Result<Schedule, FlowError> {
        Schedule::new(&self.scheduler, self.grid, steps, image_seq_len)
    }
}

/// The noise levels of the trajectories of a run that trains `model`.
///
/// # Errors
/// If its scheduler's configuration cannot be used, or the noise levels do not fall.
pub fn training_schedule(config: &RunConfig, model: &dyn TextToImageModel) -> Result<Schedule, FlowError> {
    let sampling = &config.sampling;
    let sequence_length = model.image_sequence_length(sampling.height, sampling.width);
    NoiseLevels::of(model)?.schedule(sampling.steps, sequence_length)
}
