//! `run.json`: how commands reach the coordinator of a run, and what a restarted coordinator must know.

use crate::advice;
use crate::checkpoint_list::checkpoints;
use crate::error::CoordinatorError;
use crate::input_record::InputRecord;
use crate::launch::{Handle, is_member_process};
use crate::results::RunSummary;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use service::{RunDirectory, durable};
use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

/// How the last life of a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "lowercase")]
pub enum RunEnding {
    /// All iterations are trained and evaluated.
    Done {
        /// What they came to.
        summary: Box<RunSummary>,
    },
    /// It could not go on.
    Failed {
        /// Why.
        reason: String,
        /// What it came to, where it ended itself in good order.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        summary: Option<Box<RunSummary>>,
    },
    /// It was asked to stop.
    Stopped {
        /// The command that goes on with it.
        resume: String,
    },
}

/// What `run.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Tells this run from any other.
    pub run_id: String,
    /// Port of the coordinator on the loopback interface.
    pub port: u16,
    /// Process id of the coordinator.
    pub coordinator_pid: u32,
    /// Counts the starts of the coordinator.
    pub generation: u64,
    /// How a launcher finds each member again that was started and has not been seen to end.
    pub members: BTreeMap<String, Handle>,
    /// Where the coordinator was started, and what relative paths of the run's config are relative to.
    #[serde(default)]
    pub working_directory: Option<PathBuf>,
    /// What the run reads, once more than in `inputs.json`. Earlier versions recorded none.
    #[serde(default)]
    pub inputs: Option<InputRecord>,
    /// Absent while the run lives, and where it was killed.
    pub ended: Option<RunEnding>,
}

impl RunRecord {
    /// A record of a run that nobody has seen before.
    pub fn new(run_name: &str) -> Self {
        // Keys of a hash map are the one source of randomness in the standard library.
        let random = RandomState::new().build_hasher().finish();
        Self {
            run_id: format!("{run_name}-{random:016x}"),
            port: 0,
            coordinator_pid: std::process::id(),
            generation: 1,
            members: BTreeMap::new(),
            working_directory: None,
            inputs: None,
            ended: None,
        }
    }

    /// Reads the record of a run.
    ///
    /// # Errors
    /// If there is none or it is not readable, with the remedy.
    pub fn read(directory: &RunDirectory) -> Result<Self, CoordinatorError> {
        let path = directory.run_file();
        let failed = |source| CoordinatorError::RecordLost { path: path.clone(), source };
        let bytes = config::read_whole(&path, config::MOST_SETTINGS_BYTES).map_err(failed)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Members whose processes still live.
    pub fn living_members(&self) -> Vec<String> {
        let living = self.members.iter().filter(|(member_id, handle)| is_member_process(**handle, member_id));
        living.map(|(member_id, _)| member_id.clone()).collect()
    }

    /// Whether the run has trained all of its iterations.
    pub fn is_done(&self) -> bool {
        matches!(self.ended, Some(RunEnding::Done { .. }))
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, directory: &RunDirectory) -> Result<(), CoordinatorError> {
        let text =
            serde_json::to_vec_pretty(self).expect("the record has a JSON form; anything else is a bug");
        Ok(durable::write_file(&directory.run_file(), &text)?)
    }
}

/// Held by the living coordinator of a run; the system frees it when the process ends, however it ends.
pub struct RunLock {
    _file: Flock<File>,
}

impl RunLock {
    /// Takes the lock of a run.
    ///
    /// # Errors
    /// A usage error if another coordinator has it.
    pub fn take(directory: &RunDirectory) -> Result<Self, CoordinatorError> {
        let path = directory.lock_file();
        let failed = |source| CoordinatorError::File { action: "lock", path: path.clone(), source };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(CoordinatorError::Usage(living(directory))),
            Err((_, errno)) => Err(failed(errno.into())),
        }
    }

    /// Whether a living coordinator has the lock of a run.
    pub fn is_taken(directory: &RunDirectory) -> bool {
        matches!(Self::take(directory), Err(CoordinatorError::Usage(_)))
    }
}

fn living(directory: &RunDirectory) -> String {
    let process = match RunRecord::read(directory) {
        Ok(record) => format!(" (process {}, port {})", record.coordinator_pid, record.port),
        Err(_) => String::new(),
    };
    let run = directory.path();
    format!(
        "{} has a living coordinator{process}; see `{}`, stop it with `{}`",
        run.display(),
        advice::on("status", run),
        advice::on("down", run)
    )
}

