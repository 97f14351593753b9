//! Held-out evaluation: means by prompt, standard errors with the prompt as the unit, gains over the first evaluation.

use std::collections::BTreeMap;

use config::RewardSection;
use serde::{Deserialize, Serialize};

use crate::exchange::outcome::EvaluatedImages;
use crate::training::metrics::mean;

/// One row of `evaluations.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Version of the averaged weights.
    pub version: u32,
    /// Mean over prompts of the weighted sum of scores.
    pub reward: f64,
    /// Of that mean, with the prompt as the unit.
    pub standard_error: f64,
    /// Mean over prompts of the difference to the first evaluation by the same rewards, on the same noises.
    pub gain: f64,
    /// Of the mean of the differences by prompt.
    pub gain_standard_error: f64,
    /// Raw score of each reward, by name.
    pub scores: BTreeMap<String, Estimate>,
    /// Means over the images that they apply to of what rewards tell besides, as `REWARD/KEY`.
    pub extras: BTreeMap<String, f64>,
    /// What scored the images, wherever it was. It may change over the life of a run; only equals are compared.
    pub rewards: Vec<RewardSection>,
    /// Mean training reward of the iterations since the evaluation before; absent for the first.
    pub training_reward: Option<f64>,
    /// Names of the rewards that are not trained and fell while the training reward rose, see
    /// [`crate::run::reward_hacking`].
    pub reward_hacking: Vec<String>,
    /// Digest of the list of held-out prompts. It too may change, if somebody wishes for that; only equals are compared.
    #[serde(default)]
    pub prompt_list: String,
    /// Prompts evaluated.
    pub prompts: u32,
    /// Images evaluated.
    pub images: u64,
    /// Guided network evaluations that they took.
    pub network_evaluations: u64,
    /// Seconds since the start of the run, without those that a crash undid; 0 where it is not known.
    pub seconds: f64,
    /// When it was recorded, in seconds since 1970.
    #[serde(default)]
    pub recorded_at: f64,
    /// Mean reward of each prompt, in file order.
    pub prompt_rewards: Vec<f64>,
}

/// A mean over prompts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Over prompts.
    pub mean: f64,
    /// Of that mean; 0 for fewer than two prompts.
    pub standard_error: f64,
}

impl Evaluation {
    /// Sums up the outcomes of all evaluation tasks of a version, in task order, after `earlier` evaluations. Time and what
    /// concerns training are left open.
    pub fn new(
        version: u32,
        outcomes: &[EvaluatedImages],
        images_per_prompt: usize,
        rewards: &[RewardSection],
        earlier: &[Self],
    ) -> Self {
        let all: Vec<f32> = outcomes.iter().flat_map(|outcome| &outcome.rewards).copied().collect();
        let prompt_rewards = prompt_means(&all, images_per_prompt);
        let rewards: Vec<_> = rewards.iter().map(RewardSection::without_connection).collect();
        let base = earlier.iter().find(|row| row.rewards == rewards);
        let gains: Vec<f64> = match base {
            Some(base) => {
                prompt_rewards.iter().zip(&base.prompt_rewards).map(|(now, before)| now - before).collect()
            }
            None => vec![0.0; prompt_rewards.len()],
        };
        let (reward, gain) = (Estimate::of(&prompt_rewards), Estimate::of(&gains));
        Self {
            version,
            reward: reward.mean,
            standard_error: reward.standard_error,
            gain: gain.mean,
            gain_standard_error: gain.standard_error,
            scores: scores(outcomes, images_per_prompt),
            extras: extras(outcomes),
            rewards,
            training_reward: None,
            reward_hacking: Vec::new(),
            prompt_list: String::new(),
            prompts: prompt_rewards.len() as u32,
            images: all.len() as u64,
            network_evaluations: outcomes.iter().map(|outcome| outcome.cost.network_evaluations).sum(),
            seconds: 0.0,
            recorded_at: 0.0,
            prompt_rewards,
        }
    }

    /// The mean raw score of a reward, if one of its name and making was evaluated.
    pub fn score_of(&self, reward: &RewardSection) -> Option<f64> {
        let sought = reward.without_connection();
        let is_sought =
            |evaluated: &&RewardSection| evaluated.name == sought.name && evaluated.is_built_as(&sought);
        let evaluated = self.rewards.iter().find(is_sought)?;
        self.scores.get(&evaluated.name).map(|score| score.mean)
    }
}

