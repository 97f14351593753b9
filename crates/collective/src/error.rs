//! Why what ranks do together fails, and who is to blame.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// A rank as errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number in the group.
    pub rank: usize,
    /// Where it is reached.
    pub address: SocketAddr,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} ({})", self.rank, self.address)
    }
}

/// Why ranks cannot go on together. After any of these but [`Self::Argument`], the group is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// A rank did not do its part in time: the one to blame.
    #[error("{peer} did not {part} within {} s", waited.as_secs_f64())]
    Late {
        /// Who was waited for.
        peer: Peer,
        /// What it was to do, as in "send its part of all-gather 7: 12 of 4096 bytes came".
        part: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A connection broke: the rank died, or left because of another one.
    #[error("{peer} is gone during {operation}: {problem}")]
    Gone {
        /// Whose connection broke.
        peer: Peer,
        /// What was being done.
        operation: String,
        /// What the connection says.
        problem: String,
    },
    /// Two ranks do different things at once: their programs or configs differ.
    #[error("{peer} is at {theirs} while this rank is at {ours}; do both run the same program and config?")]
    Disagreement {
        /// Who does something else.
        peer: Peer,
        /// What this rank does.
        ours: String,
        /// What the other does.
        theirs: String,
    },
    /// A rank does not let this one into its group.
    #[error("{peer} refuses this rank: {reason}")]
    Refused {
        /// Who refuses.
        peer: Peer,
        /// Why, in its words.
        reason: String,
    },
    /// This process gave up.
    #[error("aborted: {0}")]
    Aborted(String),
    /// The group failed earlier.
    #[error("this group of ranks already failed ({0}); make a new one")]
    Spent(String),
    /// The caller asks for what cannot be.
    #[error("{0}")]
    Argument(String),
    /// The operating system refuses something that has to do with no rank.
    #[error("{doing}: {problem}")]
    System {
        /// What was tried.
        doing: String,
        /// What the system says.
        problem: String,
    },
}
