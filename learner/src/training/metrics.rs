//! What is known of an iteration: one row of `metrics.jsonl`, and the curves of TensorBoard.

use std::collections::BTreeMap;

use config::{AdvantageGroup, TaskSpec};
use flow::{FlowError, SeedRewards, group_statistics};
use proto::TaskCost;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::training::comparison::TaskScores;
use crate::training::gradient::LossSums;

/// One row of `metrics.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IterationMetrics {
    /// The iteration, from 0.
    pub iteration: u32,
    /// Version of the policy that sampled it.
    pub sampled_with: u32,
    /// What the images scored.
    pub reward: RewardMetrics,
    /// How far branches differed.
    pub advantage: AdvantageMetrics,
    /// The loss, over all updates of the iteration.
    pub policy: PolicyMetrics,
    /// What the optimizer did.
    pub optimizer: OptimizerMetrics,
    /// What was sampled.
    pub cost: CostMetrics,
    /// Where the time went, in seconds.
    pub time: TimeMetrics,
    /// How many rewards the newest evaluation found hacked.
    pub reward_hacking: u32,
    /// When it was recorded, in seconds since 1970.
    #[serde(default)]
    pub recorded_at: f64,
}

/// Rewards of an iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RewardMetrics {
    /// Mean over images.
    pub mean: f64,
    /// Deviation over images.
    pub std: f64,
    /// Of each trained step, by its position in the schedule: mean over groups of the deviation within the group.
    pub step_std: BTreeMap<usize, f64>,
    /// Raw scores, by scorer.
    pub scores: BTreeMap<String, ScoreMetrics>,
}

/// Raw scores of one scorer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScoreMetrics {
    /// Mean over images.
    pub mean: f64,
    /// Deviation over images.
    pub std: f64,
}

/// Advantages of an iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AdvantageMetrics {
    /// Mean magnitude.
    pub mean_abs: f64,
    /// Largest magnitude.
    pub max_abs: f64,
    /// Share of groups whose advantages are all 0, which teach nothing.
    pub zero_std_ratio: f64,
    /// Images per group and step.
    pub group_size: f64,
}

/// Loss terms of an iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyMetrics {
    /// Mean over all cells of the clipped objective, which is 0 for those that teach nothing.
    pub loss: f64,
    /// Mean over cells of the divergence from the base model; 0 where it is not computed.
    pub kl: f64,
    /// Half the mean square of the log ratio, an estimate of the divergence from the sampling policy, over the transitions
    /// of the cells that went through the network; the reference averages over all cells.
    pub approx_kl: f64,
    /// Share of transitions with ratios outside the clip range, of the cells that went through the network (as above),
    /// whether or not the sign of their advantage lets the clip take their gradient.
    pub clip_fraction: f64,
    /// Of the same transitions, those with ratios above the range.
    pub clip_fraction_above: f64,
    /// Of the same transitions, those with ratios below the range.
    pub clip_fraction_below: f64,
    /// How far workers have drifted: the largest `|ratio − 1|` of what the learner computes with the version that sampled
    /// to what workers sent. Absent where the learner computed nothing with it (float32, no part on-policy).
    pub ratio_deviation: Option<f64>,
    /// The largest difference of the log-probabilities, likewise.
    pub log_prob_deviation: Option<f64>,
    /// Share of cells that went through the network; the others have no gradient.
    pub trained_cells: f64,
}

/// The optimizer in an iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OptimizerMetrics {
    /// Mean over updates of the gradient's norm before clipping.
    pub gradient_norm: f64,
    /// Step size.
    pub learning_rate: f64,
    /// Updates since the start of the run.
    pub updates: u64,
}

/// Work of the workers for an iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CostMetrics {
    /// Images scored.
    pub images: u64,
    /// Guided network evaluations.
    pub network_evaluations: u64,
    /// Seconds of all workers: sampling.
    pub sampling_seconds: f64,
    /// Of them, from latents to images.
    pub decoding_seconds: f64,
    /// Seconds of all workers: scoring.
    pub scoring_seconds: f64,
}

/// Seconds of the learner in an iteration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimeMetrics {
    /// All of it.
    pub iteration: f64,
    /// Computing gradients and updates.
    pub computing: f64,
    /// Waiting for workers.
    pub waiting: f64,
    /// Share of time not waited.
    pub busy: f64,
}

