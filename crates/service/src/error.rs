//! Errors of this crate.

use crate::exit_code;
use crate::network::NetworkError;
use crate::ownership::Fenced;
use crate::trust::TrustError;
use protocol::JoinRefusal;
use std::path::PathBuf;
use std::time::Duration;

/// What can go wrong between a process and its surroundings.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// An address does not parse.
    #[error("unreadable address `{address}`: {remedy}")]
    Address {
        /// As given, but for passwords.
        address: String,
        /// What is wrong, or what to write.
        remedy: &'static str,
    },
    /// Nobody answered for as long as the caller was ready to wait.
    #[error("nobody answered at {address} within {} s", patience.as_secs_f64())]
    Unreachable {
        /// Who was called.
        address: String,
        /// How long it was tried.
        patience: Duration,
        /// The last failure.
        #[source]
        source: tonic::transport::Error,
    },
    /// The coordinator does not want this member.
    #[error("the coordinator at {address} refuses member `{member_id}`: {}", refusal.reason)]
    Refused {
        /// The coordinator.
        address: String,
        /// Who asked.
        member_id: String,
        /// Why.
        refusal: JoinRefusal,
    },
    /// The coordinator has been away for longer than the grace; a later start can take over.
    #[error("the coordinator at {address} has been away for {} s", grace.as_secs_f64())]
    CoordinatorGone {
        /// The coordinator.
        address: String,
        /// How long it was waited for.
        grace: Duration,
    },
    /// A call to the coordinator failed for a reason that trying again does not cure.
    #[error("the coordinator at {address} failed a call: {}", source.message())]
    Call {
        /// The coordinator.
        address: String,
        /// Its answer.
        #[source]
        source: Box<tonic::Status>,
    },
    /// What the coordinator sent is not whole.
    #[error("what the coordinator at {address} sends is damaged: {what}; try again")]
    Damaged {
        /// The coordinator.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// The other side is not trusted, or does not trust this process.
    #[error("{address}: {problem}")]
    Untrusted {
        /// Who was called.
        address: String,
        /// What is wrong, and the remedy.
        #[source]
        problem: Box<TrustError>,
    },
    /// Metrics cannot be shown where they were asked for.
    #[error("`--metrics-listen {place}`: {problem}")]
    MetricsPlace {
        /// As asked for.
        place: String,
        /// Why not, and what to do.
        #[source]
        problem: Box<NetworkError>,
    },
    /// Weights cannot be served to other workers.
    #[error("weights cannot be sent on to other workers: {0}")]
    RelayPlace(#[source] Box<NetworkError>),
    /// A server broke.
    #[error("the server broke")]
    Serve(#[from] tonic::transport::Error),
    /// This process cannot show who it is.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A file or directory could not be written, read or renamed.
    #[error("failed to {action} {}", path.display())]
    File {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// This process may not change a run directory, or not any more.
    #[error("{}: {fenced}", directory.display())]
    NotOwner {
        /// The directory.
        directory: PathBuf,
        /// Why not.
        fenced: Box<Fenced>,
    },
    /// Signal handlers could not be installed.
    #[error("failed to listen for signals")]
    Signals {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// `RUST_LOG` does not parse or logging was set up before.
    #[error("failed to set up logging; check RUST_LOG: {reason}")]
    Logging {
        /// Why.
        reason: String,
    },
}

impl ServiceError {
    /// Whether nobody answered, which may pass.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Call { source, .. } => crate::connect::is_outage(source),
            _ => false,
        }
    }

    /// The exit code that tells the kind of error.
    pub fn exit_code(&self) -> u8 {
        match self {
            error if error.is_outage() => exit_code::RETRY,
            error if error.is_superseded() => exit_code::FENCED,
            Self::CoordinatorGone { .. } | Self::NotOwner { .. } | Self::Damaged { .. } => exit_code::RETRY,
            Self::Refused { refusal, .. } => exit_code::of_refusal(refusal),
            Self::Address { .. } | Self::MetricsPlace { .. } | Self::Trust(_) | Self::Untrusted { .. } => {
                exit_code::BAD_USAGE
            }
            _ => exit_code::FAILED,
        }
    }

    /// Whether this process may not change a run directory, for now or for good.
    pub fn is_not_owner(&self) -> bool {
        matches!(self, Self::NotOwner { .. })
    }

    /// Whether another process has the place of this one for good.
    pub fn is_superseded(&self) -> bool {
        matches!(self, Self::NotOwner { fenced, .. } if matches!(**fenced, Fenced::Superseded { .. }))
    }

    /// Whether the disk was full, which may pass when space is made.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
    }
}
