//! What tasks scored, and the advantages that come of comparing it.

use config::{RewardCombination, RunConfig, TaskSpec};
use flow::{FlowError, SeedRewards, WeightedRewards, advantages, gdpo_advantages};
use run_setup::TrainedSteps;
use serde::{Deserialize, Serialize};

use crate::exchange::outcome::Trajectories;

/// What one task scored; ranks exchange it as JSON, which keeps every bit of a number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskScores {
    /// Weighted sums of the scores: `[seeds, steps, branches]`.
    pub rewards: Vec<f32>,
    /// Raw scores of each scorer, in the config's order, likewise.
    pub scores: Vec<(String, Vec<f32>)>,
}

impl TaskScores {
    /// Those of a task's outcome.
    pub fn of(outcome: &Trajectories) -> Self {
        Self { rewards: outcome.rewards.clone(), scores: outcome.scores.clone() }
    }

    /// The rewards of the task, seed by seed.
    pub fn by_seed(&self, task: &TaskSpec) -> Vec<SeedRewards> {
        seed_rewards(task, &self.rewards)
    }
}

/// The advantages of every seed of tasks that are compared with each other, seeds in task order.
///
/// # Errors
/// If a reward is not finite.
pub fn compare(
    config: &RunConfig,
    group: &[TaskSpec],
    scores: &[&TaskScores],
    steps: &TrainedSteps,
) -> Result<Vec<Vec<f32>>, FlowError> {
    let (n_steps, n_branches) = (steps.steps().len(), steps.plan.branches());
    let by_seed = |part: &dyn Fn(&TaskScores) -> &[f32]| {
        let of_task = |(task, scores): (&TaskSpec, &&TaskScores)| seed_rewards(task, part(scores));
        group.iter().zip(scores).flat_map(of_task).collect::<Vec<_>>()
    };
    let comparison = config.training.advantage_group;
    match config.training.reward_combination {
        RewardCombination::Sum => {
            advantages(comparison, &by_seed(&|scores| &scores.rewards), n_steps, n_branches)
        }
        RewardCombination::Gdpo => {
            let sections = config.rewards.iter().enumerate();
            let weighted = sections.map(|(position, reward)| WeightedRewards {
                weight: reward.weight,
                rewards: by_seed(&|scores| &scores.scores[position].1),
            });
            gdpo_advantages(comparison, &weighted.collect::<Vec<_>>(), n_steps, n_branches)
        }
    }
}

/// The rewards of a task, seed by seed; every seed has as many.
fn seed_rewards(task: &TaskSpec, rewards: &[f32]) -> Vec<SeedRewards> {
    let per_seed = (rewards.len() / task.n_seeds.max(1) as usize).max(1);
    let of_seed = |(seed_index, rewards): (u32, &[f32])| SeedRewards {
        prompt_slot: task.prompt_slot,
        seed_index,
        rewards: rewards.to_vec(),
    };
    (task.first_seed..).zip(rewards.chunks(per_seed)).map(of_seed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_keep_every_bit_on_their_way_to_other_ranks() {
        let numbers = (0..20_000_u32).map(|idx| f32::from_bits(idx.wrapping_mul(0x9e37_79b9)));
        let rewards: Vec<f32> = numbers.filter(|number| number.is_finite()).collect();
        let scores = TaskScores { scores: vec![("shapes".to_owned(), rewards.clone())], rewards };
        let sent = serde_json::to_vec(&scores).expect("JSON");
        let heard: TaskScores = serde_json::from_slice(&sent).expect("scores");
        let bits = |numbers: &[f32]| numbers.iter().map(|number| number.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&heard.rewards), bits(&scores.rewards));
        assert_eq!(bits(&heard.scores[0].1), bits(&scores.scores[0].1));
    }
}
