//! The right to change a run directory, which several hosts may reach.
//!
//! 1. One coordinator owns a run. It has the highest epoch, which it took by making the file `owners/EPOCH`: of two that
//!    want the same number the file system lets one make it. `owner.json` says who it is, and which learner may write.
//! 2. Whatever changes a run directory does so through an [`OwnedDirectory`], which reads `owner.json` again right before
//!    every change that others see, and refuses once that names somebody else.
//! 3. Between that look and the change a process may be stopped for as long as it likes; so one change may come too late,
//!    and never more. `docs/network.md` says for each kind why that does no harm.
//! 4. A living owner touches its file in `owners` every second. Who wants the run from another host, where locks of files
//!    tell nothing, watches that for [`OWNER_LEASE`].

mod claim;
mod fence;
mod record;
mod vigil;

use crate::durable::{self, Permit};
use crate::{RunDirectory, ServiceError};
use claim::{beat, remove_earlier_claims, take_epoch};
use fence::Fence;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use claim::{incumbent, is_of_this_machine, sign_of_life};
pub use record::{Fenced, Holder, OwnerRecord, utc};
pub use vigil::{OWNER_LEASE, Seen, Vigil};

/// A run directory that this process may change, for as long as `owner.json` says so.
#[derive(Clone)]
pub struct OwnedDirectory {
    directory: RunDirectory,
    fence: Arc<Fence>,
}

/// Where its files are.
impl Deref for OwnedDirectory {
    type Target = RunDirectory;

    fn deref(&self) -> &RunDirectory {
        &self.directory
    }
}

impl OwnedDirectory {
    /// A run directory for the learner of this process, which the coordinator has let in.
    ///
    /// # Errors
    /// If `owner.json` does not name this process, or cannot be read.
    pub fn of_learner(directory: RunDirectory) -> Result<Self, ServiceError> {
        let fence = Arc::new(Fence::of_learner(directory.clone()));
        fence.check()?;
        Ok(Self { directory, fence })
    }

    /// Whether this process may still change the directory.
    ///
    /// # Errors
    /// [`ServiceError::NotOwner`] if it may not; another if that cannot be found out.
    pub fn check(&self) -> Result<(), ServiceError> {
        self.fence.check()
    }

    /// As [`durable::write_file`].
    ///
    /// # Errors
    /// As there, and as [`Self::check`].
    pub fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), ServiceError> {
        durable::write_file_by(&*self.fence, path, bytes)
    }

    /// As [`durable::append_line`], to a file that this process has written as a whole before.
    ///
    /// # Errors
    /// As there, and as [`Self::check`].
    pub fn append_line(&self, path: &Path, line: &str) -> Result<(), ServiceError> {
        durable::append_line_by(&*self.fence, path, line)
    }

    /// As [`durable::create_directory`].
    ///
    /// # Errors
    /// As there, and as [`Self::check`].
    pub fn create_directory(&self, path: &Path) -> Result<(), ServiceError> {
        self.check()?;
        durable::create_directory(path)
    }

    /// As [`durable::write_directory`].
    ///
    /// # Errors
    /// As there, and as [`Self::check`].
    pub fn write_directory<E: From<ServiceError>>(
        &self,
        path: &Path,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        durable::write_directory_by(&*self.fence, path, fill)
    }

    /// As [`durable::clear_leftovers`].
    ///
    /// # Errors
    /// As there, and as [`Self::check`].
    pub fn clear_leftovers(&self, directory: &Path) -> Result<(), ServiceError> {
        durable::clear_leftovers_by(&*self.fence, directory, "")
    }

    /// Removes what interrupted writes of one file left beside it, and of files whose names begin with its name and a dot.
    ///
    /// # Errors
    /// If the file system refuses, and as [`Self::check`].
    pub fn clear_leftovers_of(&self, path: &Path) -> Result<(), ServiceError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let directory = path.parent().unwrap_or(Path::new("."));
        durable::clear_leftovers_by(&*self.fence, directory, &format!("{name}."))
    }

    /// As [`durable::discard_directory`].
    ///
    /// # Errors
    /// As there, and as [`Self::check`].
    pub fn discard_directory(&self, path: &Path) -> Result<(), ServiceError> {
        durable::discard_directory_by(&*self.fence, path)
    }

    /// Gives a file or directory another name beside its own, in place of a file that has it, and makes that durable.
    ///
    /// # Errors
    /// If the file system refuses, as where a directory that is not empty has the name, and as [`Self::check`].
    pub fn rename(&self, from: &Path, to: &Path) -> Result<(), ServiceError> {
        self.check()?;
        fs::rename(from, to).map_err(durable::failed("rename", from))?;
        durable::sync_directory(to.parent().unwrap_or(Path::new(".")))
    }

    /// Removes a file; none there is fine.
    ///
    /// # Errors
    /// If the file system refuses, and as [`Self::check`].
    pub fn remove_file(&self, path: &Path) -> Result<(), ServiceError> {
        self.check()?;
        match fs::remove_file(path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(durable::failed("remove", path)(source))
            }
            _ => Ok(()),
        }
    }

    /// The name under which this process makes what is to have the name `path`; [`Self::clear_leftovers`] knows it.
    pub fn partial_name(&self, path: &Path) -> PathBuf {
        durable::partial_name(&*self.fence, path)
    }
}

