//! What a process asks before each of its changes of a run directory.

use super::claim::{newest_claim, read_record};
use super::{Fenced, Holder, OwnerRecord};
use crate::durable::{self, Permit};
use crate::{RunDirectory, ServiceError};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Digits of a nonce that stand in temporary names.
const TAG_DIGITS: usize = 8;

/// The place of this process in a run directory.
pub(super) struct Fence {
    directory: RunDirectory,
    own: Holder,
    role: Role,
}

enum Role {
    Owner {
        epoch: u64,
        /// As it is to stand in `owner.json`.
        record: Mutex<OwnerRecord>,
    },
    Learner {
        /// Highest that it has seen.
        newest_epoch: AtomicU64,
    },
}

impl Fence {
    pub(super) fn of_owner(directory: RunDirectory, record: OwnerRecord) -> Self {
        let (own, epoch) = (record.owner.clone(), record.epoch);
        Self { directory, own, role: Role::Owner { epoch, record: Mutex::new(record) } }
    }

    pub(super) fn of_learner(directory: RunDirectory) -> Self {
        let role = Role::Learner { newest_epoch: AtomicU64::new(0) };
        Self { directory, own: Holder::of_this_process(), role }
    }

    /// Of an owner; a learner has none of its own.
    pub(super) fn epoch(&self) -> u64 {
        match &self.role {
            Role::Owner { epoch, .. } => *epoch,
            Role::Learner { newest_epoch } => newest_epoch.load(Ordering::Relaxed),
        }
    }

    /// Writes what `owner.json` is to hold; a learner writes nothing.
    pub(super) fn publish(&self) -> Result<(), ServiceError> {
        match &self.role {
            Role::Owner { epoch, record } => self.write(*epoch, &lock(record)),
            Role::Learner { .. } => Ok(()),
        }
    }

    /// Changes what `owner.json` is to hold, if that is a change; a learner changes nothing.
    pub(super) fn change(&self, change: impl FnOnce(&mut OwnerRecord)) -> Result<(), ServiceError> {
        let Role::Owner { epoch, record } = &self.role else { return Ok(()) };
        let mut record = lock(record);
        let mut changed = record.clone();
        change(&mut changed);
        if changed == *record {
            return Ok(());
        }
        self.write(*epoch, &changed)?;
        *record = changed;
        Ok(())
    }

    fn write(&self, epoch: u64, record: &OwnerRecord) -> Result<(), ServiceError> {
        let text =
            serde_json::to_vec_pretty(record).expect("the record has a JSON form; anything else is a bug");
        let claim = HighestClaim { fence: self, epoch, tag: format!("{}-{epoch}", self.tag()) };
        durable::write_file_by(&claim, &self.directory.owner_file(), &text)?;
        // Whoever made a higher claim before this was written puts it right; it counts for nobody.
        claim.check()
    }

    fn fenced(&self, fenced: Fenced) -> ServiceError {
        ServiceError::NotOwner { directory: self.directory.path().to_owned(), fenced: Box::new(fenced) }
    }

    fn check_owner(&self, epoch: u64) -> Result<(), ServiceError> {
        let found = read_record(&self.directory)?;
        if let Some(found) = &found {
            found.check_owner(epoch, &self.own).map_err(|fenced| self.fenced(fenced))?;
        }
        match found.is_some_and(|found| found.epoch == epoch) {
            true => Ok(()),
            // It is lost, or an earlier owner wrote it too late.
            false => self.publish(),
        }
    }

    fn check_learner(&self, newest_epoch: &AtomicU64) -> Result<(), ServiceError> {
        let found = read_record(&self.directory)?;
        let found = found.ok_or_else(|| {
            let lost = std::io::Error::from(std::io::ErrorKind::NotFound);
            durable::failed("read who owns the run in", &self.directory.owner_file())(lost)
        })?;
        let newest = newest_epoch.fetch_max(found.epoch, Ordering::Relaxed);
        found.check_learner(newest, &self.own).map_err(|fenced| self.fenced(fenced))
    }
}

impl Permit for Fence {
    fn check(&self) -> Result<(), ServiceError> {
        match &self.role {
            Role::Owner { epoch, .. } => self.check_owner(*epoch),
            Role::Learner { newest_epoch } => self.check_learner(newest_epoch),
        }
    }

    fn tag(&self) -> &str {
        &self.own.nonce[..TAG_DIGITS.min(self.own.nonce.len())]
    }
}

/// The right to write `owner.json` itself: whoever made the highest claim has it.
struct HighestClaim<'a> {
    fence: &'a Fence,
    epoch: u64,
    tag: String,
}

impl Permit for HighestClaim<'_> {
    fn check(&self) -> Result<(), ServiceError> {
        match newest_claim(&self.fence.directory)? {
            Some(claim) if claim.epoch > self.epoch => {
                let OwnerRecord { owner, epoch, since, .. } = claim.record();
                Err(self.fence.fenced(Fenced::Superseded { by: owner, epoch, since }))
            }
            _ => Ok(()),
        }
    }

    fn tag(&self) -> &str {
        &self.tag
    }
}

fn lock(record: &Mutex<OwnerRecord>) -> MutexGuard<'_, OwnerRecord> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}
