//! Errors of the coordinator and the exit codes they come to.

use crate::advice;
use crate::cards::SeatingError;
use crate::launch::exit_report::ExitReport;
use crate::living_members::LivingMembers;
use service::{ServiceError, exit_code};
use std::path::PathBuf;

/// What can go wrong between a command and its outcome.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The command cannot be carried out as given.
    #[error("{0}")]
    Usage(String),
    /// The run config has problems.
    #[error("{} is not a valid run config:\n{problems}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// All of its problems.
        problems: config::ConfigErrors,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The rollout worker, asked about a model, broke down.
    #[error("{} ended with {status} when asked about the model: {output}", program.display())]
    Inspection {
        /// Its path.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// What it wrote to standard error.
        output: String,
    },
    /// A run that is to outlive its terminal cannot leave it.
    #[error("cannot leave the terminal's session")]
    Detach(#[source] std::io::Error),
    /// The learner, asked for what a run has trained, broke down.
    #[error("{} ended with {status} when asked for a checkpoint: {output}", program.display())]
    Branching {
        /// Its path.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// What it wrote to standard error.
        output: String,
    },
    /// A process of the run cannot be started.
    #[error("cannot start {}", program.display())]
    Spawn {
        /// Its path.
        program: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What is known of a run's processes cannot be read.
    #[error("{} is lost or damaged; `{}` makes it anew", path.display(), crate::advice::resume(path.parent().unwrap_or(path)))]
    RecordLost {
        /// The file.
        path: PathBuf,
        /// Why it cannot.
        #[source]
        source: std::io::Error,
    },
    /// What was trained is not all exported yet.
    #[error("{0}")]
    NotExported(String),
    /// A member's process ended in a way that starting it again does not cure.
    #[error("{0}")]
    MemberFailed(Box<ExitReport>),
    /// The run ended badly.
    #[error("the run failed: {reason}")]
    RunFailed {
        /// What was reported.
        reason: String,
        /// Whether config, model or prompts are at fault.
        bad_input: bool,
    },
    /// A living coordinator did not answer as it should.
    #[error("the coordinator refused: {}", .0.message())]
    Refused(#[source] Box<tonic::Status>),
    /// A living coordinator stopped answering in the middle of an answer.
    #[error(
        "the coordinator at {address} answers no more: it has ended, or the way there is broken; try again"
    )]
    Lost {
        /// Where it was.
        address: String,
        /// What was noticed.
        #[source]
        source: Box<tonic::Status>,
    },
    /// The run has no living coordinator.
    #[error(
        "the run in {} does not live; go on with it by `{}`{}",
        run.display(),
        advice::resume(run),
        living.left_behind()
    )]
    NotLiving {
        /// Its directory.
        run: PathBuf,
        /// Members without a coordinator.
        living: LivingMembers,
    },
    /// The run has no living coordinator since it is done.
    #[error(
        "the run in {} is done; `{}` shows what it came to, and `{}` goes on beyond its end",
        .0.display(),
        advice::on("status", .0),
        advice::lengthen(.0)
    )]
    Finished(PathBuf),
    /// Nor did its last coordinator note how it ended.
    #[error(
        "the coordinator of the run in {} was killed before it could note how the run ended; go on with it by `{}`{}",
        run.display(),
        advice::resume(run),
        living.left_behind()
    )]
    Killed {
        /// Its directory.
        run: PathBuf,
        /// Members without a coordinator.
        living: LivingMembers,
    },
    /// What every process can meet.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

impl CoordinatorError {
    /// The exit code that tells the kind of error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config { .. } => exit_code::BAD_USAGE,
            Self::RunFailed { bad_input: true, .. } => exit_code::BAD_USAGE,
            Self::MemberFailed(report) if report.is_bad_input() => exit_code::BAD_USAGE,
            Self::NotExported(_) | Self::Lost { .. } => exit_code::RETRY,
            Self::Service(error) if error.is_superseded() => exit_code::FENCED,
            _ => exit_code::FAILED,
        }
    }
}

/// The user asked for cards that are not there.
impl From<SeatingError> for CoordinatorError {
    fn from(error: SeatingError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<tonic::Status> for CoordinatorError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}
