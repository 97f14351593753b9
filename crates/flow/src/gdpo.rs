//! Several rewards, each made an advantage by itself before they are added.
//!
//! ```text
//! combined  = Σ over rewards  weight · (reward − mean of its group) / max(deviation of its group, 1e-6)
//! advantage = combined / max(deviation of combined over the whole iteration, 1e-6)
//! ```
//!
//! A weighted sum of raw scores lets the reward that varies most decide, and gives equal advantages to explorations whose
//! rewards differ but add up to the same. Here every reward counts by its weight alone, whatever its scale: only ratios of
//! weights matter, and a negative weight turns its reward around. Groups are those of [`crate::advantage`], and so are means
//! and deviations; only what divides differs.
//!
//! 1. **One deviation for all trained steps.** The first normalisation has made steps comparable; how much each counts is
//!    what step weights are for. A deviation of each step would undo both: it would blow up a step at which few groups
//!    differ. Where all steps share the rewards of their path, as with Flow-GRPO, there is no difference.
//! 2. **No second mean.** The advantages of a group add up to 0 already, so the mean over everything is 0 but for rounding,
//!    and taking that away would turn cells that teach nothing, which are skipped, into cells with tiny advantages.
//! 3. **Nothing streams.** Every advantage depends on all tasks of the iteration.
//! 4. **No deviation, no advantage.** Where no reward differs within any group, all advantages are exactly 0.
//!
//! With a single reward this is its advantage over the deviation of all of them, which is near 1 unless many groups teach
//! nothing.
//!
//! Source: GDPO (arXiv 2601.05242); Flow-Factory, `advantage/advantage_processor.py`, `compute_gdpo` at a0b2bc5.

use config::AdvantageGroup;

use crate::FlowError;
use crate::advantage::{Moments, SeedRewards, Table, rounded};

/// Keeps what only rounding tells apart from being blown up.
const LEAST_DEVIATION: f64 = 1e-6;

fn denominator(deviation: f64) -> f64 {
    deviation.max(LEAST_DEVIATION)
}

/// One of several rewards of the same seeds.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedRewards {
    /// Factor of its advantages.
    pub weight: f64,
    /// Its raw scores, for every reward the same seeds in the same order.
    pub rewards: Vec<SeedRewards>,
}

