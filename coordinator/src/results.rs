//! What a run has come to so far and in the end, as it is shown and kept. The names of the fields are keys of the JSON
//! that scripts and the `run.json` of earlier versions hold.

use serde::{Deserialize, Serialize};

/// How far a run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunProgress {
    /// At work.
    pub iteration: u32,
    /// Of the whole run.
    pub iterations: u32,
    /// What the learner does, in a word.
    pub phase: String,
    /// Mean training reward of the newest finished iteration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward: Option<f64>,
    /// The newest evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOutReward>,
    /// Scored by the whole run so far.
    pub images: u64,
    /// Guided, of the whole run so far.
    pub network_evaluations: u64,
    /// Wall time of the whole run so far.
    pub seconds: f64,
    /// Share of it that the learner computed.
    pub learner_busy: f64,
}

/// What an evaluation of a version's moving average came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeldOutReward {
    /// Of the weights.
    pub version: u32,
    /// Mean over the held-out prompts.
    pub reward: f64,
    /// Of the mean, with the prompt as the unit.
    pub standard_error: f64,
}

/// What a run achieved and cost. Earlier versions wrote fewer of these into `run.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunSummary {
    /// The first evaluation that compares to `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<HeldOutReward>,
    /// The last evaluation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<HeldOutReward>,
    /// Of the best version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<HeldOutReward>,
    /// Mean difference of `before` and `after`, paired by prompt.
    pub gain: f64,
    /// Of the gain, with the prompt as the unit.
    pub gain_standard_error: f64,
    /// That the gain was measured on.
    pub prompts: u32,
    /// Wall time of the whole run.
    pub seconds: f64,
    /// Scored, for training and evaluations.
    pub images: u64,
    /// Guided, for training and evaluations.
    pub network_evaluations: u64,
    /// Share of the wall time that the learner computed.
    pub learner_busy: f64,
    /// Share of the workers' time with a task in hand.
    pub worker_busy: f64,
    /// The time that `worker_busy` is a share of: since the coordinator was last started.
    pub worker_busy_seconds: f64,
    /// Where the adapter is.
    pub adapter: String,
    /// Where that of the best version is; empty where there is none.
    pub best_adapter: String,
    /// Of each evaluation reward, in the config's order.
    pub scores: Vec<ScoreChange>,
    /// Rewards that fell while the trained ones rose, as the newest evaluation found.
    pub reward_hacking: Vec<String>,
    /// Whether the rewards are of test prompts, by which nothing was chosen.
    pub is_of_test_prompts: bool,
}

/// What became of the raw score of an evaluation reward.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScoreChange {
    /// Of the reward.
    pub name: String,
    /// Mean over held-out images.
    pub before: f64,
    /// Of that mean, with the prompt as the unit.
    pub before_standard_error: f64,
    /// Mean over held-out images.
    pub after: f64,
    /// Of that mean, with the prompt as the unit.
    pub after_standard_error: f64,
}
