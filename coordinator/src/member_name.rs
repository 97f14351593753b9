//! Names of the members that a launcher starts.

use proto::Role;
use std::fmt;

/// A member that is started by a launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberName {
    /// The learner.
    Learner,
    /// A rollout worker, by its position.
    Worker(u32),
}

impl MemberName {
    /// The member with that id, if it is one that a launcher gives.
    pub fn parse(member_id: &str) -> Option<Self> {
        match member_id {
            "learner" => Some(Self::Learner),
            _ => Some(Self::Worker(member_id.strip_prefix("worker-")?.parse().ok()?)),
        }
    }

    /// As what it joins.
    pub fn role(self) -> Role {
        match self {
            Self::Learner => Role::Learner,
            Self::Worker(_) => Role::RolloutWorker,
        }
    }
}

/// The member id.
impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Learner => f.write_str("learner"),
            Self::Worker(position) => write!(f, "worker-{position}"),
        }
    }
}
