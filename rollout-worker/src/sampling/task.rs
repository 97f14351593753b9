//! One task from its name to images and numbers: a pure function of task, run config and weights.

mod evaluation;
mod training;

use std::time::Instant;

use config::{AdapterMethod, RunConfig, TaskKind};
use flow::{FlowError, Schedule};
use models::{Guidance, ModelError};
use noise::NoiseKey;
use proto::Blame;
use protocol::{Prompt, Task, TaskFault};
use rewards::RgbImage;
use run_setup::{OutOfMemory, TrainedStepsError, lora_config};
use tch::Tensor;

use crate::sampling::delivery::{WireEmbedding, WireTensor};
use crate::sampling::guided_model::{GuidedModel, ImageError};
use crate::sampling::task_noise::TaskNoise;
use crate::sampling::truncated_prompts::TruncatedPrompts;
use crate::sampling::wavefront::NonFinite;

/// Samples the tasks of one run.
pub struct Sampler {
    config: RunConfig,
    model: GuidedModel,
    latent_shape: Vec<i64>,
}

/// What sampling makes of a task; the scores are still missing.
#[derive(Debug)]
pub struct Sampled {
    /// What was asked for.
    pub task: Task,
    /// The images to be scored.
    pub images: Vec<RgbImage>,
    /// Where each image comes from.
    pub origins: Vec<Origin>,
    /// The shape in which scores are wanted, `[seeds, steps, branches]` or `[images]`.
    pub score_shape: Vec<i64>,
    /// The trained steps; none for evaluation.
    pub steps: Vec<u32>,
    /// What is always sent.
    pub tensors: Vec<WireTensor>,
    /// The prompt's embedding and, under guidance, the negative one; training only.
    pub embeddings: Vec<WireEmbedding>,
    /// Where the random moves went; training only.
    pub next_latents: Option<WireTensor>,
    /// Guided network evaluations, rows counted one by one.
    pub network_evaluations: u64,
    /// Seconds it took, decoding included.
    pub seconds: f64,
    /// Of them, seconds from latents to images.
    pub decoding_seconds: f64,
}

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Position of its prompt among the task's.
    pub prompt: usize,
    /// Seed of the prompt, or number of the evaluation image.
    pub seed: u32,
    /// Step and branch of the one random move that led to it, where there was just one.
    pub exploration: Option<(u32, u32)>,
}

/// Why a task has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// The task makes no sense.
    #[error("malformed task: {0}")]
    Malformed(#[from] TaskFault),
    /// The network went astray.
    #[error("prompt `{prompt}`, seed {seed}: {problem}")]
    NonFinite {
        /// The prompt's words.
        prompt: String,
        /// Seed of the prompt, or number of the evaluation image.
        seed: u32,
        /// What and where.
        problem: NonFinite,
    },
    /// An image could not be drawn.
    #[error("{place}: {problem}")]
    Image {
        /// Prompt, seed, step and branch.
        place: String,
        /// Why not.
        problem: ImageError,
    },
    /// The device has too little memory for it.
    #[error(
        "out of memory ({0}); resume with `model.embedding_cache` set, or lower `sampling.max_rows`, set `sampling.vae_tile` \
         or move rewards to a server in a branch of the run, `coordinator init --from RUN --set sampling.max_rows=ROWS FILE`"
    )]
    OutOfMemory(OutOfMemory),
    /// The images could not be scored.
    #[error("{place}: {problem}")]
    Reward {
        /// Prompt, seed, step and branch.
        place: String,
        /// Why not.
        problem: rewards::RewardError,
    },
    /// The model refuses the prompt, the size or the weights.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model has no such schedule.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// The config's steps and the model's schedule do not go together.
    #[error(transparent)]
    Steps(#[from] TrainedStepsError),
}

impl TaskError {
    /// Whose fault it is: most would happen again on any worker.
    pub fn blame(&self) -> Blame {
        match self {
            Self::OutOfMemory(_) => Blame::Memory,
            Self::Reward { problem, .. } if problem.is_out_of_memory() => Blame::Memory,
            Self::Reward { problem, .. } if problem.may_pass() => Blame::Worker,
            _ => Blame::Task,
        }
    }
}