/// The ownership of a run directory, which the coordinator has.
pub struct Ownership {
    owned: OwnedDirectory,
}

impl Ownership {
    /// Makes this process the owner of a run directory, whoever was before, with an epoch above all earlier ones and above
    /// `epoch_before`. `learner` may go on changing the run.
    ///
    /// # Errors
    /// [`ServiceError::NotOwner`] if another process does the same and has a higher epoch; another if the file system
    /// refuses.
    pub fn claim(
        directory: &RunDirectory,
        epoch_before: u64,
        learner: Option<Holder>,
    ) -> Result<Self, ServiceError> {
        let mut record = OwnerRecord {
            epoch: 0,
            owner: Holder::of_this_process(),
            machine: claim::this_machine(),
            since: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            is_released: false,
            learner,
        };
        take_epoch(directory, epoch_before, &mut record)?;
        let fence = Fence::of_owner(directory.clone(), record);
        fence.publish()?;
        fence.check()?;
        remove_earlier_claims(directory, fence.epoch())?;
        Ok(Self { owned: OwnedDirectory { directory: directory.clone(), fence: Arc::new(fence) } })
    }

    /// The directory, to be changed.
    pub fn directory(&self) -> &OwnedDirectory {
        &self.owned
    }

    /// Higher than that of any owner before.
    pub fn epoch(&self) -> u64 {
        self.owned.fence.epoch()
    }

    /// Gives a sign of life, and puts right what an earlier owner wrote too late.
    ///
    /// # Errors
    /// [`ServiceError::NotOwner`] once another process is the owner; another if the file system refuses.
    pub fn beat(&self) -> Result<(), ServiceError> {
        self.owned.check()?;
        beat(&self.owned, self.epoch())
    }

    /// Records which learner may change the run: from then on no other one does. Of several that record at once the last
    /// one asks `learner` last.
    ///
    /// # Errors
    /// As [`Self::beat`]; the learner of before may then still change the run.
    pub fn let_write(&self, learner: impl FnOnce() -> Option<Holder>) -> Result<(), ServiceError> {
        self.owned.fence.change(|record| record.learner = learner())
    }

    /// Lets the next owner begin at once, wherever it is.
    ///
    /// # Errors
    /// As [`Self::beat`].
    pub fn release(&self) -> Result<(), ServiceError> {
        self.owned.fence.change(|record| (record.is_released, record.learner) = (true, None))
    }
}

#[cfg(test)]
mod tests;
