//! Bringing the members of a run to life and keeping them so: [`Keeper`] decides, a [`Launcher`] acts, and
//! [`Supervisor`] stands between them and the run.

pub mod capacity;
mod keeper;
mod local;
mod restart;
mod supervisor;

use crate::error::CoordinatorError;
use crate::membership::Applicant;
use proto::Role;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

pub use keeper::{Action, Keeper, Roster, Sight};
pub use local::{LocalLauncher, is_member_process, living_processes, programs};
pub use supervisor::Supervisor;

/// A place where the members of a run can run.
///
/// What it is asked for need not be done when it returns; [`Launcher::observe`] tells how far it got.
pub trait Launcher: Send {
    /// What would be started for a member, for people.
    fn describe(&self, member: MemberName) -> String;

    /// Asks for a member that is not there; it is observed from now on.
    ///
    /// # Errors
    /// If it is already clear that it cannot be started.
    fn start(&mut self, member: MemberName) -> Result<(), CoordinatorError>;

    /// Takes over a member that an earlier coordinator started; whether it still lives.
    fn adopt(&mut self, member: MemberName, handle: Handle) -> bool;

    /// Asks a member to end, or makes it; one that has ended is left alone, however often it is signalled.
    fn signal(&mut self, member: MemberName, signal: Signal);

    /// What is seen of the members that were started or adopted, each until it is forgotten.
    fn observe(&mut self) -> BTreeMap<MemberName, Observed>;

    /// Drops what is known of a member that has ended.
    fn forget(&mut self, member: MemberName);

    /// What the next coordinator adopts the members by that are not forgotten.
    fn handles(&self) -> BTreeMap<MemberName, Handle>;

    /// Whether who joined under a member's name is what was started or adopted as that member.
    fn is_own(&self, member: MemberName, applicant: &Applicant) -> bool;
}

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

/// A number by which a launcher finds a member again, as `run.json` keeps it. Only the launcher knows of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Handle(pub u32);

/// How a member is made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// In good order.
    Terminate,
    /// At once.
    Kill,
}

/// How far a member has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It was asked for and does not run yet, and why.
    Pending(String),
    /// It runs.
    Running,
    /// It has ended.
    Exited(ExitReport),
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
