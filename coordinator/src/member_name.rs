//! Names of the members that a launcher starts.

use proto::Role;
use std::fmt;

/// A member that is started by a launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberName {
    /// A rank of the learner.
    Learner(u32),
    /// A rollout worker, by its position.
    Worker(u32),
}

impl MemberName {
    /// The member with that id, if it is one that a launcher gives.
    pub fn parse(member_id: &str) -> Option<Self> {
        if member_id == "learner" {
            return Some(Self::Learner(0));
        }
        let (kind, number) = member_id.rsplit_once('-')?;
        let number = number.parse().ok()?;
        match kind {
            "learner" if number > 0 => Some(Self::Learner(number)),
            "worker" => Some(Self::Worker(number)),
            _ => None,
        }
    }

    /// Whether it is a rank of the learner.
    pub fn is_learner(self) -> bool {
        matches!(self, Self::Learner(_))
    }

    /// As what it joins.
    pub fn role(self) -> Role {
        match self {
            Self::Learner(_) => Role::Learner,
            Self::Worker(_) => Role::RolloutWorker,
        }
    }
}

/// The member id.
impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Learner(0) => f.write_str("learner"),
            Self::Learner(rank) => write!(f, "learner-{rank}"),
            Self::Worker(position) => write!(f, "worker-{position}"),
        }
    }
}