impl Estimate {
    /// The mean of some values and its standard error.
    pub fn of(values: &[f64]) -> Self {
        Self { mean: mean(values.iter().copied()), standard_error: standard_error(values) }
    }
}

/// The evaluations that the newest can be compared with, itself among them.
pub fn comparable(evaluations: &[Evaluation]) -> Vec<&Evaluation> {
    let newest = evaluations.last();
    let is_as_newest = |row: &&Evaluation| {
        newest.is_some_and(|newest| row.rewards == newest.rewards && row.prompt_list == newest.prompt_list)
    };
    evaluations.iter().filter(is_as_newest).collect()
}

/// The best of the evaluations that the newest can be compared with and whose version is eligible; of equal ones the first.
pub fn best_among(evaluations: &[Evaluation], is_eligible: impl Fn(u32) -> bool) -> Option<&Evaluation> {
    let eligible = comparable(evaluations).into_iter().filter(|row| is_eligible(row.version));
    eligible.reduce(|best, row| if row.reward > best.reward { row } else { best })
}

/// Means of consecutive values, `per_prompt` at a time.
fn prompt_means(values: &[f32], per_prompt: usize) -> Vec<f64> {
    values
        .chunks(per_prompt.max(1))
        .map(|images| mean(images.iter().map(|value| f64::from(*value))))
        .collect()
}

fn scores(outcomes: &[EvaluatedImages], images_per_prompt: usize) -> BTreeMap<String, Estimate> {
    let estimate = |scores: Vec<f32>| Estimate::of(&prompt_means(&scores, images_per_prompt));
    let by_name = by_name(outcomes.iter().flat_map(|outcome| &outcome.scores));
    by_name.into_iter().map(|(name, scores)| (name, estimate(scores))).collect()
}

fn extras(outcomes: &[EvaluatedImages]) -> BTreeMap<String, f64> {
    let mean_of_finite = |(name, values): (String, Vec<f32>)| {
        let finite: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).map(f64::from).collect();
        (!finite.is_empty()).then(|| (name, mean(finite.into_iter())))
    };
    by_name(outcomes.iter().flat_map(|outcome| &outcome.extras))
        .into_iter()
        .filter_map(mean_of_finite)
        .collect()
}

