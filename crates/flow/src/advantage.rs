//! From rewards to advantages: how much better an exploration did than the others of its group.
//!
//! ```text
//! advantage = (reward − mean of its group) / (deviation of its group + 1e-4)
//! ```
//!
//! taken for each trained step by itself, in float64, with the population deviation. What a group is decides what an
//! exploration is compared with, and how long a streaming learner has to wait before it can call [`advantages`]:
//!
//! | group | compares with | complete when |
//! |---|---|---|
//! | [`AdvantageGroup::Seed`] | explorations from the same initial noise: nothing but the explored step differs | the seed is in |
//! | [`AdvantageGroup::Prompt`] | all explorations of the prompt | the prompt's seeds are in |
//! | [`AdvantageGroup::Batch`] | mean of the prompt, deviation of the whole batch | all is in |
//! | [`AdvantageGroup::None`] | everything, all steps together | all is in |
//!
//! A group that is complete may be handed in alone: the result is the same as with all others beside it, and does not
//! depend on the order in which seeds arrived. Where all rewards of a group are equal, advantages are exactly 0.

use std::collections::{BTreeMap, HashSet};

use config::AdvantageGroup;

use crate::FlowError;

/// The rewards of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct SeedRewards {
    /// Index of the prompt in its iteration.
    pub prompt_slot: u32,
    /// Index of the initial noise in its prompt.
    pub seed_index: u32,
    /// Trained steps × branches, row-major.
    pub rewards: Vec<f32>,
}

/// What the groups of a batch look like; for the metrics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupStatistics {
    /// Explorations per group and step.
    pub group_size: f64,
    /// Share of (group, step) cells whose rewards are all equal, which teach nothing.
    pub zero_std_ratio: f64,
    /// Mean of all rewards.
    pub reward_mean: f64,
    /// Mean over the (group, step) cells of the rewards' deviation.
    pub reward_std_mean: f64,
}

const EPSILON: f64 = 1e-4;

/// Advantages in the layout of the rewards, one list per entry of `rewards`.
///
/// # Errors
/// If a reward is not finite, a seed appears twice, or one has not `n_steps·n_branches` rewards.
pub fn advantages(
    group: AdvantageGroup,
    rewards: &[SeedRewards],
    n_steps: usize,
    n_branches: usize,
) -> Result<Vec<Vec<f32>>, FlowError> {
    let table = Table::new(rewards, n_steps, n_branches)?;
    Ok(table.advantages(group, |std| std + EPSILON).iter().map(|seed| rounded(seed)).collect())
}

/// Describes the groups that [`advantages`] compares within; a batch group counts as its prompts.
///
/// # Errors
/// As [`advantages`].
pub fn group_statistics(
    group: AdvantageGroup,
    rewards: &[SeedRewards],
    n_steps: usize,
    n_branches: usize,
) -> Result<GroupStatistics, FlowError> {
    let table = Table::new(rewards, n_steps, n_branches)?;
    let groups = table.groups(group);
    let stds: Vec<f64> = groups
        .values()
        .flat_map(|members| (0..n_steps).map(|step| Moments::of(table.cell(members, step)).std))
        .collect();
    let n_zero = stds.iter().filter(|std| **std == 0.0).count();
    Ok(GroupStatistics {
        group_size: (rewards.len() * n_branches) as f64 / groups.len() as f64,
        zero_std_ratio: n_zero as f64 / stds.len() as f64,
        reward_mean: Moments::of(table.everything()).mean,
        reward_std_mean: stds.iter().sum::<f64>() / stds.len() as f64,
    })
}

/// Advantages as training takes them.
pub(crate) fn rounded(advantages: &[f64]) -> Vec<f32> {
    advantages.iter().map(|advantage| *advantage as f32).collect()
}

/// Rewards that have been checked, and the order in which they are summed.
pub(crate) struct Table<'a> {
    rewards: &'a [SeedRewards],
    /// Indices sorted by prompt slot and seed, so that sums do not depend on the order of arrival.
    pub(crate) order: Vec<usize>,
    n_steps: usize,
    n_branches: usize,
}

