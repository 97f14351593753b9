//! The files by which owners of a run are told apart: one claim in `owners` for each epoch, of which the highest counts, and
//! `owner.json`.

use super::{Holder, OwnedDirectory, OwnerRecord};
use crate::durable::{self, failed};
use crate::membership::this_process;
use crate::{RunDirectory, ServiceError, host_name};
use std::fs::{self, File, FileTimes};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::SystemTime;

/// Tells one boot of a machine from any other.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A claim that was made.
pub(super) struct Claim {
    pub(super) epoch: u64,
    path: PathBuf,
}

impl Holder {
    /// This process.
    pub fn of_this_process() -> Self {
        Self::of(&this_process())
    }
}

impl Claim {
    /// Who made it; unknown where it was not written to its end.
    pub(super) fn record(&self) -> OwnerRecord {
        let unknown = || OwnerRecord {
            epoch: self.epoch,
            owner: Holder { host: String::new(), pid: 0, nonce: String::new() },
            machine: String::new(),
            since: 0,
            is_released: false,
            learner: None,
        };
        let bytes = config::read_whole(&self.path, config::MOST_SETTINGS_BYTES).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_else(|_| unknown())
    }
}

/// What this machine is called until it is started again; empty where the system does not tell.
pub(super) fn this_machine() -> String {
    fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Whether an owner is a process of this machine, where locks of files and process ids tell of it.
pub fn is_of_this_machine(record: &OwnerRecord) -> bool {
    record.owner.host == host_name() && !record.machine.is_empty() && record.machine == this_machine()
}

/// What `owner.json` holds; nothing where there is none or it is damaged.
///
/// # Errors
/// If it cannot be read.
pub(super) fn read_record(directory: &RunDirectory) -> Result<Option<OwnerRecord>, ServiceError> {
    let path = directory.owner_file();
    match config::read_whole(&path, config::MOST_SETTINGS_BYTES) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read who owns the run in", &path)(error)),
    }
}

/// Who owns a run and has not ended in good order, dead or alive; nobody where it has no owner.
///
/// # Errors
/// If that cannot be read.
pub fn incumbent(directory: &RunDirectory) -> Result<Option<OwnerRecord>, ServiceError> {
    let (recorded, claim) = (read_record(directory)?, newest_claim(directory)?);
    let newest = match (recorded, claim) {
        // Whoever made the claim is about to be the owner, or died before.
        (Some(recorded), Some(claim)) if claim.epoch > recorded.epoch => Some(claim.record()),
        (None, claim) => claim.map(|claim| claim.record()),
        (recorded, _) => recorded,
    };
    Ok(newest.filter(|record| !record.is_released))
}

/// When the newest owner last gave a sign of life, by its clock.
pub fn sign_of_life(directory: &RunDirectory) -> Option<SystemTime> {
    let claim = newest_claim(directory).ok()??;
    // Opened, so that a network file system asks its server.
    File::open(claim.path).ok()?.metadata().ok()?.modified().ok()
}

/// The claim of the highest epoch.
pub(super) fn newest_claim(directory: &RunDirectory) -> Result<Option<Claim>, ServiceError> {
    Ok(claims(directory)?.into_iter().max_by_key(|claim| claim.epoch))
}

fn claims(directory: &RunDirectory) -> Result<Vec<Claim>, ServiceError> {
    let folder = directory.owners();
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", &folder))?,
    };
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let paths = paths.map_err(failed("list", &folder))?.into_iter();
    Ok(paths
        .filter_map(|path| Some(Claim { epoch: path.file_name()?.to_str()?.parse().ok()?, path }))
        .collect())
}

/// Takes the next epoch that nobody has, above `epoch_before`, for the owner of a record.
pub(super) fn take_epoch(
    directory: &RunDirectory,
    epoch_before: u64,
    record: &mut OwnerRecord,
) -> Result<(), ServiceError> {
    let folder = directory.owners();
    durable::create_directory(&folder)?;
    let recorded = read_record(directory)?.map_or(0, |record| record.epoch);
    let claimed = newest_claim(directory)?.map_or(0, |claim| claim.epoch);
    record.epoch = recorded.max(claimed).max(epoch_before);
    loop {
        record.epoch += 1;
        let path = directory.claim(record.epoch);
        match File::options().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            file => {
                let text = serde_json::to_vec_pretty(record)
                    .expect("the record has a JSON form; anything else is a bug");
                file.and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()))
                    .map_err(failed("write", &path))?;
                return durable::sync_directory(&folder);
            }
        }
    }
}

/// Touches the claim of a living owner.
pub(super) fn beat(directory: &OwnedDirectory, epoch: u64) -> Result<(), ServiceError> {
    let path = directory.claim(epoch);
    let now = SystemTime::now();
    // Both times: of one alone, some FUSE file systems (bindfs) change none, and say that they did.
    let times = FileTimes::new().set_accessed(now).set_modified(now);
    let touched = File::options().write(true).open(&path).and_then(|file| file.set_times(times));
    touched.map_err(failed("touch", &path))
}

/// Removes the claims below that of the owner.
pub(super) fn remove_earlier_claims(directory: &RunDirectory, epoch: u64) -> Result<(), ServiceError> {
    for claim in claims(directory)?.into_iter().filter(|claim| claim.epoch < epoch) {
        // Another that has it removed does the same.
        let _ = fs::remove_file(&claim.path);
    }
    Ok(())
}
