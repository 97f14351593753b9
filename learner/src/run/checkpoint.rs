//! Checkpoint directories: the run's one durable truth.
//!
//! 1. A directory `iteration-000123` is complete or absent: it is filled under a temporary name, the manifest last,
//!    every file synced, then renamed, then its parent synced.
//! 2. What the manifest does not confirm, by size and BLAKE3, is not loaded.
//! 3. A failed write leaves all earlier checkpoints as they were.
//! 4. Only a learner that its coordinator lets changes them, and no two write under one temporary name.
//! 5. A damaged directory is set aside under another name: it must not count as one of the newest few that are kept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use service::{OwnedDirectory, ServiceError, durable};

const PREFIX: &str = "iteration-";
const DAMAGED_SUFFIX: &str = ".damaged";
const MANIFEST: &str = "manifest.json";
const BEST: &str = "best";
/// How Linux says that a disk has lost what was written: EIO, EBADMSG, EUCLEAN.
const LOST_SECTOR: [i32; 3] = [5, 74, 117];

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] ServiceError),
    /// Tensors could not be written or read.
    #[error(transparent)]
    Tensors(#[from] models::ModelError),
    /// A checkpoint is damaged.
    #[error("a checkpoint is damaged, {0}")]
    Damaged(#[from] Rejected),
    /// There are checkpoints, but none can be trusted.
    #[error(
        "no checkpoint in {} is intact ({}); restore one from a backup, or start a new run under another name",
        directory.display(),
        rejected.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    NoneIntact {
        /// Where checkpoints are kept.
        directory: PathBuf,
        /// Each with what is wrong with it.
        rejected: Vec<Rejected>,
    },
}

impl CheckpointError {
    /// The refusal, where this process may not change the run.
    pub fn not_owner(&self) -> Option<&ServiceError> {
        match self {
            Self::File(error) if error.is_not_owner() => Some(error),
            _ => None,
        }
    }
}

/// The checkpoints of one run, to be read.
pub struct Checkpoints {
    directory: PathBuf,
}

/// The checkpoints of a run that this process may change.
pub struct OwnedCheckpoints {
    checkpoints: Checkpoints,
    run: OwnedDirectory,
    keep_last: usize,
}

/// They can be read as well.
impl Deref for OwnedCheckpoints {
    type Target = Checkpoints;

    fn deref(&self) -> &Checkpoints {
        &self.checkpoints
    }
}

/// A checkpoint that is not what its manifest says.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct Rejected {
    /// Its directory.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// The newest checkpoint that can be trusted, and the newer ones that cannot.
#[derive(Debug)]
pub struct Newest {
    /// Version and directory; absent where there is no checkpoint at all.
    pub checkpoint: Option<(u32, PathBuf)>,
    /// Newer ones that were passed over.
    pub rejected: Vec<Rejected>,
}

/// Why a checkpoint cannot be used.
enum Fault {
    /// It is not what was written; an older one is taken.
    Damage(String),
    /// The file system refuses what it may grant another time: no word about the checkpoint, so no other one is taken.
    Refused(io::Error),
}

impl Fault {
    fn of(self, path: PathBuf) -> CheckpointError {
        match self {
            Self::Damage(reason) => Rejected { path, reason }.into(),
            Self::Refused(source) => ServiceError::File { action: "read", path, source }.into(),
        }
    }
}

/// Tells a file that is lost or unreadable for good from one that cannot be read now.
fn unreadable(what: &str, error: io::Error) -> Fault {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound, UnexpectedEof};
    let is_lost =
        matches!(error.kind(), InvalidData | IsADirectory | NotADirectory | NotFound | UnexpectedEof);
    match is_lost || error.raw_os_error().is_some_and(|code| LOST_SECTOR.contains(&code)) {
        true => Fault::Damage(format!("{what} cannot be read: {error}")),
        false => Fault::Refused(error),
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    files: BTreeMap<String, FileRecord>,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    blake3: String,
}

impl Checkpoints {
    /// The checkpoints in `directory`. Nothing is touched, since a learner may be writing there.
    pub fn of_run(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The directory of a version's checkpoint, if its files are what its manifest says.
    ///
    /// # Errors
    /// If they are not, there is none, or the file system refuses.
    pub fn intact(&self, version: u32) -> Result<PathBuf, CheckpointError> {
        self.check(version).map(|()| self.path(version))
    }

    /// Where the checkpoint of a version is or would be.
    pub fn path(&self, version: u32) -> PathBuf {
        self.directory.join(format!("{PREFIX}{version:06}"))
    }

    /// The newest checkpoint whose files are what its manifest says.
    ///
    /// # Errors
    /// If the directory or a file of a checkpoint cannot be read, or there are checkpoints but none is intact.
    pub fn newest_intact(&self) -> Result<Newest, CheckpointError> {
        let mut rejected = Vec::new();
        for version in self.versions()?.into_iter().rev() {
            let path = self.path(version);
            match self.check(version) {
                Ok(()) => return Ok(Newest { checkpoint: Some((version, path)), rejected }),
                Err(CheckpointError::Damaged(damaged)) => rejected.push(damaged),
                Err(error) => return Err(error),
            }
        }
        match rejected.is_empty() {
            true => Ok(Newest { checkpoint: None, rejected }),
            false => Err(CheckpointError::NoneIntact { directory: self.directory.clone(), rejected }),
        }
    }

    /// Checks that the files of a checkpoint are what its manifest says.
    ///
    /// # Errors
    /// If one is not, or the file system refuses.
    pub fn check(&self, version: u32) -> Result<(), CheckpointError> {
        let path = self.path(version);
        check(&path).map_err(|fault| fault.of(path))
    }

    /// BLAKE3 of a file of a checkpoint, as its manifest has it.
    ///
    /// # Errors
    /// If the manifest is damaged or does not have the file, or the file system refuses.
    pub fn digest(&self, version: u32, file: &str) -> Result<String, CheckpointError> {
        let path = self.path(version);
        let record = read_manifest(&path).and_then(|mut manifest| {
            let lacks = || Fault::Damage(format!("its {MANIFEST} does not have {file}"));
            manifest.files.remove(file).ok_or_else(lacks)
        });
        record.map(|record| record.blake3).map_err(|fault| fault.of(path))
    }

    /// Version of the checkpoint marked as the best one.
    pub fn best(&self) -> Option<u32> {
        version_of(fs::read_to_string(self.directory.join(BEST)).ok()?.trim())
    }

    /// Versions that have a checkpoint, in order.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn versions(&self) -> Result<Vec<u32>, CheckpointError> {
        let names = entries(&self.directory)?;
        let mut versions: Vec<u32> =
            names.iter().filter_map(|path| version_of(&path.file_name()?.to_string_lossy())).collect();
        versions.sort_unstable();
        Ok(versions)
    }
}

impl OwnedCheckpoints {
    /// The checkpoints of a run, whose directory is created if absent; what an interrupted write left there is removed.
    ///
    /// # Errors
    /// If the file system refuses, or the run is another learner's.
    pub fn open(run: &OwnedDirectory, keep_last: usize) -> Result<Self, CheckpointError> {
        let checkpoints = Checkpoints::of_run(&run.checkpoints());
        run.create_directory(&checkpoints.directory)?;
        run.clear_leftovers(&checkpoints.directory)?;
        // A process that was killed may have given a checkpoint its name and not have flushed that; it is resumed from now.
        durable::sync_directory(&checkpoints.directory)?;
        Ok(Self { checkpoints, run: run.clone(), keep_last: keep_last.max(1) })
    }

    /// Writes the checkpoint of `version`: `write_files` fills a temporary directory, the rest is done here.
    ///
    /// # Errors
    /// If `write_files` fails or the file system refuses; no checkpoint is touched then.
    pub fn write(
        &self,
        version: u32,
        write_files: impl FnOnce(&Path) -> Result<(), CheckpointError>,
    ) -> Result<PathBuf, CheckpointError> {
        let target = self.path(version);
        self.run.write_directory(&target, |directory| {
            write_files(directory)?;
            write_manifest(directory)
        })?;
        Ok(target)
    }

    /// Renames a damaged checkpoint, so that it is none any more; returns its new path.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn set_aside(&self, rejected: &Rejected) -> Result<PathBuf, CheckpointError> {
        let mut name = rejected.path.clone().into_os_string();
        name.push(DAMAGED_SUFFIX);
        let kept = PathBuf::from(name);
        if kept.exists() {
            self.run.discard_directory(&kept)?;
        }
        self.run.rename(&rejected.path, &kept)?;
        Ok(kept)
    }

    /// Names the checkpoint of `version` the best one, in the file `best`.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn mark_best(&self, version: u32) -> Result<(), CheckpointError> {
        Ok(self.run.write_file(&self.directory.join(BEST), format!("{PREFIX}{version:06}\n").as_bytes())?)
    }

    /// Removes all checkpoints but the newest few and the best.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn prune(&self, best: Option<u32>) -> Result<(), CheckpointError> {
        let versions = self.versions()?;
        let n_old = versions.len().saturating_sub(self.keep_last);
        for version in versions.into_iter().take(n_old).filter(|version| Some(*version) != best) {
            self.run.discard_directory(&self.path(version))?;
        }
        Ok(())
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, ServiceError> {
    let paths = fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    paths.map_err(|source| ServiceError::File { action: "list", path: directory.to_owned(), source })
}

