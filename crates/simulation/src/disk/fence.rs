//! Whether the process at work may change the run that is on the disk.

use crate::disk::{Disk, DiskFault};
use crate::process::holder;
use service::{Fenced, OwnerRecord};

/// Where the owner of the run stands.
pub const OWNER_FILE: &str = "run/owner.json";

/// The owner of the run, if it has one.
pub fn read(disk: &Disk) -> Option<OwnerRecord> {
    serde_json::from_slice(disk.read(OWNER_FILE)?).ok()
}

/// Whether the process at work may change the run; without an owner, as in tests of the disk, anybody may.
///
/// # Errors
/// If it may not.
pub fn check(disk: &Disk) -> Result<(), DiskFault> {
    let (Some(own), Some(record)) = (disk.at_work, read(disk)) else { return Ok(()) };
    record.check_learner(0, &holder(own)).map_err(|fenced| match fenced {
        Fenced::Superseded { .. } => DiskFault::Superseded,
        Fenced::Withdrawn { .. } => DiskFault::Withdrawn,
    })
}