/// Whether a directory is that of a run, though it may have lost files.
pub fn is_run(directory: &RunDirectory) -> bool {
    directory.run_file().exists() || directory.config().exists() || !checkpoints(directory).is_empty()
}

/// Finds the directory of a run that a command names: a path, or a name below `runs/`.
///
/// # Errors
/// A usage error if there is no such run.
pub fn find_run(run: &str) -> Result<RunDirectory, CoordinatorError> {
    let path = service::expand_path(Path::new(run));
    let mut candidates = vec![path.clone(), Path::new("runs").join(path)];
    // They are the same where the path is absolute.
    candidates.dedup();
    let found = candidates.iter().map(RunDirectory::new).find(is_run);
    found.ok_or_else(|| {
        let files: Vec<String> =
            candidates.iter().map(|path| path.join("run.json").display().to_string()).collect();
        if let [file] = files.as_slice() {
            return CoordinatorError::Usage(format!(
                "no run `{run}`: there is no {file}; give the run's directory"
            ));
        }
        let looked = files.join(" nor ");
        let below =
            std::env::current_dir().map(|folder| format!(" in {}", folder.display())).unwrap_or_default();
        CoordinatorError::Usage(format!(
            "no run `{run}`: neither {looked} exists{below}; give the run's directory"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_writing_and_reading() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::new(home.path());
        let mut record = RunRecord::new("demo");
        record.members.insert("learner".to_owned(), Handle(7));
        let summary =
            RunSummary { gain: 0.25, adapter: "runs/demo/adapter".to_owned(), ..RunSummary::default() };
        record.ended = Some(RunEnding::Done { summary: Box::new(summary) });
        record.write(&directory).expect("written");
        assert_eq!(RunRecord::read(&directory).expect("readable"), record);
        assert_ne!(RunRecord::new("demo").run_id, record.run_id);
    }

    #[test]
    fn what_scripts_read_of_a_record_keeps_its_keys() {
        let golden = include_str!("../tests/golden/run_record.json");
        let record: RunRecord = serde_json::from_str(golden).expect("readable");
        assert_eq!(serde_json::to_string_pretty(&record).expect("JSON") + "\n", golden);
    }

    /// Before scores, reward hacking and test prompts were told, and before the inputs were recorded.
    #[test]
    fn the_record_of_an_earlier_version_is_read() {
        let [earlier, newest]: [RunRecord; 2] = [
            include_str!("../tests/golden/earlier_run_record.json"),
            include_str!("../tests/golden/run_record.json"),
        ]
        .map(|text| serde_json::from_str(text).expect("readable"));
        let summary = |record: &RunRecord| match &record.ended {
            Some(RunEnding::Done { summary }) => summary.clone(),
            other => panic!("{other:?}"),
        };
        let expected = RunSummary {
            best: None,
            best_adapter: String::new(),
            scores: Vec::new(),
            reward_hacking: Vec::new(),
            is_of_test_prompts: false,
            ..*summary(&newest)
        };
        assert_eq!((*summary(&earlier), earlier.members["learner"]), (expected, Handle(11)));
        let failed: RunEnding =
            serde_json::from_str(r#"{"how": "failed", "reason": "a NaN"}"#).expect("read");
        assert_eq!(failed, RunEnding::Failed { reason: "a NaN".to_owned(), summary: None });
    }

    #[test]
    fn a_second_coordinator_is_refused_until_the_first_is_gone() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::new(home.path());
        RunRecord::new("demo").write(&directory).expect("written");
        let lock = RunLock::take(&directory).expect("free");
        let refusal = RunLock::take(&directory).err().expect("taken");
        assert!(refusal.to_string().contains(&format!("process {}", std::process::id())), "{refusal}");
        assert_eq!(refusal.exit_code(), 2);
        drop(lock);
        assert!(!RunLock::is_taken(&directory));
    }

    #[test]
    fn an_unknown_run_is_named_with_the_places_looked_at() {
        let error = find_run("no/such-run").expect_err("unknown").to_string();
        assert!(error.contains("no/such-run/run.json nor runs/no/such-run/run.json"), "{error}");
        let error = find_run("$HOME/no/such-run").expect_err("unknown").to_string();
        let expanded = service::expand_path(Path::new("~/no/such-run/run.json"));
        assert!(error.contains(&format!("there is no {};", expanded.display())), "{error}");
    }
}
