//! Bringing the members of a run to life and keeping them so: [`Keeper`] decides, a [`Launcher`] acts, and
//! [`Supervisor`] stands between them and the run.

pub mod capacity;
pub mod exit_report;
mod handle;
mod keeper;
mod local;
mod restart;
pub mod ssh;
mod supervisor;

use crate::membership::Applicant;
use std::collections::BTreeMap;

pub use crate::member_name::MemberName;
pub use exit_report::ExitReport;
pub use handle::{Handle, RemoteStart};
pub use keeper::{Action, Keeper, Roster, Sight};
pub use local::{Contact, LocalLauncher, is_member_process, living_processes, programs};
pub use ssh::SshLauncher;
pub use supervisor::Supervisor;
pub(crate) use supervisor::set_aside_notice;

/// A place where the members of a run can run.
///
/// What it is asked for need not be done when it returns; [`Launcher::observe`] tells how far it got.
pub trait Launcher: Send {
    /// What would be started for a member, for people.
    fn describe(&self, member: MemberName) -> String;

    /// Asks for a member that is not there; it is observed from now on, as one that has ended if it cannot be started.
    fn start(&mut self, member: MemberName);

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