/// The values of all tasks, in task order.
fn by_name<'a>(values: impl Iterator<Item = &'a (String, Vec<f32>)>) -> BTreeMap<String, Vec<f32>> {
    let mut by_name = BTreeMap::<String, Vec<f32>>::new();
    for (name, of_task) in values {
        by_name.entry(name.clone()).or_default().extend(of_task);
    }
    by_name
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

    fn evaluate(version: u32, rewards: &[&[f32]], per_prompt: usize, earlier: &[Evaluation]) -> Evaluation {
        Evaluation::new(version, &outcomes(rewards), per_prompt, &[RewardSection::new("shapes")], earlier)
    }

    #[test]
    fn the_prompt_is_the_unit() {
        let base = evaluate(0, &[&[0.0, 1.0, 0.5, 0.5], &[0.0, 0.0]], 2, &[]);
        assert_eq!(base.prompt_rewards, [0.5, 0.5, 0.0]);
        assert_eq!((base.prompts, base.images, base.gain, base.gain_standard_error), (3, 6, 0.0, 0.0));
        assert!((base.reward - 1.0 / 3.0).abs() < 1e-12);
        // Sample deviation of (0.5, 0.5, 0) is 0.28867513, over √3.
        assert!((base.standard_error - 1.0 / 6.0).abs() < 1e-8);
        let shapes = base.scores["shapes"];
        assert!((shapes.mean - 2.0 / 3.0).abs() < 1e-7 && (shapes.standard_error - 1.0 / 3.0).abs() < 1e-7);
    }

    #[test]
    fn gains_are_paired_by_prompt() {
        let base = evaluate(0, &[&[0.0, 0.5, 1.0]], 1, &[]);
        let later = evaluate(4, &[&[0.25, 0.75, 1.25]], 1, &[base]);
        assert!((later.gain - 0.25).abs() < 1e-12);
        assert!(later.gain_standard_error < 1e-12, "every prompt gained the same");
        assert!(later.standard_error > 0.1);
    }

    #[test]
    fn the_first_of_the_best_is_the_best() {
        let row = |version, reward: f32| evaluate(version, &[&[reward]], 1, &[]);
        let rows = [row(0, 0.25), row(3, 0.75), row(6, 0.5), row(9, 0.75)];
        assert_eq!(best_among(&rows, |_| true).map(|row| row.version), Some(3));
        assert!(best_among(&[], |_| true).is_none());
        assert_eq!(best_among(&rows, |version| version != 3).map(|row| row.version), Some(9));
        assert!(best_among(&rows, |version| version > 9).is_none());
    }

    #[test]
    fn evaluations_by_other_rewards_are_not_compared() {
        let before = evaluate(0, &[&[0.9]], 1, &[]);
        let rewards = [RewardSection::new("jpeg_compressibility")];
        let by_other = |version, reward: f32, earlier: &[Evaluation]| {
            Evaluation::new(version, &outcomes(&[&[reward]]), 1, &rewards, earlier)
        };
        let mut rows = vec![before.clone(), by_other(3, 0.25, &[before])];
        assert_eq!(rows[1].gain, 0.0, "nothing to compare with yet");
        rows.push(by_other(6, 0.5, &rows));
        assert_eq!(rows[2].gain, 0.25);
        assert_eq!(best_among(&rows, |_| true).map(|row| row.version), Some(6));
        assert_eq!(comparable(&rows).first().map(|row| row.version), Some(3));
    }

    #[test]
    fn evaluations_on_other_prompts_are_not_compared() {
        let on = |prompt_list: &str, version, reward: f32| Evaluation {
            prompt_list: prompt_list.to_owned(),
            ..evaluate(version, &[&[reward]], 1, &[])
        };
        let rows = [on("before", 0, 0.9), on("after", 3, 0.25), on("after", 6, 0.5)];
        assert_eq!(best_among(&rows, |_| true).map(|row| row.version), Some(6));
        assert_eq!(comparable(&rows).len(), 2);
    }

    #[test]
    fn a_reward_is_the_same_wherever_its_server_is() {
        let served = |url: &str, batch_size: i64| {
            let mut reward = RewardSection::new("deqa");
            reward.options.insert("url".to_owned(), toml::Value::String(url.to_owned()));
            reward.options.insert("batch_size".to_owned(), toml::Value::Integer(batch_size));
            reward
        };
        let by = |reward: RewardSection, mean: f32, earlier: &[Evaluation]| {
            Evaluation::new(0, &outcomes(&[&[mean]]), 1, &[reward], earlier)
        };
        let mut base = by(served("http://ada:secret@a:1", 8), 0.25, &[]);
        base.scores.insert("deqa".to_owned(), Estimate::of(&[0.5]));
        assert!(!serde_json::to_string(&base).expect("plain data").contains("secret"));
        assert_eq!(base.score_of(&served("http://b:1", 8)), Some(0.5));
        assert_eq!(base.score_of(&served("http://a:1", 16)), None);
        assert_eq!(by(served("http://b:1", 8), 0.75, &[base]).gain, 0.5);
    }

    #[test]
    fn extras_are_means_over_the_images_that_they_apply_to() {
        let mut outcomes = outcomes(&[&[0.0, 0.0], &[0.0, 0.0]]);
        let extra = |key: &str, values: [f32; 2]| (format!("geneval/{key}"), values.to_vec());
        outcomes[0].extras = vec![extra("strict", [1.0, 0.0]), extra("counting", [f32::NAN, 0.5])];
        outcomes[1].extras = vec![extra("strict", [1.0, 1.0]), extra("color", [f32::NAN, f32::INFINITY])];
        let row = Evaluation::new(0, &outcomes, 1, &[RewardSection::new("geneval")], &[]);
        let expected = [("geneval/counting".to_owned(), 0.5), ("geneval/strict".to_owned(), 0.75)];
        assert_eq!(row.extras, BTreeMap::from(expected), "what applies to no image is left out");
    }

    #[test]
    fn a_row_is_read_back_as_it_was_written() {
        let mut row = evaluate(5, &[&[0.1, 0.7, 0.3]], 1, &[]);
        let mut scorer = RewardSection::new("pickscore");
        scorer.options.insert("batch_size".to_owned(), toml::Value::Integer(8));
        scorer.options.insert("scale".to_owned(), toml::Value::Float(0.1 + 0.2));
        (row.rewards, row.training_reward) = (vec![scorer], Some(1.0 / 3.0));
        let text = serde_json::to_string(&row).expect("plain data");
        assert_eq!(serde_json::from_str::<Evaluation>(&text).expect("what was written"), row, "{text}");
    }

    #[test]
    fn a_single_prompt_has_no_standard_error() {
        assert_eq!(standard_error(&[3.0]), 0.0);
        assert_eq!(mean([].into_iter()), 0.0);
    }
}