/// What training notes of one task; ranks exchange it as JSON, which keeps every bit of a number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskAccount {
    /// Index of the task in its iteration.
    pub index: usize,
    /// What it scored.
    pub scores: TaskScores,
    /// Of every seed.
    pub advantages: Vec<Vec<f32>>,
    /// What its sampling cost.
    pub cost: CostMetrics,
    /// Over its cells.
    pub losses: LossSums,
}

impl From<&TaskCost> for CostMetrics {
    fn from(cost: &TaskCost) -> Self {
        Self {
            images: cost.images,
            network_evaluations: cost.network_evaluations,
            sampling_seconds: cost.sampling_seconds,
            decoding_seconds: cost.decoding_seconds,
            scoring_seconds: cost.reward_seconds,
        }
    }
}

/// Rewards and costs of an iteration's tasks, in their order.
#[derive(Default)]
pub struct Tally {
    /// Of every seed.
    pub rewards: Vec<SeedRewards>,
    scores: BTreeMap<String, Vec<f64>>,
    advantages: Vec<Vec<f32>>,
    /// What was sampled.
    pub cost: CostMetrics,
    /// Over all cells.
    pub losses: LossSums,
}

impl Tally {
    /// Counts a task.
    pub fn count(&mut self, task: &TaskSpec, account: &TaskAccount) {
        let TaskAccount { scores, advantages, cost, losses, .. } = account;
        for (name, scores) in &scores.scores {
            self.scores.entry(name.clone()).or_default().extend(scores.iter().map(|score| f64::from(*score)));
        }
        self.cost.images += cost.images;
        self.cost.network_evaluations += cost.network_evaluations;
        self.cost.sampling_seconds += cost.sampling_seconds;
        self.cost.decoding_seconds += cost.decoding_seconds;
        self.cost.scoring_seconds += cost.scoring_seconds;
        self.losses.add(losses);
        self.rewards.extend(scores.by_seed(task));
        self.advantages.extend_from_slice(advantages);
    }

    /// Sums up the rewards; `steps` are the trained steps.
    pub fn reward(&self, group: AdvantageGroup, steps: &[usize]) -> Result<RewardMetrics, FlowError> {
        let rewards = self.rewards.iter().flat_map(|seed| &seed.rewards).map(|reward| f64::from(*reward));
        let ScoreMetrics { mean, std } = moments(&rewards.collect::<Vec<_>>());
        let scores = self.scores.iter().map(|(name, scores)| (name.clone(), moments(scores))).collect();
        let mut step_std = BTreeMap::new();
        for (position, step) in steps.iter().enumerate() {
            let of_step = self.rewards_of_step(position, steps.len());
            let n_branches = of_step.first().map_or(0, |seed| seed.rewards.len());
            step_std.insert(*step, group_statistics(group, &of_step, 1, n_branches)?.reward_std_mean);
        }
        Ok(RewardMetrics { mean, std, step_std, scores })
    }

    /// Sums up the advantages.
    pub fn advantage(&self, group: AdvantageGroup, n_steps: usize) -> Result<AdvantageMetrics, FlowError> {
        let n_branches = self.rewards.first().map_or(0, |seed| seed.rewards.len() / n_steps.max(1));
        // Several rewards may differ where their sum does not, so it is advantages that tell.
        let of_seed = |(seed, advantages): (&SeedRewards, &Vec<f32>)| SeedRewards {
            rewards: advantages.clone(),
            ..*seed
        };
        let advantages: Vec<SeedRewards> = self.rewards.iter().zip(&self.advantages).map(of_seed).collect();
        let groups = group_statistics(group, &advantages, n_steps, n_branches)?;
        let magnitudes: Vec<f64> =
            self.advantages.iter().flatten().map(|advantage| f64::from(advantage.abs())).collect();
        Ok(AdvantageMetrics {
            mean_abs: mean(magnitudes.iter().copied()),
            max_abs: magnitudes.iter().copied().fold(0.0, f64::max),
            zero_std_ratio: groups.zero_std_ratio,
            group_size: groups.group_size,
        })
    }

