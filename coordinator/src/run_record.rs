//! `run.json`: how commands reach the coordinator of a run, and what a restarted coordinator must know.

use crate::advice;
use crate::checkpoint_list::checkpoints;
use crate::cli::Place;
use crate::error::CoordinatorError;
use crate::input_record::InputRecord;
use crate::launch::Handle;
use crate::learner_half::LearnerHalf;
use crate::results::RunSummary;
use serde::{Deserialize, Serialize};
use service::{OwnedDirectory, RunDirectory};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

/// How a run, or its last life so far, ended.
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
        /// Whether config, model or prompts are at fault, so that starting again does not help.
        #[serde(default)]
        bad_input: bool,
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

/// A wish that a run rests, which stands until somebody resumes it: whatever starts it again by itself does nothing then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopWish {
    /// `coordinator down`.
    Down,
    /// `run.max_hours` are over.
    MaxHours,
}

/// What `run.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Tells this run from any other.
    pub run_id: String,
    /// Port of the coordinator.
    pub port: u16,
    /// Where this host reaches the coordinator; absent where that is the loopback in plain text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Process id of the coordinator.
    pub coordinator_pid: u32,
    /// Counts the starts of the coordinator.
    pub generation: u64,
    /// How a launcher finds each member again that was started and has not been seen to end.
    pub members: BTreeMap<String, Handle>,
    /// Where its workers are started.
    #[serde(default, skip_serializing_if = "Place::is_local")]
    pub place: Place,
    /// Where the coordinator was started, and what relative paths of the run's config are relative to.
    #[serde(default)]
    pub working_directory: Option<PathBuf>,
    /// What the run reads, once more than in `inputs.json`. Earlier versions recorded none.
    #[serde(default)]
    pub inputs: Option<InputRecord>,
    /// The learner's half of the run, where it has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learner_half: Option<LearnerHalf>,
    /// Whether the run is wished to rest; absent where it goes on whenever it is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_wish: Option<StopWish>,
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
            address: None,
            coordinator_pid: std::process::id(),
            generation: 0,
            members: BTreeMap::new(),
            place: Place::Local,
            working_directory: None,
            inputs: None,
            learner_half: None,
            stop_wish: None,
            ended: None,
        }
    }

    /// Reads the record of a run.
    ///
    /// # Errors
    /// If there is none or it is not readable, with the remedy.
    pub fn read(directory: &RunDirectory) -> Result<Self, CoordinatorError> {
        let path = directory.run_file();
        if path.is_dir() {
            return Err(CoordinatorError::Usage(format!(
                "{} is a folder, where the record of the run should be; move it away, then `{}` makes the record anew",
                path.display(),
                advice::resume(directory.path())
            )));
        }
        let failed = |source| CoordinatorError::RecordLost { path: path.clone(), source };
        let bytes = config::read_whole(&path, config::MOST_SETTINGS_BYTES).map_err(failed)?;
        serde_json::from_slice(&bytes)
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// Whether a member was started on another host and has not been seen to end.
    pub fn has_members_elsewhere(&self) -> bool {
        self.members.values().any(|handle| matches!(handle, Handle::Remote(_)))
    }

    /// Where this host reaches the coordinator.
    pub fn coordinator_address(&self) -> String {
        self.address.clone().unwrap_or_else(|| loopback(self.port))
    }

    /// Whether a learner elsewhere has checkpoints of the run.
    pub fn has_begun_elsewhere(&self) -> bool {
        self.learner_half.as_ref().is_some_and(|half| half.has_begun)
    }

    /// Whether the run has trained all of its iterations.
    pub fn is_done(&self) -> bool {
        matches!(self.ended, Some(RunEnding::Done { .. }))
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written, or the run is another coordinator's.
    pub fn write(&self, directory: &OwnedDirectory) -> Result<(), CoordinatorError> {
        Ok(directory.write_file(&directory.run_file(), &self.text())?)
    }

    /// Whether the file holds this record.
    pub fn stands_in(&self, directory: &RunDirectory) -> bool {
        config::read_whole(&directory.run_file(), config::MOST_SETTINGS_BYTES)
            .is_ok_and(|text| text == self.text())
    }

    fn text(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("the record has a JSON form; anything else is a bug")
    }
}

/// A coordinator that only this host reaches, in plain text.
pub(crate) fn loopback(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
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
    use service::Ownership;

    #[test]
    fn a_record_survives_writing_and_reading() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::new(home.path());
        let mut record = RunRecord::new("demo");
        record.members.insert("learner".to_owned(), Handle::Process(7));
        let summary =
            RunSummary { gain: 0.25, adapter: "runs/demo/adapter".to_owned(), ..RunSummary::default() };
        record.ended = Some(RunEnding::Done { summary: Box::new(summary) });
        record.stop_wish = Some(StopWish::Down);
        let owner = Ownership::claim(&directory, 0, None).expect("claimed");
        assert!(!record.stands_in(&directory));
        record.write(owner.directory()).expect("written");
        assert!(record.stands_in(&directory));
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
        assert_eq!((*summary(&earlier), earlier.members["learner"].clone()), (expected, Handle::Process(11)));
        let failed: RunEnding =
            serde_json::from_str(r#"{"how": "failed", "reason": "a NaN"}"#).expect("read");
        assert_eq!(failed, RunEnding::Failed { reason: "a NaN".to_owned(), bad_input: false, summary: None });
    }

    #[test]
    fn a_folder_in_place_of_the_record_is_named_with_the_remedy() {
        let home = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::new(home.path());
        std::fs::create_dir(directory.run_file()).expect("created");
        let error = RunRecord::read(&directory).expect_err("no file");
        assert_eq!(error.exit_code(), 2);
        let told = error.to_string();
        assert!(
            told.contains("run.json is a folder") && told.contains("move it away, then `coordinator resume"),
            "{told}"
        );
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