fn version_of(name: &str) -> Option<u32> {
    let number = name.strip_prefix(PREFIX)?;
    // A number may begin with a plus, the name of a checkpoint may not.
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
}

fn write_manifest(directory: &Path) -> Result<(), CheckpointError> {
    let unreadable = |source| ServiceError::File { action: "read back", path: directory.to_owned(), source };
    let manifest = Manifest { files: records(directory).map_err(unreadable)? };
    let text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain data; else this is a bug");
    Ok(durable::write_file(&directory.join(MANIFEST), text.as_bytes())?)
}

/// Size and digest of every file but the manifest.
fn records(directory: &Path) -> io::Result<BTreeMap<String, FileRecord>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == MANIFEST {
            continue;
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(entry.path())?)?;
        let record =
            FileRecord { bytes: entry.metadata()?.len(), blake3: hasher.finalize().to_hex().to_string() };
        files.insert(name, record);
    }
    Ok(files)
}

fn read_manifest(directory: &Path) -> Result<Manifest, Fault> {
    let text =
        fs::read(directory.join(MANIFEST)).map_err(|error| unreadable(&format!("its {MANIFEST}"), error))?;
    serde_json::from_slice(&text)
        .map_err(|error| Fault::Damage(format!("its {MANIFEST} is damaged: {error}")))
}