    fn rewards_of_step(&self, position: usize, n_steps: usize) -> Vec<SeedRewards> {
        let cut = |seed: &SeedRewards| {
            let n_branches = seed.rewards.len() / n_steps;
            let rewards = seed.rewards[position * n_branches..(position + 1) * n_branches].to_vec();
            SeedRewards { rewards, ..*seed }
        };
        self.rewards.iter().map(cut).collect()
    }
}

impl PolicyMetrics {
    /// Means of the sums of all updates.
    pub fn new(sums: &LossSums) -> Self {
        let (cells, trained) = (sums.cells.max(1) as f64, sums.trained_cells.max(1) as f64);
        let [above, below] = sums.clip_fractions.map(|sum| sum / trained);
        Self {
            loss: sums.policy_loss / cells,
            kl: sums.kl / cells,
            approx_kl: sums.approx_kl / trained,
            clip_fraction: above + below,
            clip_fraction_above: above,
            clip_fraction_below: below,
            ratio_deviation: sums.drift.map(|drift| drift.ratio),
            log_prob_deviation: sums.drift.map(|drift| drift.log_prob),
            trained_cells: sums.trained_cells as f64 / cells,
        }
    }
}

impl IterationMetrics {
    /// Every number with its place as a TensorBoard tag, such as `reward/mean`, but for the time, which events have.
    pub fn scalars(&self) -> Vec<(String, f32)> {
        let row = serde_json::to_value(self).expect("metrics are plain data; else this is a bug");
        let mut scalars = Vec::new();
        flatten("", &row, &mut scalars);
        scalars.retain(|(tag, _)| tag != "recorded_at");
        scalars
    }
}

fn flatten(prefix: &str, value: &Value, scalars: &mut Vec<(String, f32)>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let separator = if prefix.is_empty() { "" } else { "/" };
                flatten(&format!("{prefix}{separator}{name}"), field, scalars);
            }
        }
        Value::Number(number) => {
            scalars.extend(number.as_f64().map(|number| (prefix.to_owned(), number as f32)));
        }
        Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) => {}
    }
}

fn moments(values: &[f64]) -> ScoreMetrics {
    let mean_of_values = mean(values.iter().copied());
    let variance = mean(values.iter().map(|value| (value - mean_of_values) * (value - mean_of_values)));
    ScoreMetrics { mean: mean_of_values, std: variance.sqrt() }
}

/// The arithmetic mean; 0 of nothing.
pub fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        let seed = |seed_index, rewards: &[f32]| SeedRewards {
            prompt_slot: 0,
            seed_index,
            rewards: rewards.to_vec(),
        };
        let rewards = vec![seed(0, &[0.0, 1.0, 0.5, 0.5]), seed(1, &[0.0, 0.0, 1.0, 0.0])];
        let advantages = vec![vec![-1.0, 1.0, 0.0, 0.0], vec![0.0, 0.0, 2.0, -2.0]];
        Tally { rewards, advantages, ..Tally::default() }
    }

    #[test]
    fn deviations_are_told_by_step() {
        let reward = tally().reward(AdvantageGroup::Seed, &[1, 4]).unwrap();
        assert!((reward.mean - 0.375).abs() < 1e-12);
        assert_eq!(reward.step_std, BTreeMap::from([(1, 0.25), (4, 0.25)]));
        let advantage = tally().advantage(AdvantageGroup::Seed, 2).unwrap();
        assert_eq!((advantage.mean_abs, advantage.max_abs), (0.75, 2.0));
        assert_eq!((advantage.zero_std_ratio, advantage.group_size), (0.5, 2.0));
    }

    #[test]
    fn every_number_of_a_row_becomes_a_curve() {
        let mut metrics = IterationMetrics { iteration: 3, ..IterationMetrics::default() };
        metrics.reward.mean = 0.25;
        metrics.reward.scores.insert("shapes".to_owned(), ScoreMetrics { mean: 0.5, std: 0.0 });
        metrics.policy.ratio_deviation = Some(0.0);
        let scalars: BTreeMap<String, f32> = metrics.scalars().into_iter().collect();
        assert_eq!(scalars["reward/mean"], 0.25);
        assert_eq!(scalars["reward/scores/shapes/mean"], 0.5);
        assert!(scalars.contains_key("policy/ratio_deviation") && scalars.contains_key("time/busy"));
        assert!(!scalars.contains_key("policy/log_prob_deviation"), "what was not measured is no number");
    }
}