impl<'a> Table<'a> {
    pub(crate) fn new(
        rewards: &'a [SeedRewards],
        n_steps: usize,
        n_branches: usize,
    ) -> Result<Self, FlowError> {
        let mut seen = HashSet::new();
        for seed in rewards {
            let (prompt_slot, seed_index) = (seed.prompt_slot, seed.seed_index);
            let (got, expected) = (seed.rewards.len(), n_steps * n_branches);
            if got != expected {
                return Err(FlowError::RewardCount { prompt_slot, seed_index, got, expected });
            }
            if !seen.insert((prompt_slot, seed_index)) {
                return Err(FlowError::DuplicateSeed { prompt_slot, seed_index });
            }
            if let Some(position) = seed.rewards.iter().position(|reward| !reward.is_finite()) {
                return Err(FlowError::NonFiniteReward {
                    prompt_slot,
                    seed_index,
                    trained_step: position / n_branches,
                    branch: position % n_branches,
                    value: seed.rewards[position],
                });
            }
        }
        let mut order: Vec<usize> = (0..rewards.len()).collect();
        order.sort_by_key(|&seed| (rewards[seed].prompt_slot, rewards[seed].seed_index));
        Ok(Self { rewards, order, n_steps, n_branches })
    }

    /// The formula above with any denominator made of the deviation, in the layout of the rewards.
    pub(crate) fn advantages(
        &self,
        group: AdvantageGroup,
        denominator: impl Fn(f64) -> f64,
    ) -> Vec<Vec<f64>> {
        let mut advantages: Vec<Vec<f64>> =
            self.rewards.iter().map(|seed| vec![0.0; seed.rewards.len()]).collect();
        for members in self.groups(group).values() {
            for step in 0..self.n_steps {
                let own = Moments::of(self.cell(members, step));
                let Moments { mean, std } = match group {
                    AdvantageGroup::Seed | AdvantageGroup::Prompt => own,
                    AdvantageGroup::Batch => {
                        Moments { std: Moments::of(self.cell(&self.order, step)).std, ..own }
                    }
                    AdvantageGroup::None => Moments::of(self.everything()),
                };
                for &seed in members {
                    let here = step * self.n_branches..(step + 1) * self.n_branches;
                    let rewards = &self.rewards[seed].rewards[here.clone()];
                    for (advantage, reward) in advantages[seed][here].iter_mut().zip(rewards) {
                        *advantage = (f64::from(*reward) - mean) / denominator(std);
                    }
                }
            }
        }
        advantages
    }

    /// Indices of the seeds of each group.
    fn groups(&self, group: AdvantageGroup) -> BTreeMap<(u32, u32), Vec<usize>> {
        let mut groups = BTreeMap::<_, Vec<usize>>::new();
        for &seed in &self.order {
            let SeedRewards { prompt_slot, seed_index, .. } = self.rewards[seed];
            let name = match group {
                AdvantageGroup::Seed => (prompt_slot, seed_index),
                AdvantageGroup::Prompt | AdvantageGroup::Batch => (prompt_slot, 0),
                AdvantageGroup::None => (0, 0),
            };
            groups.entry(name).or_default().push(seed);
        }
        groups
    }

    fn cell(&self, members: &[usize], step: usize) -> impl Iterator<Item = f64> + Clone {
        let here = step * self.n_branches..(step + 1) * self.n_branches;
        members
            .iter()
            .flat_map(move |&seed| &self.rewards[seed].rewards[here.clone()])
            .copied()
            .map(f64::from)
    }

