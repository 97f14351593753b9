//! Scores of sampled images, and the delivery that they complete.

use std::time::Instant;

use config::RewardSection;
use models::push_tensors;
use proto::{PushHeader, TaskCost};
use rewards::{PromptRecord, Resources, Reward, RewardError, WeightedReward};
use serde_json::Value;

use crate::delivery::{Delivery, WireTensor};
use crate::task::{Sampled, TaskError};

/// The rewards of a run.
pub struct Scorer {
    reward: WeightedReward,
    names: Vec<String>,
}

impl Scorer {
    /// Builds the scorers that the config names.
    ///
    /// # Errors
    /// If there is none, or a name is unknown.
    pub fn new(sections: &[RewardSection], resources: &Resources) -> Result<Self, RewardError> {
        let part = |section: &RewardSection| {
            let reward = rewards::build(section.scorer(), &section.options_as_json(), resources)?;
            Ok((reward, section.weight as f32))
        };
        let parts = sections.iter().map(part).collect::<Result<_, _>>()?;
        let names = sections.iter().map(|section| section.name.clone()).collect();
        Ok(Self { reward: WeightedReward::new(parts)?, names })
    }

    /// Scores the images of a task and makes up what is to be sent.
    ///
    /// # Errors
    /// If an image cannot be scored; a task without scores is not sent.
    pub fn complete(&self, sampled: Sampled) -> Result<Delivery, TaskError> {
        let start = Instant::now();
        let scores = self.score(&sampled)?;
        let cost = TaskCost {
            network_evaluations: sampled.network_evaluations,
            images: sampled.images.len() as u64,
            sampling_seconds: sampled.seconds,
            reward_seconds: start.elapsed().as_secs_f64(),
        };
        let digest =
            |position: usize| sampled.embeddings.get(position).map(|e| e.digest.clone()).unwrap_or_default();
        let header = PushHeader {
            task: sampled.task.id,
            version: sampled.task.version,
            steps: sampled.steps,
            conditioning: digest(0),
            negative_conditioning: digest(1),
            cost: Some(cost),
            ..PushHeader::default()
        };
        let tensors = sampled.tensors.into_iter().chain(scores).collect();
        Ok(Delivery { header, tensors, embeddings: sampled.embeddings, next_latents: sampled.next_latents })
    }

    fn score(&self, sampled: &Sampled) -> Result<Vec<WireTensor>, TaskError> {
        let prompts: Vec<PromptRecord> = (0..sampled.images.len())
            .map(|image| {
                let prompt = sampled.prompt_of(image);
                let metadata = serde_json::from_str(&prompt.metadata).unwrap_or(Value::Null);
                PromptRecord { prompt: prompt.text.clone(), metadata }
            })
            .collect();
        let scores = self.reward.score(&sampled.images, &prompts).map_err(|source| {
            let origin = image_of(&source).and_then(|image| sampled.origins.get(image));
            let place = origin.unwrap_or(&sampled.origins[0]).describe(&sampled.task);
            TaskError::Reward { place, problem: source }
        })?;
        let rewards: Vec<f32> = scores.iter().map(|score| score.value).collect();
        let mut tensors = vec![wire_scores(push_tensors::REWARDS, sampled, &rewards)];
        for name in &self.names {
            let raw: Vec<f32> = scores.iter().filter_map(|score| score.extras.get(name).copied()).collect();
            tensors.push(wire_scores(&push_tensors::score_name(name), sampled, &raw));
        }
        Ok(tensors)
    }
}

/// One value per (seed, step, branch); where several steps led to one image, each gets its score.
fn wire_scores(name: &str, sampled: &Sampled, scores: &[f32]) -> WireTensor {
    let n_values = sampled.score_shape.iter().product::<i64>() as usize;
    let shares = n_values / scores.len().max(1);
    let values: Vec<f32> = scores.iter().flat_map(|score| std::iter::repeat_n(*score, shares)).collect();
    WireTensor::from_floats(name, &sampled.score_shape, &values)
}

/// Which image an error is about.
fn image_of(error: &RewardError) -> Option<usize> {
    match error {
        RewardError::Image { index, .. }
        | RewardError::ImageSize { index, .. }
        | RewardError::NotFinite { index, .. }
        | RewardError::Jpeg { index, .. } => Some(*index),
        _ => None,
    }
}
