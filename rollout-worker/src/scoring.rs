//! Scores of sampled images, and the delivery that they complete.
//!
//! ```text
//!                 ┌─▶ thread of reward A ─┐
//! images of task ─┼─▶ thread of reward B ─┼─▶ weighted sum ─▶ delivery
//!                 └─▶ thread of reward C ─┘
//! ```
//!
//! 1. A task's images are one batch for each scorer, whatever else is scored at the time, so that its scores are the
//!    same bits on any worker.
//! 2. Scores belong to images by position: that of (seed, step, branch). Which scorer is done first changes nothing.
//! 3. A failure is never a score: a task has all its scores, or is held, or fails.

pub mod reward_resources;
pub mod reward_thread;
mod scorer_thread;
pub mod scoring_report;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use config::{RewardSection, RunConfig, TaskKind};
use futures::future::try_join_all;
use proto::{PushHeader, TaskCost};
use protocol::push_tensors;
use rewards::{PromptRecord, RewardError, RewardPart, RunIdentity, Score, weighted_sum};
use service::Hub;
use service::trust::plain_text_rewards;
use tch::Device;

use crate::metrics::RewardMetrics;
use crate::sampling::delivery::{Delivery, WireTensor};
use crate::sampling::task::{Sampled, TaskError};
use reward_thread::ScorerDied;
pub use scorer_thread::Listener;
use scorer_thread::{Batch, ScorerThread};

/// The rewards of a run, each scorer on a thread of its own.
pub struct Scorer {
    threads: Vec<ScorerThread>,
    training: Vec<Part>,
    evaluation: Vec<Part>,
    metrics: RewardMetrics,
}

/// A reward of one of the config's lists.
struct Part {
    name: String,
    weight: f32,
    /// Position of its thread.
    thread: usize,
}

/// Why a task has no scores.
#[derive(Debug, thiserror::Error)]
pub enum ScoringError {
    /// The task is at fault, or a scorer that was waited for in vain.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// This process is broken.
    #[error(transparent)]
    Died(#[from] ScorerDied),
}

impl Scorer {
    /// Builds the scorers that the config names; one that training and evaluation share is built once. `run` is shown to
    /// reward servers of the run.
    ///
    /// # Errors
    /// [`crate::bad_input::BadInput`] if a name or an option is unknown, or something that a scorer needs is missing.
    pub async fn start(
        config: &RunConfig,
        device: Device,
        hub: &Hub,
        run: RunIdentity,
    ) -> anyhow::Result<Self> {
        // Here, once for the life of the process; not with every request.
        if let Some(exposed) = plain_text_rewards(config.all_rewards().map(|(_, reward)| reward)) {
            tracing::warn!("{exposed}");
        }
        let mut sections: Vec<&RewardSection> = Vec::new();
        let mut parts = |list| list_parts(list, &mut sections);
        let (training, evaluation) = (parts(&config.rewards), parts(config.rewards_of_evaluation()));
        let mut threads = Vec::with_capacity(sections.len());
        for section in sections {
            let (name, n_threads) = (section.name.clone(), config.resources.worker_threads);
            let build = reward_thread::build(section.clone(), device, hub.clone(), run.clone());
            threads.push(ScorerThread::start(name, n_threads, build).await?);
        }
        Ok(Self { threads, training, evaluation, metrics: RewardMetrics::default() })
    }

