//! Who is started, and how it ended.

use proto::Role;
use std::fmt;
use std::path::PathBuf;

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

/// How a member ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitReport {
    /// Who.
    pub member: MemberName,
    /// Its exit code; `None` where there was none, or nobody could tell.
    pub code: Option<i32>,
    /// How it ended, in words.
    pub how: String,
    /// Its log.
    pub log: PathBuf,
    /// The last lines of its log.
    pub last_lines: Vec<String>,
}

impl ExitReport {
    /// Whether the exit code says that the process was given bad input.
    pub fn is_bad_input(&self) -> bool {
        self.code == Some(service::exit_code::BAD_USAGE.into())
    }
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}; the end of its log, {}:", self.member, self.how, self.log.display())?;
        self.last_lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}
