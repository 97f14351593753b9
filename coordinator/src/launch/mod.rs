//! Bringing the members of a run to life and keeping them so: [`Keeper`] decides, a [`Launcher`] acts, and
//! [`Supervisor`] stands between them and the run.

pub mod capacity;
pub mod exit_report;
mod keeper;
mod local;
mod restart;
mod supervisor;

use crate::error::CoordinatorError;
use crate::membership::Applicant;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub use crate::member_name::MemberName;
pub use exit_report::ExitReport;
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
