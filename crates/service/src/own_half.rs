//! The half of a run that a learner keeps where it shares no file system with the coordinator.
//!
//! The learner owns its half as a coordinator owns a run directory: of two processes on one half the first changes nothing any
//! more. What it reads of the run comes by the wire into `inputs`; what it has to show goes by the wire into `results` of the
//! coordinator's half.

use crate::{OwnedDirectory, Ownership, RunDirectory, SentFile, ServiceError};
use proto::OwnDirectory;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Below the inputs: what training goes on from.
const START_FROM: &str = "start_from";

/// What `learner.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct HalfRecord {
    /// The run that the half is of.
    run_id: String,
}

/// What a learner says of its half when it joins.
pub(crate) fn introduction(half: &RunDirectory) -> OwnDirectory {
    let record = config::read_whole(&half.learner_file(), config::MOST_SETTINGS_BYTES).ok();
    let record = record.and_then(|text| serde_json::from_slice::<HalfRecord>(&text).ok());
    OwnDirectory {
        path: half.path().display().to_string(),
        run_id: record.map(|record| record.run_id).unwrap_or_default(),
        has_begun: has_checkpoints(half),
    }
}

fn has_checkpoints(half: &RunDirectory) -> bool {
    let entries = std::fs::read_dir(half.checkpoints()).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with("iteration-"))
}

impl OwnedDirectory {
    /// Makes this process the owner of the half of a learner that was let into a run, whoever was before.
    ///
    /// # Errors
    /// If another process takes it at the same time, or the file system refuses.
    pub fn of_own_half(half: RunDirectory, run_id: &str, config: &str) -> Result<Self, ServiceError> {
        half.create()?;
        let owned = Ownership::claim(&half, 0, None)?.directory().clone();
        owned.clear_leftovers(owned.path())?;
        let record = HalfRecord { run_id: run_id.to_owned() };
        let text = serde_json::to_vec_pretty(&record).expect("it is plain data; anything else is a bug");
        owned.write_file(&owned.learner_file(), &text)?;
        owned.write_file(&owned.config(), config.as_bytes())?;
        Ok(owned)
    }
}

/// What the coordinator sends a learner of what training goes on from.
///
/// # Errors
/// If it cannot be read.
pub fn start_files(start_from: &Path) -> Result<Vec<SentFile>, ServiceError> {
    match start_from.is_dir() {
        true => SentFile::below(start_from, Path::new(START_FROM)),
        false => {
            let name = Path::new(START_FROM).join(start_from.file_name().unwrap_or_default());
            Ok(vec![SentFile { name, path: start_from.to_owned() }])
        }
    }
}

/// Where that is among the inputs that came; `start_from` is as the config has it.
pub fn received_start(inputs: &RunDirectory, start_from: &Path) -> PathBuf {
    let folder = inputs.path().join(START_FROM);
    let file = start_from.file_name().map(|name| folder.join(name)).filter(|file| file.is_file());
    file.unwrap_or(folder)
}

/// What a learner has to show: what it has exported, and its records.
///
/// # Errors
/// If a folder cannot be read.
pub(crate) fn result_files(half: &RunDirectory) -> Result<Vec<SentFile>, ServiceError> {
    let below = |path: &Path| path.strip_prefix(half.path()).unwrap_or(path).to_owned();
    let adapter = half.adapter();
    let mut files = if adapter.is_dir() { SentFile::below(&adapter, &below(&adapter))? } else { Vec::new() };
    let records = [half.metrics(), half.evaluations(), half.tests()];
    let records = records.into_iter().filter(|path| path.is_file());
    files.extend(records.map(|path| SentFile { name: below(&path), path }));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_half_says_of_which_run_it_is_and_whether_that_has_begun() {
        let home = tempfile::tempdir().expect("a folder");
        let half = RunDirectory::new(home.path().join("half"));
        let path = half.path().display().to_string();
        assert_eq!(introduction(&half), OwnDirectory { path: path.clone(), ..OwnDirectory::default() });
        let first = OwnedDirectory::of_own_half(half.clone(), "run-1", "a = 1\n").expect("made");
        let told = OwnDirectory { path, run_id: "run-1".to_owned(), has_begun: false };
        assert_eq!(introduction(&half), told);
        fs::create_dir(half.checkpoints().join("iteration-000000")).expect("made");
        assert!(introduction(&half).has_begun);
        assert_eq!(fs::read_to_string(half.config()).expect("read"), "a = 1\n");
        let _second = OwnedDirectory::of_own_half(half, "run-1", "").expect("taken over");
        // Both are this process, which is superseded by its epoch alone.
        assert!(first.check().is_err_and(|error| error.is_superseded()));
    }

    #[test]
    fn what_training_goes_on_from_is_found_again_as_a_file_and_as_a_folder() {
        let home = tempfile::tempdir().expect("a folder");
        let (folder, inputs) = (home.path().join("peft"), RunDirectory::new(home.path().join("inputs")));
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("adapter.safetensors"), "a").expect("written");
        for (start_from, found) in [
            (folder.clone(), "start_from"),
            (folder.join("adapter.safetensors"), "start_from/adapter.safetensors"),
        ] {
            let files = start_files(&start_from).expect("listed");
            assert_eq!(files.len(), 1);
            assert_eq!(files[0].name, Path::new("start_from/adapter.safetensors"));
            let copy = inputs.path().join(&files[0].name);
            fs::create_dir_all(copy.parent().expect("below the inputs")).expect("made");
            fs::copy(&files[0].path, copy).expect("copied");
            assert_eq!(received_start(&inputs, &start_from), inputs.path().join(found));
        }
    }

    #[test]
    fn results_are_exports_and_records() {
        let home = tempfile::tempdir().expect("a folder");
        let half = RunDirectory::new(home.path());
        assert_eq!(result_files(&half).expect("none"), []);
        fs::create_dir_all(half.best_adapter().join("peft")).expect("made");
        fs::write(half.best_adapter().join("peft/weights"), "w").expect("written");
        fs::write(half.metrics(), "{}\n").expect("written");
        let names: Vec<_> = result_files(&half).expect("listed").into_iter().map(|file| file.name).collect();
        assert_eq!(names, [PathBuf::from("adapter/best/peft/weights"), PathBuf::from("metrics.jsonl")]);
    }
}
