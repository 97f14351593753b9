//! Errors of this crate.

use std::path::PathBuf;
use std::time::Duration;

/// What can go wrong between a process and its surroundings.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// An address does not parse.
    #[error("unreadable address `{address}`; write `http://host:port`")]
    Address {
        /// As given.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
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
    #[error("the coordinator at {address} refuses member `{member_id}`: {reason}")]
    Refused {
        /// The coordinator.
        address: String,
        /// Who asked.
        member_id: String,
        /// What the coordinator said.
        reason: String,
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
    /// Whether the disk was full, which may pass when space is made.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull)
    }
}