fn check(directory: &Path) -> Result<(), Fault> {
    let manifest = read_manifest(directory)?;
    let found = records(directory).map_err(|error| unreadable("one of its files", error))?;
    compare(&manifest, &found).map_err(Fault::Damage)
}

fn compare(manifest: &Manifest, found: &BTreeMap<String, FileRecord>) -> Result<(), String> {
    for (name, expected) in &manifest.files {
        match found.get(name) {
            None => return Err(format!("{name} is missing")),
            Some(record) if record.bytes != expected.bytes => {
                return Err(format!("{name} has {} bytes instead of {}", record.bytes, expected.bytes));
            }
            Some(record) if record != expected => return Err(format!("{name} has another digest")),
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::{Ownership, RunDirectory};

    fn open(home: &Path, keep_last: usize) -> OwnedCheckpoints {
        let owner = Ownership::claim(&RunDirectory::new(home), 0, None).unwrap();
        OwnedCheckpoints::open(owner.directory(), keep_last).unwrap()
    }

    fn checkpoints(keep_last: usize) -> (tempfile::TempDir, OwnedCheckpoints) {
        let directory = tempfile::tempdir().unwrap();
        let checkpoints = open(directory.path(), keep_last);
        (directory, checkpoints)
    }

    fn write(checkpoints: &OwnedCheckpoints, version: u32) {
        let content = vec![version as u8; 1000];
        checkpoints.write(version, |path| Ok(durable::write_file(&path.join("a.bin"), &content)?)).unwrap();
    }

    #[test]
    fn a_version_is_what_follows_in_digits() {
        assert_eq!(version_of("iteration-000012"), Some(12));
        for other in ["iteration-", "iteration-+12", "iteration-12.damaged", "best"] {
            assert_eq!(version_of(other), None, "{other}");
        }
    }

    #[test]
    fn the_newest_checkpoint_is_found() {
        let (_directory, checkpoints) = checkpoints(9);
        assert!(checkpoints.newest_intact().unwrap().checkpoint.is_none());
        write(&checkpoints, 0);
        write(&checkpoints, 10);
        write(&checkpoints, 9);
        let newest = checkpoints.newest_intact().unwrap();
        assert_eq!(newest.checkpoint, Some((10, checkpoints.path(10))));
        assert!(newest.rejected.is_empty());
    }

    #[test]
    fn a_damaged_checkpoint_is_passed_over_and_named() {
        let (_directory, checkpoints) = checkpoints(9);
        write(&checkpoints, 1);
        write(&checkpoints, 2);
        let file = checkpoints.path(2).join("a.bin");
        for (damage, reason) in
            [(vec![2_u8; 999], "999 bytes instead of 1000"), (vec![3_u8; 1000], "a.bin has another digest")]
        {
            fs::write(&file, damage).unwrap();
            let newest = checkpoints.newest_intact().unwrap();
            assert_eq!(newest.checkpoint.unwrap().0, 1);
            assert!(newest.rejected[0].to_string().contains(reason), "{}", newest.rejected[0]);
        }
        fs::remove_file(&file).unwrap();
        assert!(checkpoints.newest_intact().unwrap().rejected[0].reason.contains("a.bin is missing"));
        fs::write(checkpoints.path(2).join(MANIFEST), "{").unwrap();
        assert_eq!(checkpoints.newest_intact().unwrap().checkpoint.unwrap().0, 1);
        write(&checkpoints, 2);
        assert_eq!(checkpoints.newest_intact().unwrap().checkpoint.unwrap().0, 2);
    }

    #[test]
    fn without_an_intact_checkpoint_nothing_is_started_anew() {
        let (_directory, checkpoints) = checkpoints(9);
        write(&checkpoints, 1);
        fs::remove_file(checkpoints.path(1).join(MANIFEST)).unwrap();
        assert!(matches!(checkpoints.newest_intact(), Err(CheckpointError::NoneIntact { .. })));
    }

    #[test]
    fn a_full_disk_leaves_the_checkpoint_before() {
        let (_directory, checkpoints) = checkpoints(9);
        write(&checkpoints, 1);
        let failed = checkpoints.write(2, |path| {
            durable::write_file(&path.join("a.bin"), b"a")?;
            // The kernel answers every write to this device with "no space left".
            Ok(durable::append_line(Path::new("/dev/full"), "b")?)
        });
        let Err(CheckpointError::File(error)) = failed else { panic!("the disk was full") };
        assert!(error.is_disk_full());
        assert_eq!(checkpoints.versions().unwrap(), [1]);
        assert_eq!(fs::read_dir(&checkpoints.directory).unwrap().count(), 1, "nothing is left behind");
        write(&checkpoints, 2);
        assert_eq!(checkpoints.newest_intact().unwrap().checkpoint.unwrap().0, 2);
    }

    #[test]
    fn an_interrupted_write_is_removed_at_the_next_start() {
        let (directory, checkpoints) = checkpoints(9);
        write(&checkpoints, 1);
        fs::create_dir(checkpoints.directory.join(".iteration-000002.partial")).unwrap();
        let reopened = open(directory.path(), 9);
        assert_eq!(fs::read_dir(&reopened.directory).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_checkpoint_set_aside_does_not_cost_the_one_just_written() {
        let (_directory, checkpoints) = checkpoints(1);
        for _ in 0..2 {
            for version in [1, 2, 3] {
                write(&checkpoints, version);
            }
            for version in [2, 3] {
                fs::write(checkpoints.path(version).join("a.bin"), "damage").unwrap();
            }
            let newest = checkpoints.newest_intact().unwrap();
            for rejected in &newest.rejected {
                let kept = checkpoints.set_aside(rejected).unwrap();
                assert_eq!(fs::read(kept.join("a.bin")).unwrap(), b"damage");
            }
            assert_eq!(checkpoints.versions().unwrap(), [1]);
            write(&checkpoints, 2);
            checkpoints.prune(None).unwrap();
            assert_eq!(checkpoints.versions().unwrap(), [2]);
            assert_eq!(checkpoints.newest_intact().unwrap().checkpoint.unwrap().0, 2);
        }
    }

    #[test]
    fn the_newest_few_and_the_best_are_kept() {
        let (_directory, checkpoints) = checkpoints(2);
        for version in 0..6 {
            write(&checkpoints, version);
            if version == 1 {
                checkpoints.mark_best(1).unwrap();
            }
            checkpoints.prune(checkpoints.best()).unwrap();
        }
        assert_eq!(checkpoints.versions().unwrap(), [1, 4, 5]);
        assert_eq!(checkpoints.best(), Some(1));
    }

    #[test]
    fn a_learner_that_was_superseded_changes_no_checkpoint() {
        let (directory, first) = checkpoints(1);
        write(&first, 1);
        let second = open(directory.path(), 9);
        write(&second, 2);
        let files = |path: &Path| -> Result<(), CheckpointError> {
            Ok(durable::write_file(&path.join("a.bin"), b"late")?)
        };
        let rejected = Rejected { path: first.path(2), reason: String::new() };
        for outcome in [
            first.write(3, files).map(drop),
            first.write(2, files).map(drop),
            first.prune(None),
            first.mark_best(2),
            first.set_aside(&rejected).map(drop),
        ] {
            assert!(outcome.unwrap_err().not_owner().unwrap().is_superseded());
        }
        assert_eq!((second.versions().unwrap(), second.best()), (vec![1, 2], None));
        assert!(second.newest_intact().unwrap().rejected.is_empty());
        assert_eq!(fs::read_dir(&second.directory).unwrap().count(), 2, "nothing is left behind");
    }
}
