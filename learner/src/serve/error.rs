//! Why the process ends in failure, and with which exit code.

use run_setup::OtherDeterminism;
use service::network::ListenAddress;
use service::{ServiceError, exit_code};

use crate::error::LearnerError;
use crate::half::CoordinatorsDirectory;

/// Why the process ends in failure.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port is taken, the address is not this machine's, or nobody could reach it.
    #[error("`--listen {address}`: {problem}")]
    Listen {
        /// As asked for.
        address: ListenAddress,
        /// Why not, and what to do.
        problem: String,
    },
    /// There is no second port for other ranks.
    #[error(
        "`--listen {address}`, where other ranks of the learner are to reach this one as well: {problem}"
    )]
    ListenToRanks {
        /// As asked for.
        address: ListenAddress,
        /// Why not, and what to do.
        problem: String,
    },
    /// The coordinator cannot be reached or does not want this learner.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The directory that it was given is not for it.
    #[error(transparent)]
    Directory(#[from] CoordinatorsDirectory),
    /// The config that the coordinator handed out does not parse.
    #[error("the run config of the coordinator: {0}")]
    Config(config::ConfigErrors),
    /// This process computes otherwise than the run wants.
    #[error(transparent)]
    Determinism(#[from] OtherDeterminism),
    /// Training cannot go on.
    #[error(transparent)]
    Training(#[from] LearnerError),
    /// The training thread is gone.
    #[error("the training thread panicked; its message is above")]
    Panicked,
    /// Workers or the coordinator would hear no more of this learner.
    #[error("the task that {task} ended before the run: {reason}")]
    TaskEnded {
        /// What it is there for.
        task: &'static str,
        /// How it ended.
        reason: String,
    },
}

impl ServeError {
    /// The exit code that tells the kind of error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Determinism(_) | Self::Directory(_) => exit_code::BAD_USAGE,
            Self::Service(error) => error.exit_code(),
            Self::Training(error) => match error.not_owner() {
                Some(refusal) => refusal.exit_code(),
                None if error.is_bad_input() => exit_code::BAD_USAGE,
                None => exit_code::FAILED,
            },
            _ => exit_code::FAILED,
        }
    }

    /// Whether this process may not change the run directory, or not any more.
    pub(super) fn is_not_owner(&self) -> bool {
        match self {
            Self::Service(error) => error.is_not_owner(),
            Self::Training(error) => error.not_owner().is_some(),
            _ => false,
        }
    }
}
