//! What a worker's push comes to, and the schema that it is checked by.

use config::{RewardSection, RunConfig};
use models::TextToImageModel;
use proto::TaskCost;
use protocol::{Digest, PushSchema};

/// The trajectories of one training task. Rows are seed-major: (seed, step) for states, (seed, step, branch) for the rest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trajectories {
    /// Trunk states at the trained steps: `[seeds, steps, latent]`.
    pub states: Vec<f32>,
    /// Means of the moves as the sampler had them: `[seeds, steps, latent]`.
    pub means: Vec<f32>,
    /// Where the moves went: `[seeds, steps, branches, latent]`.
    pub next_latents: Vec<f32>,
    /// Log-probabilities of the moves as the sampler had them: `[seeds, steps, branches]`.
    pub log_probs: Vec<f32>,
    /// Weighted sums of the scores: `[seeds, steps, branches]`.
    pub rewards: Vec<f32>,
    /// Raw scores of each scorer, in the config's order: `[seeds, steps, branches]`.
    pub scores: Vec<(String, Vec<f32>)>,
    /// The prompt's embedding.
    pub conditioning: Digest,
    /// The negative prompt's, with guidance.
    pub negative_conditioning: Option<Digest>,
    /// What the sampling cost.
    pub cost: TaskCost,
}

/// The images of one evaluation task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EvaluatedImages {
    /// Red, green, blue of every pixel: `[images, height, width, 3]`, the images of one prompt together.
    pub pixels: Vec<u8>,
    /// Weighted sums of the scores: `[images]`.
    pub rewards: Vec<f32>,
    /// Raw scores of each scorer, in the config's order: `[images]`.
    pub scores: Vec<(String, Vec<f32>)>,
    /// What rewards tell besides, as `REWARD/KEY`: `[images]`, NaN where it does not apply.
    pub extras: Vec<(String, Vec<f32>)>,
    /// What the sampling cost.
    pub cost: TaskCost,
}

/// What pushes hold in a run that trains `model`, whose latents have `latent_shape`.
pub fn push_schema(config: &RunConfig, model: &dyn TextToImageModel, latent_shape: Vec<i64>) -> PushSchema {
    PushSchema {
        latent_shape,
        embedding_widths: model.embedding_widths(),
        most_tokens: model.text_sequence_length(config.model.max_sequence_length) as i64,
        image_size: (config.sampling.height, config.sampling.width),
        n_branches: config.sampling.branches_per_seed,
        training_rewards: names(&config.rewards),
        evaluation_rewards: names(config.rewards_of_evaluation()),
        is_guided: model.negative_prompt(config.sampling.guidance_scale).is_some(),
    }
}

fn names(rewards: &[RewardSection]) -> Vec<String> {
    rewards.iter().map(|reward| reward.name.clone()).collect()
}
