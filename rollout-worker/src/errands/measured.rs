//! A sampler that tells how long it takes to load weights.

use std::time::Instant;

use models::ModelError;
use protocol::Task;
use tch::Tensor;

use crate::errands::device::TaskSampler;
use crate::metrics::WorkerMetrics;
use crate::sampling::task::{Sampled, TaskError};

/// A sampler whose loading of weights is measured.
pub struct Measured<S> {
    sampler: S,
    metrics: WorkerMetrics,
}

impl<S> Measured<S> {
    /// Measures a sampler.
    pub fn new(sampler: S, metrics: WorkerMetrics) -> Self {
        Self { sampler, metrics }
    }
}

impl<S: TaskSampler> TaskSampler for Measured<S> {
    fn load(&mut self, weights: &[(String, Tensor)]) -> Result<(), ModelError> {
        let start = Instant::now();
        let loaded = self.sampler.load(weights);
        self.metrics.loaded(start);
        loaded
    }

    fn sample(&mut self, task: &Task, goes_on: &dyn Fn() -> bool) -> Result<Sampled, TaskError> {
        self.sampler.sample(task, goes_on)
    }

    fn leave(&self) {
        self.sampler.leave();
    }
}
