//! What a run's rewards are for: some are trained, some tell evaluations apart, some do both.

use crate::{CONNECTION_OPTIONS, RewardSection, RunConfig, scorers};

impl RewardSection {
    /// A scorer at weight 1 with its options at their defaults.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), scorer: None, weight: unit_weight(), options: toml::Table::new() }
    }

    /// Name of the scorer.
    pub fn scorer(&self) -> &str {
        self.scorer.as_deref().unwrap_or(&self.name)
    }

    /// Whether a language model judges.
    pub fn is_judge(&self) -> bool {
        scorers::is_judge(self.scorer())
    }

    /// Whether one scorer can be built for both: the scorer and its options, not name and weight.
    pub fn is_built_as(&self, other: &Self) -> bool {
        self.scorer() == other.scorer() && self.options == other.options
    }

    /// Whether both give every image the same raw score, by whatever name and however they are reached.
    pub fn scores_as(&self, other: &Self) -> bool {
        let is_named_by_its_server = scorers::is_named_by_its_server(self.scorer());
        let is_elsewhere = is_named_by_its_server && self.options.get("url") != other.options.get("url");
        self.without_connection().is_built_as(&other.without_connection()) && !is_elsewhere
    }

    /// The section without [`CONNECTION_OPTIONS`], which stays the same where a server moves.
    pub fn without_connection(&self) -> Self {
        let mut section = self.clone();
        section.options.retain(|key, _| !CONNECTION_OPTIONS.contains(&key));
        section
    }

    /// The options as JSON.
    pub fn options_as_json(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).expect("a TOML table has a JSON form; else this is a bug")
    }
}

impl RunConfig {
    /// Every reward with its place, as `rewards[0]`.
    pub fn all_rewards(&self) -> impl Iterator<Item = (String, &RewardSection)> {
        crate::validate::reward_lists(self).flat_map(|(list, rewards)| {
            let placed = rewards.iter().enumerate();
            placed.map(move |(position, reward)| (format!("{list}[{position}]"), reward))
        })
    }

    /// What held-out images are scored by.
    pub fn rewards_of_evaluation(&self) -> &[RewardSection] {
        if self.evaluation_rewards.is_empty() { &self.rewards } else { &self.evaluation_rewards }
    }

    /// Rewards that only evaluations look at: they tell whether training improves images or games its own rewards.
    pub fn held_out_rewards(&self) -> Vec<&RewardSection> {
        let is_trained =
            |reward: &RewardSection| self.rewards.iter().any(|trained| trained.scores_as(reward));
        self.rewards_of_evaluation().iter().filter(|reward| !is_trained(reward)).collect()
    }
}

pub(crate) fn unit_weight() -> f64 {
    1.0
}