    /// The same, measured.
    pub fn measured_by(self, metrics: RewardMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// What is counted of the scorers.
    pub fn metrics(&self) -> &RewardMetrics {
        &self.metrics
    }

    /// Scores the images of a task and makes up what is to be sent; `listener` hears how it goes.
    ///
    /// # Errors
    /// If an image cannot be scored; a task without scores is not sent.
    pub async fn complete(
        &self,
        mut sampled: Sampled,
        listener: Arc<dyn Listener>,
    ) -> Result<Delivery, ScoringError> {
        let start = Instant::now();
        let n_images = sampled.images.len() as u64;
        let scores = self.score(&mut sampled, listener).await?;
        let cost = TaskCost {
            network_evaluations: sampled.network_evaluations,
            images: n_images,
            sampling_seconds: sampled.seconds,
            decoding_seconds: sampled.decoding_seconds,
            reward_seconds: start.elapsed().as_secs_f64(),
        };
        let digest =
            |position: usize| sampled.embeddings.get(position).map(|e| e.digest.clone()).unwrap_or_default();
        let header = PushHeader {
            task: Some(sampled.task.name.into()),
            version: sampled.task.version,
            steps: sampled.steps,
            conditioning: digest(0),
            negative_conditioning: digest(1),
            cost: Some(cost),
            ..PushHeader::default()
        };
        let tensors = sampled.tensors.into_iter().chain(scores).collect();
        Ok(Delivery {
            learner_rank: sampled.task.learner_rank,
            header,
            tensors,
            embeddings: sampled.embeddings,
            next_latents: sampled.next_latents,
        })
    }

    /// All scorers at once, then the sum.
    async fn score(
        &self,
        sampled: &mut Sampled,
        listener: Arc<dyn Listener>,
    ) -> Result<Vec<WireTensor>, ScoringError> {
        let prompts = (0..sampled.images.len()).map(|image| prompt_record(sampled, image)).collect();
        let batch = Arc::new(Batch { images: std::mem::take(&mut sampled.images), prompts });
        let is_training = sampled.task.name.kind == TaskKind::Train;
        let parts = if is_training { &self.training } else { &self.evaluation };
        let sampled = &*sampled;
        let scored = parts.iter().map(async |Part { name, weight, thread }| {
            let died = || ScorerDied(name.clone());
            let (start, _there) = (Instant::now(), self.metrics.begins(name));
            let pending = self.threads[*thread].submit(batch.clone(), listener.clone()).await;
            let scores = pending.ok_or_else(died)?.await.map_err(|_| died())?;
            let scores = scores.map_err(|problem| blame(sampled, problem))?;
            self.metrics.scored(name, start);
            Ok::<_, ScoringError>(RewardPart { name: name.clone(), weight: *weight, scores })
        });
        // The first that fails is told at once, even while others are held.
        let scored = try_join_all(scored).await?;
        let sums = weighted_sum(&scored).map_err(|problem| blame(sampled, problem))?;
        let mut tensors = vec![wire_scores(push_tensors::REWARDS, sampled, &sums)];
        tensors.extend(
            scored
                .iter()
                .map(|part| wire_scores(&push_tensors::score_name(&part.name), sampled, &part.scores)),
        );
        for part in scored.iter().filter(|_| !is_training) {
            tensors.extend(wire_extras(part).map_err(|problem| blame(sampled, problem))?);
        }
        Ok(tensors)
    }
}

/// The parts of a list of rewards, each with the position of its scorer among `sections`, which grow by new ones.
fn list_parts<'a>(list: &'a [RewardSection], sections: &mut Vec<&'a RewardSection>) -> Vec<Part> {
    let part = |section: &'a RewardSection| {
        let thread = sections.iter().position(|other| other.is_built_as(section)).unwrap_or_else(|| {
            sections.push(section);
            sections.len() - 1
        });
        Part { name: section.name.clone(), weight: section.weight as f32, thread }
    };
    list.iter().map(part).collect()
}

fn prompt_record(sampled: &Sampled, image: usize) -> PromptRecord {
    let prompt = sampled.prompt_of(image);
    PromptRecord { prompt: prompt.text.clone(), metadata: prompt.metadata.clone() }
}

/// The error with the place that it is about: of its image, or of the task's first.
fn blame(sampled: &Sampled, problem: RewardError) -> TaskError {
    let origin = problem.image().and_then(|image| sampled.origins.get(image));
    let place = origin.or(sampled.origins.first()).map(|origin| origin.describe(&sampled.task));
    TaskError::Reward { place: place.unwrap_or_default(), problem }
}

/// One value per (seed, step, branch); where several steps led to one image, each gets its score.
fn wire_scores(name: &str, sampled: &Sampled, scores: &[Score]) -> WireTensor {
    let n_values = sampled.score_shape.iter().product::<i64>() as usize;
    let shares = n_values / scores.len().max(1);
    let values: Vec<f32> = scores.iter().flat_map(|score| std::iter::repeat_n(score.value, shares)).collect();
    WireTensor::from_floats(name, &sampled.score_shape, &values)
}

/// Each extra of a reward as a value per image, NaN where it does not apply.
fn wire_extras(part: &RewardPart) -> Result<Vec<WireTensor>, RewardError> {
    let keys: BTreeSet<&String> = part.scores.iter().flat_map(|score| score.extras.keys()).collect();
    let is_allowed = |key: &&String| (1..=push_tensors::LONGEST_EXTRA_KEY).contains(&key.len());
    if keys.len() > push_tensors::MOST_EXTRAS || !keys.iter().all(is_allowed) {
        return Err(RewardError::Extras { name: part.name.clone(), got: keys.len() });
    }
    let tensor = |key: &String| {
        let value = |score: &Score| score.extras.get(key).copied().unwrap_or(f32::NAN);
        let values: Vec<f32> = part.scores.iter().map(value).collect();
        let name = push_tensors::extra_name(&part.name, key);
        WireTensor::from_floats(&name, &[values.len() as i64], &values)
    };
    Ok(keys.into_iter().map(tensor).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(keys: &[&str]) -> RewardPart {
        let extras = keys.iter().map(|key| ((*key).to_owned(), 0.5)).collect();
        RewardPart {
            name: "far".to_owned(),
            weight: 1.0,
            scores: vec![Score { value: 1.0, extras }, 0.0.into()],
        }
    }

    #[test]
    fn extras_beyond_what_the_learner_takes_are_refused_by_name() {
        assert_eq!(wire_extras(&part(&["a", "b"])).expect("few").len(), 2);
        let many: Vec<String> = (0..65).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(wire_extras(&part(&many[..64])).is_ok());
        for keys in [&many[..], &[""], &["x".repeat(101).as_str()]] {
            let told =
                wire_extras(&part(keys)).map(|tensors| tensors.len()).expect_err("refused").to_string();
            assert!(told.starts_with("reward `far` tells of "), "{told}");
        }
    }
}
