//! Why training cannot go on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use collective::CollectiveError;
use flow::FlowError;
use models::ModelError;
use proto::Summary;
use run_setup::{DeviceError, OutOfMemory, TrainedStepsError};
use service::cuda::Explained;
use service::{ModelNotFound, ServiceError};

use crate::exchange::inbox::Stopped;
use crate::run::checkpoint::CheckpointError;

/// Everything that ends the training thread before its time.
#[derive(Debug, thiserror::Error)]
pub enum LearnerError {
    /// The learner was told to leave; nothing is wrong.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// This rank went back or forth to where the first rank is, and goes on from there; nothing is wrong.
    #[error("this rank has taken over from the first one")]
    TakenOver,
    /// The ranks do not work together.
    #[error("the ranks of the learner: {0}")]
    Ranks(#[from] CollectiveError),
    /// What the first rank gave is of no use.
    #[error("what the first rank of the learner gave is none of this run's: {0}")]
    RankState(String),
    /// A number that is none. The newest checkpoint is from before it.
    #[error(
        "{quantity} is not finite in iteration {iteration}: prompt {prompt:?} (line {line} of its file, from 0), \
         seed {seed}, step {step}; look at that image and its score, or lower `training.learning_rate` \
         in a branch of the run, `coordinator init --from RUN --set training.learning_rate=RATE FILE`"
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
         `training.learning_rate` in a branch of the run, `coordinator init --from RUN --set \
         training.learning_rate=RATE FILE`"
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
    /// The device has too little memory for an update. Nothing is lost but the iteration in flight.
    #[error(
        "out of memory ({0}); lower `training.max_rows` or set `training.gradient_checkpointing` in a branch of the run, \
         `coordinator init --from RUN --set training.max_rows=ROWS FILE`"
    )]
    OutOfMemory(OutOfMemory),
    /// What workers push cannot be trained on.
    #[error("embedding {digest} of task {task} is no longer here; this is a bug")]
    EmbeddingGone {
        /// Its name.
        digest: String,
        /// Index of the task.
        task: u32,
    },
    /// Nothing is lost yet.
    #[error("the first checkpoint could not be written; the run directory must be writable and have room")]
    FirstCheckpointFails {
        /// What happened.
        #[source]
        source: CheckpointError,
    },
    /// The disk stayed full, or worse.
    #[error(
        "no checkpoint could be written for {} s (`checkpoints.retry_minutes`); make room in the run directory, then \
         resume",
        failing.as_secs()
    )]
    CheckpointsFail {
        /// For how long.
        failing: Duration,
        /// What happened at the last attempt.
        #[source]
        source: CheckpointError,
    },
    /// Everything is saved, but not exported.
    #[error(
        "what was trained is saved but could not be exported or recorded in full; mend the cause and resume, nothing is \
         trained again"
    )]
    NotExported {
        /// What happened at the last attempt.
        #[source]
        source: Box<LearnerError>,
        /// What the run came to.
        summary: Box<Summary>,
    },
    /// There are records but no checkpoint.
    #[error(
        "{} has records of a run but no checkpoint any more; put its `checkpoints` back from a backup, or start a new \
         run under another name",
        directory.display()
    )]
    CheckpointsGone {
        /// The run directory.
        directory: PathBuf,
    },
    /// Rewards that are not trained got worse while those that are got better, and the config has the run stop then. All
    /// of it is saved.
    #[error(
        "reward hacking: {findings}. Everything is saved: go on by `coordinator resume RUN --set \
         evaluation.on_reward_hacking=warn`, or take the adapter of version {best}, the best one, from {adapter}"
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
        "the checkpoint {path} was written under another run config than {saved} is now; put that back as it was, or start a new \
         run under another name"
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
    /// Steps or branches that do not.
    #[error(transparent)]
    Steps(#[from] TrainedStepsError),
    /// The device is not here.
    #[error("`resources.device`: {0}")]
    Device(#[from] Explained<DeviceError>),
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
    /// One of both, with the host.
    #[error(
        "the learner cannot open the model {} on {host}; paths are looked up on each host: put the model there, or set \
         `model.path` to where all hosts have it",
        model.display()
    )]
    ModelOnHost {
        /// As the config has it.
        model: PathBuf,
        /// This one.
        host: String,
        /// Why not.
        #[source]
        source: Box<LearnerError>,
    },
}

impl LearnerError {
    /// Whether the config, the model's files or the prompts cannot be used, so that trying again will not help.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Model(_)
            | Self::ModelNotFound(_)
            | Self::ModelOnHost { .. }
            | Self::Prompts(_)
            | Self::OtherConfig { .. }
            | Self::CheckpointsGone { .. }
            | Self::Device(_) => true,
            Self::Stopped(_)
            | Self::TakenOver
            | Self::Ranks(_)
            | Self::RankState(_)
            | Self::NonFinite { .. }
            | Self::NonFiniteParameter { .. }
            | Self::OutOfMemory(_)
            | Self::EmbeddingGone { .. }
            | Self::FirstCheckpointFails { .. }
            | Self::CheckpointsFail { .. }
            | Self::NotExported { .. }
            | Self::RewardHacking { .. }
            | Self::Flow(_)
            | Self::Steps(_)
            | Self::Service(_)
            | Self::Checkpoint(_) => false,
        }
    }

    /// The same, saying on which host, where it is about the model's files.
    pub fn on_this_host(self, model: &Path) -> Self {
        match self {
            Self::Model(_) | Self::ModelNotFound(_) => {
                let (model, host) = (model.to_owned(), service::host_name());
                Self::ModelOnHost { model, host, source: Box::new(self) }
            }
            other => other,
        }
    }

    /// The refusal that this comes from, where the process may not change the run directory, or not any more.
    pub fn not_owner(&self) -> Option<&ServiceError> {
        match self {
            Self::Service(error) if error.is_not_owner() => Some(error),
            Self::Checkpoint(source)
            | Self::FirstCheckpointFails { source }
            | Self::CheckpointsFail { source, .. } => source.not_owner(),
            Self::NotExported { source, .. } => source.not_owner(),
            _ => None,
        }
    }

    /// What the run came to, if it ended in good order.
    pub fn summary(&self) -> Option<Summary> {
        match self {
            Self::RewardHacking { summary, .. } | Self::NotExported { summary, .. } => {
                Some((**summary).clone())
            }
            _ => None,
        }
    }
}