/// Advantages of a whole iteration in the layout of the rewards, one list per seed.
///
/// # Errors
/// If rewards are not of the same seeds, one is not finite, a seed appears twice, or one has not `n_steps·n_branches`
/// rewards.
pub fn gdpo_advantages(
    group: AdvantageGroup,
    rewards: &[WeightedRewards],
    n_steps: usize,
    n_branches: usize,
) -> Result<Vec<Vec<f32>>, FlowError> {
    let Some(first) = rewards.first() else { return Ok(Vec::new()) };
    let seeds = |rewards: &WeightedRewards| -> Vec<(u32, u32)> {
        rewards.rewards.iter().map(|seed| (seed.prompt_slot, seed.seed_index)).collect()
    };
    let mut combined: Vec<Vec<f64>> = vec![vec![0.0; n_steps * n_branches]; first.rewards.len()];
    for (reward, weighted) in rewards.iter().enumerate() {
        if seeds(weighted) != seeds(first) {
            return Err(FlowError::UnevenRewards { reward });
        }
        let advantages = Table::new(&weighted.rewards, n_steps, n_branches)?.advantages(group, denominator);
        for (sum, advantage) in combined.iter_mut().flatten().zip(advantages.iter().flatten()) {
            *sum += weighted.weight * advantage;
        }
    }
    let order = Table::new(&first.rewards, n_steps, n_branches)?.order;
    let deviation = Moments::of(order.iter().flat_map(|&seed| &combined[seed]).copied()).std;
    combined.iter_mut().flatten().for_each(|advantage| *advantage /= denominator(deviation));
    Ok(combined.iter().map(|seed| rounded(seed)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: [AdvantageGroup; 4] =
        [AdvantageGroup::Seed, AdvantageGroup::Prompt, AdvantageGroup::Batch, AdvantageGroup::None];

    /// Two prompts of two seeds, two steps, three branches.
    fn weighted(weight: f64, rewards: [[f32; 6]; 4]) -> WeightedRewards {
        let seed = |(position, rewards): (u32, [f32; 6])| SeedRewards {
            prompt_slot: position / 2,
            seed_index: position % 2,
            rewards: rewards.to_vec(),
        };
        WeightedRewards { weight, rewards: (0..).zip(rewards).map(seed).collect() }
    }

    fn accuracy(weight: f64) -> WeightedRewards {
        let rewards = [
            [0.80, 0.82, 0.84, 0.10, 0.20, 0.60],
            [0.70, 0.76, 0.73, 0.40, 0.40, 0.40],
            [0.50, 0.50, 0.50, 0.30, 0.10, 0.20],
            [0.60, 0.55, 0.50, 0.90, 0.70, 0.50],
        ];
        weighted(weight, rewards)
    }

    fn size(weight: f64) -> WeightedRewards {
        let rewards = [
            [5.0, 1.0, 3.0, 2.0, 2.0, 2.0],
            [4.0, 8.0, 6.0, 1.0, 0.0, 2.0],
            [3.0, 9.0, 0.0, 7.0, 7.0, 1.0],
            [2.0, 2.0, 2.0, 6.0, 4.0, 5.0],
        ];
        weighted(weight, rewards)
    }

    fn combine(group: AdvantageGroup, rewards: &[WeightedRewards]) -> Vec<f32> {
        gdpo_advantages(group, rewards, 2, 3).expect("good rewards").concat()
    }

    fn assert_close(got: &[f32], expected: &[f64], what: impl std::fmt::Debug) {
        assert_eq!(got.len(), expected.len(), "{what:?}");
        for (got, expected) in got.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 2e-6, "{what:?}: {got} is not {expected}");
        }
    }

    /// The numbers are those of numpy, with a and b of shape [prompt, seed, step, branch] and float32 before float64:
    ///
    /// ```python
    /// over = lambda s: numpy.maximum(s, 1e-6)
    /// seed = lambda r: (r - r.mean(-1, keepdims=True)) / over(r.std(-1, keepdims=True))
    /// prompt = lambda r: (r - r.mean((1, 3), keepdims=True)) / over(r.std((1, 3), keepdims=True))
    /// batch = lambda r: (r - r.mean((1, 3), keepdims=True)) / over(r.std((0, 1, 3), keepdims=True))
    /// none = lambda r: (r - r.mean()) / over(r.std())
    /// c = 1.0 * group(a) - 0.25 * group(b)
    /// (c - c.mean()) / over(c.std())
    /// ```
    #[test]
    fn two_rewards_in_every_group_match_the_worked_numbers() {
        let tables: [[[f64; 6]; 4]; 4] = [
            [
                [-1.786474, 0.357295, 1.429179, -1.080358, -0.540179, 1.620537],
                [-1.071885, 1.071884, 1e-06, 0.0, 0.357295, -0.357295],
                [0.077968, -0.389841, 0.311872, 1.222895, -1.635463, 0.412568],
                [1.429179, 0.0, -1.429179, 1.071884, 0.357295, -1.429179],
            ],
            [
                [0.413793, 1.203193, 1.367549, -1.588376, -1.013513, 1.285939],
                [-1.345554, -0.644137, -0.994845, 0.43865, 0.741088, 0.136213],
                [-0.604876, -1.094881, -0.359873, -0.714506, -1.371276, -0.377105],
                [1.896295, 0.686543, -0.523208, 1.366768, 0.931927, 0.164193],
            ],
            [
                [0.182206, 0.863073, 0.814254, -1.442608, -0.892993, 1.305464],
                [-0.668231, -0.571458, -0.619844, 0.343379, 0.480523, 0.206235],
                [-0.243013, -0.972699, 0.121831, -1.098709, -2.197938, -0.825459],
                [0.850652, 0.364627, -0.121398, 2.33612, 1.51118, 0.274807],
            ],
            [
                [1.073224, 1.565381, 1.452872, -1.741073, -1.29584, 0.485091],
                [0.728769, 0.592798, 0.660783, -0.304597, -0.203819, -0.405375],
                [-0.060919, -0.665586, 0.241414, -1.354496, -2.244962, -1.195063],
                [0.485091, 0.262475, 0.039858, 1.417679, 0.728769, -0.262475],
            ],
        ];
        for (group, table) in GROUPS.into_iter().zip(tables) {
            assert_close(&combine(group, &[accuracy(1.0), size(-0.25)]), &table.concat(), group);
        }
    }

    #[test]
    fn scales_of_single_rewards_and_weights_of_all_change_nothing() {
        // Powers of two, so that nothing is rounded.
        let scaled = |mut rewards: WeightedRewards, scale: f32| {
            rewards.rewards.iter_mut().flat_map(|seed| &mut seed.rewards).for_each(|reward| *reward *= scale);
            WeightedRewards { weight: 8.0 * rewards.weight, ..rewards }
        };
        for group in GROUPS {
            let once = combine(group, &[accuracy(1.0), size(-0.25)]);
            let other = combine(group, &[scaled(accuracy(1.0), 1024.0), scaled(size(-0.25), 1.0 / 1024.0)]);
            assert_eq!(once, other, "{group:?}");
        }
    }

    #[test]
    fn a_negative_weight_turns_its_reward_around() {
        for group in GROUPS {
            let turned: Vec<f32> = combine(group, &[size(-3.0)]).iter().map(|advantage| -advantage).collect();
            assert_eq!(turned, combine(group, &[size(3.0)]), "{group:?}");
        }
    }

    #[test]
    fn rewards_that_do_not_differ_give_exactly_zero() {
        for group in GROUPS {
            let equal = weighted(0.7, [[0.1; 6]; 4]);
            assert_eq!(combine(group, &[equal.clone(), equal]), [0.0; 24], "{group:?}");
            assert_eq!(combine(group, &[size(1.0), size(-1.0)]), [0.0; 24], "{group:?}");
        }
    }

    #[test]
    fn cells_where_no_reward_differs_stay_exactly_zero_beside_others() {
        let (mut one, mut other) = (accuracy(0.3), size(1.7));
        for rewards in [&mut one, &mut other] {
            rewards.rewards[2].rewards[3..].fill(0.3);
        }
        let advantages = gdpo_advantages(AdvantageGroup::Seed, &[one, other], 2, 3).expect("good rewards");
        assert_eq!(advantages[2][3..], [0.0; 3]);
        assert!(advantages[2][..3].iter().all(|advantage| *advantage != 0.0));
    }

    #[test]
    fn a_single_reward_is_scaled_by_one_number() {
        for group in GROUPS {
            let rewards = accuracy(1.0).rewards;
            let alone = Table::new(&rewards, 2, 3).expect("good rewards").advantages(group, denominator);
            let alone = rounded(&alone.concat());
            let scaled = combine(group, &[accuracy(2.5)]);
            let factor = scaled[0] / alone[0];
            assert!(scaled.iter().zip(&alone).all(|(a, b)| (a - b * factor).abs() < 1e-5), "{group:?}");
        }
    }

    #[test]
    fn explorations_that_a_sum_cannot_tell_apart_are_told_apart() {
        // Of the second seed the first two branches have equal sums: 1 + 0.1 and 0.1 + 1.
        let tools = weighted(1.0, [[0.0; 6], [1.0, 0.1, 0.0, 0.0, 0.0, 0.0], [0.0; 6], [0.0; 6]]);
        let format = weighted(1.0, [[0.0; 6], [0.1, 1.0, 1.0, 0.0, 0.0, 0.0], [0.0; 6], [0.0; 6]]);
        let advantages = gdpo_advantages(AdvantageGroup::Seed, &[tools, format], 2, 3).expect("good rewards");
        assert!((advantages[1][0] - advantages[1][1]).abs() > 0.1, "{:?}", advantages[1]);
    }

    #[test]
    fn the_order_of_arrival_changes_no_bit() {
        let reversed = |mut rewards: WeightedRewards| {
            rewards.rewards.reverse();
            rewards
        };
        for group in GROUPS {
            let rewards = [accuracy(1.0), size(-0.25)];
            let mut backwards =
                gdpo_advantages(group, &rewards.clone().map(reversed), 2, 3).expect("good rewards");
            backwards.reverse();
            assert_eq!(backwards.concat(), combine(group, &rewards), "{group:?}");
        }
    }

    #[test]
    fn rewards_of_other_seeds_and_numbers_that_are_none_are_refused() {
        let mut other = size(1.0);
        other.rewards.pop();
        let refused = gdpo_advantages(AdvantageGroup::Seed, &[accuracy(1.0), other], 2, 3);
        assert_eq!(refused, Err(FlowError::UnevenRewards { reward: 1 }));
        let mut broken = size(1.0);
        broken.rewards[3].rewards[4] = f32::NAN;
        let refused = gdpo_advantages(AdvantageGroup::Seed, &[accuracy(1.0), broken], 2, 3);
        assert!(matches!(refused, Err(FlowError::NonFiniteReward { seed_index: 1, branch: 1, .. })));
        assert_eq!(gdpo_advantages(AdvantageGroup::Seed, &[], 2, 3), Ok(Vec::new()));
    }
}
