//! What becomes of a run whose directory has lost a small file: checkpoints have a copy of the config, and the record of
//! its processes is made anew where none of them lives.

use crate::checkpoint_list::checkpoints;
use crate::error::CoordinatorError;
use crate::living_members::LivingMembers;
use crate::run_record::RunRecord;
use config::RunConfig;
use service::RunDirectory;
use std::path::PathBuf;

/// Something read from a run directory, and what had to be done for it.
pub struct Found<T> {
    /// What was sought.
    pub value: T,
    /// To be told to the user: what was lost and where this comes from.
    pub notice: Option<String>,
}

/// The config that a run was started with: its own, or the newest checkpoint's copy. None where both are lost and there
/// is no checkpoint, so that nothing depends on it.
///
/// # Errors
/// If it is lost or damaged, and the checkpoints have no copy.
pub fn stored_config(directory: &RunDirectory) -> Result<Found<Option<RunConfig>>, CoordinatorError> {
    let path = directory.config();
    let found = find_config(directory)?;
    let is_copy = found.as_ref().filter(|(file, _)| *file != path);
    let notice = is_copy.map(|(copy, _)| {
        format!("{} is lost or damaged; {} is taken in its place", path.display(), copy.display())
    });
    Ok(Found { value: found.map(|(_, config)| config), notice })
}

/// The file that holds the config of a run that is to go on.
///
/// # Errors
/// As [`stored_config`].
pub fn config_file(directory: &RunDirectory) -> Result<PathBuf, CoordinatorError> {
    Ok(find_config(directory)?.map_or_else(|| directory.config(), |(file, _)| file))
}

fn find_config(directory: &RunDirectory) -> Result<Option<(PathBuf, RunConfig)>, CoordinatorError> {
    let path = directory.config();
    let error = match read_config(path.clone()) {
        Ok(config) => return Ok(Some((path, config))),
        Err(error) => error,
    };
    let checkpoints = checkpoints(directory);
    let copies = checkpoints.iter().rev().map(|(_, checkpoint)| checkpoint.join("config.toml"));
    let found = copies
        .map(|copy| (copy.clone(), read_config(copy)))
        .find_map(|(copy, config)| Some((copy, config.ok()?)));
    if found.is_none() && !checkpoints.is_empty() { Err(error) } else { Ok(found) }
}

fn read_config(path: PathBuf) -> Result<RunConfig, CoordinatorError> {
    let failed = |source| CoordinatorError::File { action: "read", path: path.clone(), source };
    let text = config::read_settings(&path).map_err(failed)?;
    RunConfig::from_toml(&text).map_err(|problems| CoordinatorError::Config { path, problems })
}

/// The record of a run that is to go on, or a new one where it is lost.
///
/// # Errors
/// A usage error if a folder stands in its place, or it is lost while processes of the run still live: nobody could reach them, and new ones would write
/// beside them.
pub fn stored_record(directory: &RunDirectory, run_name: &str) -> Result<Found<RunRecord>, CoordinatorError> {
    match RunRecord::read(directory) {
        Ok(record) => return Ok(Found { value: record, notice: None }),
        Err(CoordinatorError::RecordLost { .. }) => {}
        Err(error) => return Err(error),
    }
    let living = LivingMembers::of(directory);
    if !living.is_empty() {
        return Err(CoordinatorError::Usage(format!(
            "{} is lost or damaged, and processes of the run still live: {living}; end them by `{}`, then resume",
            directory.run_file().display(),
            living.end_command()
        )));
    }
    let path = directory.run_file();
    let notice = format!("{} is lost or damaged; it is made anew, with a new id and port", path.display());
    Ok(Found { value: RunRecord::new(run_name), notice: Some(notice) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn run() -> (tempfile::TempDir, RunDirectory, RunConfig) {
        let home = tempfile::tempdir().expect("a directory");
        let directory = RunDirectory::new(home.path());
        directory.create().expect("created");
        (home, directory, config::preset("tempflow-tiny-cpu").expect("a preset").config)
    }

    #[test]
    fn a_lost_config_is_that_of_the_newest_checkpoint_with_a_copy() {
        let (_home, directory, mut config) = run();
        assert!(stored_config(&directory).expect("nothing depends on it").value.is_none());
        for version in [9, 10, 11] {
            let checkpoint = directory.checkpoints().join(format!("iteration-{version:06}"));
            std::fs::create_dir(&checkpoint).expect("created");
            config.run.iterations = version;
            let text = if version == 11 { "[run" } else { &config.to_toml() };
            std::fs::write(checkpoint.join("config.toml"), text).expect("written");
        }
        for lost in [None, Some(""), Some("[run")] {
            if let Some(text) = lost {
                std::fs::write(directory.config(), text).expect("written");
            }
            let found = stored_config(&directory).expect("found");
            assert_eq!(found.value.expect("a config").run.iterations, 10);
            let notice = found.notice.expect("it is said");
            assert!(notice.contains("iteration-000010/config.toml is taken in its place"), "{notice}");
        }
        std::fs::write(directory.config(), config.to_toml()).expect("written");
        let found = stored_config(&directory).expect("found");
        assert_eq!((found.value.expect("a config").run.iterations, found.notice), (11, None));
    }

    #[test]
    fn a_checkpoint_without_a_copy_leaves_the_error() {
        let (_home, directory, _) = run();
        std::fs::create_dir(directory.checkpoints().join("iteration-000001")).expect("created");
        let error = stored_config(&directory).err().expect("an error").to_string();
        assert!(error.contains("config.toml"), "{error}");
    }

    #[test]
    fn a_lost_record_is_made_anew_once_no_process_lives() {
        let (_home, directory, _) = run();
        std::fs::write(directory.run_file(), "").expect("written");
        let log = std::fs::File::create(directory.log_of("learner")).expect("created");
        let mut learner = Command::new("sh");
        // It waits by itself: a child of it would outlive it, and looks like it until it has become another program.
        learner.args(["-c", "read line", "--member-id", "learner"]).stdin(Stdio::piped()).stdout(log);
        let mut learner = learner.spawn().expect("started");
        // A process that has just begun another program has no arguments for a moment.
        let refusal = || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            stored_record(&directory, "demo").err()
        };
        let living = (0..6000).find_map(|_| refusal()).expect("refused");
        learner.kill().expect("killed");
        learner.wait().expect("buried");
        assert_eq!(living.exit_code(), 2);
        assert!(living.to_string().contains(&format!("learner (process {})", learner.id())), "{living}");
        let found = stored_record(&directory, "demo").expect("made anew");
        assert!(found.value.run_id.starts_with("demo-"));
        let notice = found.notice.expect("it is said");
        assert!(notice.contains("run.json is lost or damaged") && notice.contains("new id"), "{notice}");
    }
}
