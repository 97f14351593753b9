//! Cells: which members share a communicator, and how they come to and get rid of it together.
//!
//! The coordinator leads ([`CellLeader`]): prepare, ready, form, formed. Each attempt is an epoch of its own. A member that
//! leaves, fails or does not answer ends the epoch for all, and the next one is prepared without it when all others have
//! said that the old one is gone. So no two epochs are ever formed at once. Who joins waits for the next epoch and takes
//! weights by gRPC meanwhile. Two failures without a synchronization between them, and the cell falls back to gRPC.
//!
//! Every member runs a [`CellMember`], which stands between the coordinator's words and the thread that owns the
//! communicator.

mod leader;
mod member;
#[cfg(test)]
mod schedule_tests;
#[cfg(test)]
mod table_tests;

pub use leader::{CellAction, CellEvent, CellLeader, CellNotice};
pub use member::{CellMember, MemberAction, MemberEvent};

use std::time::Duration;

/// How long each part of an epoch may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CellLimits {
    /// From the last change of the members to the epoch that takes it in: others may follow.
    pub gather: Duration,
    /// From the call to prepare until all are ready.
    pub prepare: Duration,
    /// From the call to form until all have.
    pub form: Duration,
    /// One synchronization of weights.
    pub sync: Duration,
    /// From the call to end until the communicator of each member is gone.
    pub end: Duration,
}

impl Default for CellLimits {
    fn default() -> Self {
        Self {
            gather: Duration::from_secs(5),
            prepare: Duration::from_secs(20),
            form: Duration::from_secs(60),
            sync: Duration::from_secs(120),
            end: Duration::from_secs(15),
        }
    }
}