    fn everything(&self) -> impl Iterator<Item = f64> + Clone {
        self.order.iter().flat_map(|&seed| &self.rewards[seed].rewards).copied().map(f64::from)
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Moments {
    mean: f64,
    pub(crate) std: f64,
}

impl Moments {
    pub(crate) fn of(values: impl Iterator<Item = f64> + Clone) -> Self {
        let count = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / count;
        let variance = values.map(|value| (value - mean) * (value - mean)).sum::<f64>() / count;
        Self { mean, std: variance.sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed(prompt_slot: u32, seed_index: u32, rewards: &[f32]) -> SeedRewards {
        SeedRewards { prompt_slot, seed_index, rewards: rewards.to_vec() }
    }

    fn worked_batch() -> Vec<SeedRewards> {
        vec![
            seed(0, 0, &[0.80, 0.82, 0.84]),
            seed(0, 1, &[0.70, 0.76, 0.73]),
            seed(1, 0, &[0.50, 0.50, 0.50]),
            seed(1, 1, &[0.60, 0.55, 0.50]),
        ]
    }

    #[test]
    fn every_group_matches_the_worked_numbers() {
        let tables = [
            (
                AdvantageGroup::Seed,
                [
                    [-1.217291, 0.0, 1.217291],
                    [-1.219765, 1.219765, 0.0],
                    [0.0; 3],
                    [1.221752, 0.0, -1.221752],
                ],
            ),
            (
                AdvantageGroup::Prompt,
                [
                    [0.503205, 0.905768, 1.308332],
                    [-1.509614, -0.301923, -0.905768],
                    [-0.652944; 3],
                    [1.958832, 0.652944, -0.652944],
                ],
            ),
            (
                AdvantageGroup::Batch,
                [
                    [0.188392, 0.339105, 0.489819],
                    [-0.565175, -0.113035, -0.339105],
                    [-0.188392; 3],
                    [0.565175, 0.188392, -0.188392],
                ],
            ),
            (
                AdvantageGroup::None,
                [
                    [1.130351, 1.281064, 1.431778],
                    [0.376784, 0.828924, 0.602854],
                    [-1.130351; 3],
                    [-0.376784, -0.753567, -1.130351],
                ],
            ),
        ];
        for (group, expected) in tables {
            let got = advantages(group, &worked_batch(), 1, 3).unwrap();
            for (got, expected) in got.iter().flatten().zip(expected.iter().flatten()) {
                assert!((f64::from(*got) - expected).abs() < 1e-5, "{group:?}: {got} is not {expected}");
            }
        }
    }

    #[test]
    fn equal_rewards_give_exactly_zero() {
        for group in
            [AdvantageGroup::Seed, AdvantageGroup::Prompt, AdvantageGroup::Batch, AdvantageGroup::None]
        {
            let rewards = [seed(0, 0, &[0.1; 7]), seed(0, 1, &[0.1; 7]), seed(1, 0, &[0.1; 7])];
            assert!(
                advantages(group, &rewards, 1, 7).unwrap().iter().flatten().all(|a| *a == 0.0),
                "{group:?}"
            );
        }
    }

    #[test]
    fn steps_are_compared_separately_unless_there_are_no_groups() {
        let rewards = [seed(0, 0, &[0.0, 1.0, 10.0, 11.0])];
        let by_step = advantages(AdvantageGroup::Seed, &rewards, 2, 2).unwrap();
        assert_eq!(by_step[0][..2], by_step[0][2..]);
        let together = advantages(AdvantageGroup::None, &rewards, 2, 2).unwrap();
        assert!(together[0][1] < 0.0 && together[0][2] > 0.0);
    }

    #[test]
    fn complete_groups_can_be_taken_one_by_one_and_in_any_order() {
        let batch = worked_batch();
        let all = advantages(AdvantageGroup::Seed, &batch, 3, 1).unwrap();
        for (index, seed) in batch.iter().enumerate() {
            assert_eq!(
                advantages(AdvantageGroup::Seed, std::slice::from_ref(seed), 3, 1).unwrap()[0],
                all[index]
            );
        }
        let all = advantages(AdvantageGroup::Prompt, &batch, 1, 3).unwrap();
        let second_prompt = [batch[3].clone(), batch[2].clone()];
        let streamed = advantages(AdvantageGroup::Prompt, &second_prompt, 1, 3).unwrap();
        assert_eq!(streamed, [all[3].clone(), all[2].clone()]);
    }

    #[test]
    fn statistics_count_groups_that_teach_nothing() {
        let statistics = |group| group_statistics(group, &worked_batch(), 1, 3).unwrap();
        let seeds = statistics(AdvantageGroup::Seed);
        assert_eq!((seeds.group_size, seeds.zero_std_ratio), (3.0, 0.25));
        let prompts = statistics(AdvantageGroup::Prompt);
        assert_eq!((prompts.group_size, prompts.zero_std_ratio), (6.0, 0.0));
        assert!((prompts.reward_mean - 0.65).abs() < 1e-6);
        assert!((prompts.reward_std_mean - (0.0495815826 + 0.0381881308) / 2.0).abs() < 1e-6);
    }

    #[test]
    fn a_reward_that_is_not_finite_is_named() {
        let rewards = [seed(0, 0, &[0.0; 4]), seed(3, 2, &[0.0, 0.0, f32::NAN, 0.0])];
        let message = advantages(AdvantageGroup::Seed, &rewards, 2, 2).unwrap_err().to_string();
        for part in ["NaN", "slot 3", "seed 2", "trained step number 1", "branch 0"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn incomplete_and_repeated_seeds_are_refused() {
        let short = advantages(AdvantageGroup::Seed, &[seed(1, 2, &[0.0; 3])], 2, 2);
        let expected = FlowError::RewardCount { prompt_slot: 1, seed_index: 2, got: 3, expected: 4 };
        assert_eq!(short, Err(expected));
        let twice = advantages(AdvantageGroup::Seed, &[seed(1, 2, &[0.0]), seed(1, 2, &[0.0])], 1, 1);
        assert_eq!(twice, Err(FlowError::DuplicateSeed { prompt_slot: 1, seed_index: 2 }));
    }
}
