//! What stands before the bytes of an operation, so that ranks which do different things at once find out.

use crate::{CollectiveError, Peer};
use std::fmt;

/// Bytes of a header: the operation's number in the group, its kind, and how many bytes follow.
pub(super) const HEADER: usize = 24;

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Broadcast,
    AllGather,
    AllToAll,
    Barrier,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Broadcast, Self::AllGather, Self::AllToAll, Self::Barrier];

    fn code(self) -> u64 {
        match self {
            Self::Broadcast => 1,
            Self::AllGather => 2,
            Self::AllToAll => 3,
            Self::Barrier => 4,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Broadcast => "broadcast",
            Self::AllGather => "all-gather",
            Self::AllToAll => "all-to-all",
            Self::Barrier => "barrier",
        }
    }
}

/// One operation of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub kind: Kind,
    /// How many operations came before.
    pub number: u64,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.number)
    }
}

impl Operation {
    /// What stands before so many bytes.
    pub fn header(self, n_bytes: usize) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&self.number.to_le_bytes());
        header[8..16].copy_from_slice(&self.kind.code().to_le_bytes());
        header[16..].copy_from_slice(&(n_bytes as u64).to_le_bytes());
        header
    }

    /// Compares what another rank does.
    ///
    /// # Errors
    /// If it is not the same.
    pub fn check(self, peer: Peer, n_bytes: usize, header: &[u8; HEADER]) -> Result<(), CollectiveError> {
        if *header == self.header(n_bytes) {
            return Ok(());
        }
        let word = |idx: usize| {
            header
                .chunks_exact(8)
                .nth(idx)
                .map_or(0, |word| word.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
        };
        let kind = Kind::ALL.into_iter().find(|kind| kind.code() == word(1));
        let theirs = kind.map_or("an unknown operation", Kind::name);
        let theirs = format!("{theirs} {} with {} bytes", word(0), word(2));
        Err(CollectiveError::Disagreement { peer, ours: format!("{self} with {n_bytes} bytes"), theirs })
    }
}
