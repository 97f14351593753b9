//! Why training cannot go on.

use flow::FlowError;
use models::ModelError;
use proto::Summary;
use service::{ModelNotFound, ServiceError};

use crate::checkpoint::CheckpointError;
use crate::inbox::Stopped;

/// Everything that ends the training thread before its time.
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    /// The learner was told to leave; nothing is wrong.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A number that is none. The newest checkpoint is from before it.
    #[error(
        "{quantity} is not finite in iteration {iteration}: prompt {prompt:?} (line {line} of its file, from 0), \
         seed {seed}, step {step}; look at that image and its score, or lower `training.learning_rate`, \
         then resume from the newest checkpoint"
    )]
    NonFinite {
        /// Reward or loss.
        quantity: &'static str,
        /// Where in the run.
        iteration: u32,
        /// Text of the prompt.
        prompt: String,
        /// Its place in the prompt file.
        line: u32,
        /// Seed of the prompt.
        seed: u32,
        /// Step of the schedule, or `none`.
        step: String,
    },
    /// Gradients or weights are no numbers. The newest checkpoint is from before it.
    #[error(
        "{quantity} of `{parameter}` is not finite after the {tasks} of iteration {iteration}; lower \
         `training.learning_rate`, then resume from the newest checkpoint"
    )]
    NonFiniteParameter {
        /// Gradient or weight.
        quantity: &'static str,
        /// Name of the first such parameter.
        parameter: String,
        /// Where in the run.
        iteration: u32,
        /// The prompts and seeds that the update was made of, in words.
        tasks: String,
    },
    /// What workers push cannot be trained on.
    #[error("embedding {digest} of task {task} is no longer here; this is a bug")]
    EmbeddingGone {
        /// Its name.
        digest: String,
        /// Index of the task.
        task: u32,
    },
    /// The disk stayed full, or worse.
    #[error(
        "{attempts} checkpoints in a row could not be written; make room in the run directory, then resume"
    )]
    CheckpointsFail {
        /// How many.
        attempts: u32,
        /// What happened at the last.
        #[source]
        source: CheckpointError,
    },
    /// Rewards that are not trained got worse while those that are got better, and the config has the run stop then. All
    /// of it is saved.
    #[error(
        "reward hacking: {findings}. Everything is saved: go on with `evaluation.on_reward_hacking` = \"warn\" and \
         `--resume`, or take the adapter of version {best}, the best one, from {adapter}"
    )]
    RewardHacking {
        /// What was found, in words.
        findings: String,
        /// The best version.
        best: u32,
        /// Where its adapter is.
        adapter: String,
        /// What the run came to.
        summary: Box<Summary>,
    },
    /// There is a checkpoint, but of another run config.
    #[error(
        "the checkpoint {path} belongs to another run config; resume with {saved}, or start a new run under another name"
    )]
    OtherConfig {
        /// Its directory.
        path: String,
        /// What it was written under.
        saved: String,
    },
    /// Numbers that do not fit together.
    #[error(transparent)]
    Flow(#[from] FlowError),
    /// A model file.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A file of the run directory.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The prompts.
    #[error(transparent)]
    Prompts(#[from] service::PromptCopyError),
    /// The model is not on this machine.
    #[error(transparent)]
    ModelNotFound(#[from] ModelNotFound),
    /// Anything about the surroundings that has no name of its own.
    #[error("{0}")]
    Setting(String),
}

impl LearnerError {
    /// Whether the config, the model's files or the prompts cannot be used, so that trying again will not help.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Model(_)
            | Self::ModelNotFound(_)
            | Self::Prompts(_)
            | Self::OtherConfig { .. }
            | Self::Setting(_) => true,
            Self::Stopped(_)
            | Self::NonFinite { .. }
            | Self::NonFiniteParameter { .. }
            | Self::EmbeddingGone { .. }
            | Self::CheckpointsFail { .. }
            | Self::RewardHacking { .. }
            | Self::Flow(_)
            | Self::Service(_)
            | Self::Checkpoint(_) => false,
        }
    }

    /// What the run came to, if it ended in good order.
    pub fn summary(&self) -> Option<Summary> {
        match self {
            Self::RewardHacking { summary, .. } => Some((**summary).clone()),
            _ => None,
        }
    }
}