impl Sampler {
    /// A sampler that draws with `model` as `config` says; the adapter starts without effect.
    ///
    /// # Errors
    /// If the model cannot draw images of the config's size, or has no modules of the adapter's names.
    pub fn new(config: RunConfig, mut model: GuidedModel) -> Result<Self, ModelError> {
        let latent_shape = model.latent_shape(config.sampling.height, config.sampling.width)?;
        if config.adapter.method == AdapterMethod::Lora {
            model.attach_adapter(&lora_config(&config.adapter))?;
        }
        Ok(Self { config, model, latent_shape })
    }

    /// The prompts met so far that are longer than a text encoder takes.
    pub fn truncated(&self) -> &TruncatedPrompts {
        self.model.truncated()
    }

    /// Samples with these weights from now on: an adapter's, or the whole network's, as the config says.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape.
    pub fn load(&mut self, weights: &[(String, Tensor)]) -> Result<(), ModelError> {
        match self.config.adapter.method {
            AdapterMethod::Lora => self.model.load_adapter(weights),
            AdapterMethod::Full => self.model.load_parameters(weights),
        }
    }

    /// Samples a task; `goes_on` is asked at every network call. Where it says no, nobody waits for the outcome any more, and
    /// the task ends soon with an error.
    ///
    /// # Errors
    /// If anything on the way is not a finite number, or the task does not suit config and model.
    pub fn sample(&mut self, task: &Task, goes_on: &dyn Fn() -> bool) -> Result<Sampled, TaskError> {
        let start = Instant::now();
        let mut sampled = match task.name.kind {
            TaskKind::Train => self.train(task, task.name.iteration, goes_on)?,
            TaskKind::Evaluate | TaskKind::Test => self.evaluate(task, goes_on)?,
        };
        sampled.seconds = start.elapsed().as_secs_f64();
        Ok(sampled)
    }

    /// The velocity at a step; once nobody waits for the outcome, one that is not finite, at which any rollout leaves off.
    fn velocity(
        &self,
        latents: &Tensor,
        sigma: f32,
        guidance: &Guidance,
        goes_on: &dyn Fn() -> bool,
    ) -> Tensor {
        match goes_on() {
            true => self.model.velocity(latents, sigma, guidance),
            false => latents.full_like(f64::NAN),
        }
    }

    fn schedule(&self, steps: usize) -> Result<Schedule, TaskError> {
        let sampling = &self.config.sampling;
        Ok(self.model.schedule(steps, sampling.height, sampling.width)?)
    }

    fn noise(&self, keys: Vec<NoiseKey>) -> TaskNoise {
        TaskNoise { keys, latent_shape: self.latent_shape.clone(), device: self.model.device() }
    }

    /// The images of finished latents, and the seconds that decoding took.
    fn images(
        &self,
        finished: &Tensor,
        task: &Task,
        origins: &[Origin],
    ) -> Result<(Vec<RgbImage>, f64), TaskError> {
        let start = Instant::now();
        let images = self.model.images(finished).map_err(|source| match source {
            ImageError::Model(error) => TaskError::Model(error),
            ImageError::NonFinite { index } => {
                let place = origins.get(index).map_or_else(String::new, |origin| origin.describe(task));
                TaskError::Image { place, problem: source }
            }
        })?;
        Ok((images, start.elapsed().as_secs_f64()))
    }
}

impl Sampled {
    /// A task without images.
    #[cfg(test)]
    pub(crate) fn nothing_of(task: Task) -> Self {
        Self {
            task,
            images: Vec::new(),
            origins: Vec::new(),
            score_shape: Vec::new(),
            steps: Vec::new(),
            tensors: Vec::new(),
            embeddings: Vec::new(),
            next_latents: None,
            network_evaluations: 0,
            seconds: 0.0,
            decoding_seconds: 0.0,
        }
    }

    /// The prompt that an image was drawn for.
    pub fn prompt_of(&self, image: usize) -> &Prompt {
        &self.task.prompts[self.origins[image].prompt]
    }
}

impl Origin {
    /// Prompt, seed, step and branch in words.
    pub fn describe(&self, task: &Task) -> String {
        let prompt = &task.prompts[self.prompt].text;
        match self.exploration {
            Some((step, branch)) => {
                format!("prompt `{prompt}`, seed {}, step {step}, branch {branch}", self.seed)
            }
            None => format!("prompt `{prompt}`, seed {}", self.seed),
        }
    }
}
