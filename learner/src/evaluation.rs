//! Held-out evaluation: means by prompt, standard errors with the prompt as the unit, gains over the base model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::outcome::EvaluatedImages;

/// One row of `evaluations.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Version of the averaged weights.
    pub version: u32,
    /// Mean reward over prompts.
    pub reward: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Mean over prompts of the difference to version 0 on the same noises.
    pub gain: f64,
    /// Its standard error.
    pub gain_standard_error: f64,
    /// Mean raw score of each scorer.
    pub scores: BTreeMap<String, f64>,
    /// Prompts evaluated.
    pub prompts: u32,
    /// Images evaluated.
    pub images: u64,
    /// Guided network evaluations that they took.
    pub network_evaluations: u64,
    /// Seconds since the start of the run, without those that a crash undid; 0 where it is not known.
    pub seconds: f64,
    /// Mean reward of each prompt, in file order.
    pub prompt_rewards: Vec<f64>,
}

impl Evaluation {
    /// Sums up the outcomes of all evaluation tasks of a version, in task order.
    ///
    /// `base` holds each prompt's reward at version 0; without it, this is version 0.
    pub fn new(
        version: u32,
        outcomes: &[EvaluatedImages],
        images_per_prompt: usize,
        base: Option<&[f64]>,
    ) -> Self {
        let rewards: Vec<f32> = outcomes.iter().flat_map(|outcome| &outcome.rewards).copied().collect();
        let prompt_rewards: Vec<f64> = rewards
            .chunks(images_per_prompt.max(1))
            .map(|images| mean(images.iter().map(|r| f64::from(*r))))
            .collect();
        let gains: Vec<f64> = match base {
            Some(base) => prompt_rewards.iter().zip(base).map(|(now, before)| now - before).collect(),
            None => vec![0.0; prompt_rewards.len()],
        };
        Self {
            version,
            reward: mean(prompt_rewards.iter().copied()),
            standard_error: standard_error(&prompt_rewards),
            gain: mean(gains.iter().copied()),
            gain_standard_error: standard_error(&gains),
            scores: mean_scores(outcomes),
            prompts: prompt_rewards.len() as u32,
            images: rewards.len() as u64,
            network_evaluations: outcomes.iter().map(|outcome| outcome.cost.network_evaluations).sum(),
            seconds: 0.0,
            prompt_rewards,
        }
    }
}

/// The best of some evaluations; of equal ones the first.
pub fn best(evaluations: &[Evaluation]) -> Option<&Evaluation> {
    evaluations.iter().reduce(|best, row| if row.reward > best.reward { row } else { best })
}

fn mean_scores(outcomes: &[EvaluatedImages]) -> BTreeMap<String, f64> {
    let mut by_scorer = BTreeMap::<&String, Vec<f64>>::new();
    for (name, scores) in outcomes.iter().flat_map(|outcome| &outcome.scores) {
        by_scorer.entry(name).or_default().extend(scores.iter().map(|score| f64::from(*score)));
    }
    by_scorer.into_iter().map(|(name, scores)| (name.clone(), mean(scores.into_iter()))).collect()
}

/// The arithmetic mean; 0 of nothing.
pub fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

/// Standard error of the mean, from the sample deviation; 0 for fewer than two values.
pub fn standard_error(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let (count, mean) = (values.len() as f64, mean(values.iter().copied()));
    let squares = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>();
    (squares / (count - 1.0) / count).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(rewards: &[&[f32]]) -> Vec<EvaluatedImages> {
        let outcome = |rewards: &&[f32]| EvaluatedImages {
            rewards: rewards.to_vec(),
            scores: vec![("shapes".to_owned(), rewards.iter().map(|reward| reward * 2.0).collect())],
            ..EvaluatedImages::default()
        };
        rewards.iter().map(outcome).collect()
    }

    #[test]
    fn the_prompt_is_the_unit() {
        let base = Evaluation::new(0, &outcomes(&[&[0.0, 1.0, 0.5, 0.5], &[0.0, 0.0]]), 2, None);
        assert_eq!(base.prompt_rewards, [0.5, 0.5, 0.0]);
        assert_eq!((base.prompts, base.images, base.gain, base.gain_standard_error), (3, 6, 0.0, 0.0));
        assert!((base.reward - 1.0 / 3.0).abs() < 1e-12);
        // Sample deviation of (0.5, 0.5, 0) is 0.28867513, over √3.
        assert!((base.standard_error - 1.0 / 6.0).abs() < 1e-8);
        assert!((base.scores["shapes"] - 2.0 / 3.0).abs() < 1e-7);
    }

    #[test]
    fn gains_are_paired_by_prompt() {
        let base = Evaluation::new(0, &outcomes(&[&[0.0, 0.5, 1.0]]), 1, None);
        let later = Evaluation::new(4, &outcomes(&[&[0.25, 0.75, 1.25]]), 1, Some(&base.prompt_rewards));
        assert!((later.gain - 0.25).abs() < 1e-12);
        assert!(later.gain_standard_error < 1e-12, "every prompt gained the same");
        assert!(later.standard_error > 0.1);
    }

    #[test]
    fn the_first_of_the_best_is_the_best() {
        let row = |version, reward: f32| Evaluation::new(version, &outcomes(&[&[reward]]), 1, None);
        let rows = [row(0, 0.25), row(3, 0.75), row(6, 0.5), row(9, 0.75)];
        assert_eq!(best(&rows).map(|row| row.version), Some(3));
        assert!(best(&[]).is_none());
    }

    #[test]
    fn a_single_prompt_has_no_standard_error() {
        assert_eq!(standard_error(&[3.0]), 0.0);
        assert_eq!(mean([].into_iter()), 0.0);
    }
}
