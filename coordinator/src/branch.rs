//! `coordinator init --from RUN FILE`: a run that branches off a checkpoint of another one, with other settings.

use crate::advice;
use crate::checkpoint_list::checkpoints;
use crate::config_file::create;
use crate::error::CoordinatorError;
use crate::run_record::{RunRecord, find_run};
use config::{AdapterMethod, RunConfig};
use serde::Deserialize;
use service::RunDirectory;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What to branch off, and with which settings.
#[derive(Clone, Debug)]
pub struct Branching {
    /// The run, by its directory or its name below `runs/`.
    pub run: String,
    /// Iterations of the checkpoint; the newest if absent.
    pub checkpoint: Option<u32>,
    /// Keys that differ.
    pub settings: Vec<String>,
}

impl Branching {
    /// What has to be typed beside the run and the file, again.
    fn words(&self) -> Vec<String> {
        let checkpoint =
            self.checkpoint.iter().flat_map(|version| ["--checkpoint".to_owned(), version.to_string()]);
        let settings = self.settings.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]);
        checkpoint.chain(settings).collect()
    }
}

/// What the learner answers.
#[derive(Debug, Deserialize)]
pub struct ExportedCheckpoint {
    /// Of the weights that it wrote.
    pub version: u32,
}

/// Writes the config of the branch, and beside it the adapter that it starts from; returns what is carried over and what is
/// not. `programs` is the folder of the learner, which knows tensors.
///
/// # Errors
/// A usage error if there is no such run or checkpoint, all parameters are trained, or something stands where it would
/// write.
pub fn branch(branching: &Branching, file: &Path, programs: &Path) -> Result<String, CoordinatorError> {
    let run = find_run(&branching.run)?;
    check_place(&run, branching, file)?;
    let mut config = config_of(&run, &branching.settings)?;
    let adapter = adapter_folder(file)?;
    for path in [file, &adapter] {
        if path.exists() {
            let message = format!("{} exists; remove it or choose another name", path.display());
            return Err(CoordinatorError::Usage(message));
        }
    }
    let version = export(&run, branching.checkpoint, &adapter, programs)?;
    if !branching.settings.iter().any(|setting| setting.starts_with("run.name=")) {
        config.run.name = name_of(file, &config.run.name);
    }
    config.adapter.start_from = adapter.join("peft");
    let told = told(&run, version, &config);
    create(file, &config::branch_text(&config, &told))?;
    Ok(told)
}

/// Refuses to branch off a run whose checkpoints are on the host of its learner, which alone can.
fn check_place(run: &RunDirectory, branching: &Branching, file: &Path) -> Result<(), CoordinatorError> {
    let half = RunRecord::read(run).ok().and_then(|record| record.learner_half);
    let Some(half) = half.filter(|_| checkpoints(run).is_empty()) else { return Ok(()) };
    let adapter = adapter_folder(file)?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(CoordinatorError::Usage(format!(
        "the checkpoints of {} are in {half}: type there `{}`, then bring {} and the folder {} here, and set `adapter.start_from` \
         in the former to where the latter is",
        run.path().display(),
        advice::branch_off_to(Path::new(&half.directory), &branching.words(), Path::new(&name(file))),
        name(file),
        name(&adapter)
    )))
}

/// The config of a run with the settings on top; its relative paths as they are meant.
fn config_of(run: &RunDirectory, settings: &[String]) -> Result<RunConfig, CoordinatorError> {
    let path = run.config();
    let failed = |source| CoordinatorError::File { action: "read", path: path.clone(), source };
    let text = config::read_settings(&path).map_err(failed)?;
    let read = |text: &str, settings: &[String]| {
        RunConfig::from_toml_with(text, settings)
            .map_err(|problems| CoordinatorError::Config { path: path.clone(), problems })
    };
    let mut stored = read(&text, &[])?;
    let here = std::env::current_dir().ok();
    let home = RunRecord::read(run).ok().and_then(|record| record.working_directory);
    if let Some(home) = home.filter(|home| here.as_ref() != Some(home)) {
        // Those of the settings are relative to here. A model may also be a name in a cache.
        stored.expand_paths(|path| match path.is_relative() && home.join(path).exists() {
            true => home.join(path),
            false => path.to_owned(),
        });
    }
    let config = read(&stored.to_toml(), settings)?;
    if config.adapter.method == AdapterMethod::Full {
        return Err(CoordinatorError::Usage(format!(
            "{} trains all parameters, so there is no adapter to start from: copy the pipeline {}, put {} in place of its \
             `transformer`, and write the copy as `model.path` into a config of its own",
            run.path().display(),
            config.model.path.display(),
            run.adapter().join("transformer").display()
        )));
    }
    Ok(config)
}

/// Beside the config, whose end it outlives.
fn adapter_folder(file: &Path) -> Result<PathBuf, CoordinatorError> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let folder = file.with_file_name(format!("{stem}-adapter"));
    let failed = |source| CoordinatorError::File { action: "resolve", path: folder.clone(), source };
    std::path::absolute(&folder).map_err(failed)
}

/// The name of the file, where it can be that of a directory and is another than the run's.
fn name_of(file: &Path, run: &str) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_name = !stem.is_empty() && stem.chars().all(is_plain) && !stem.starts_with('.') && *stem != *run;
    if is_name { stem.into_owned() } else { format!("{run}-branch") }
}

/// Has the learner write the adapter of a checkpoint; returns its version.
fn export(
    run: &RunDirectory,
    checkpoint: Option<u32>,
    adapter: &Path,
    programs: &Path,
) -> Result<u32, CoordinatorError> {
    let program = programs.join("learner");
    let mut command = Command::new(&program);
    command.arg("export").arg(run.path()).arg("--to").arg(adapter);
    if let Some(version) = checkpoint {
        command.arg("--checkpoint").arg(version.to_string());
    }
    let output =
        command.output().map_err(|source| CoordinatorError::Spawn { program: program.clone(), source })?;
    let complaint = String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: ").to_owned();
    let answer = serde_json::from_slice::<ExportedCheckpoint>(&output.stdout);
    match (output.status.code(), answer) {
        (Some(0), Ok(ExportedCheckpoint { version })) => Ok(version),
        (Some(2), _) => Err(CoordinatorError::Usage(complaint)),
        _ => {
            Err(CoordinatorError::Branching { program, status: output.status.to_string(), output: complaint })
        }
    }
}

fn told(run: &RunDirectory, version: u32, config: &RunConfig) -> String {
    format!(
        "Branches off {} after {version} iterations.\n\nCarried over: all settings of that run but those changed here, and its \
         adapter, the average of checkpoint {version}, from which this run starts ({}).\nNot carried over: the moments of the \
         optimizer and the weights before averaging; iterations and updates, which are counted from 0, so that run.iterations \
         are new ones; metrics, evaluations and samples, since gains are measured from this run's own start.",
        run.path().display(),
        config.adapter.start_from.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learner_half::LearnerHalf;
    use crate::stand_ins::install_program;
    use std::fs;

    /// A run with a config, and a learner that runs a script.
    fn home(script: &str) -> (tempfile::TempDir, Branching) {
        let home = tempfile::tempdir().expect("a directory");
        let run = RunDirectory::new(home.path().join("a"));
        fs::create_dir(run.path()).expect("created");
        let config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        fs::write(run.config(), config.to_toml()).expect("written");
        let owner = service::Ownership::claim(&run, 0, None).expect("claimed");
        RunRecord::new("a").write(owner.directory()).expect("written");
        install_program(&home.path().join("learner"), script);
        let branching =
            Branching { run: run.path().display().to_string(), checkpoint: Some(3), settings: Vec::new() };
        (home, branching)
    }

    #[test]
    fn a_branch_has_the_settings_of_its_run_and_starts_from_what_that_has_trained() {
        let (home, mut branching) = home("echo \"$@\" > \"${0%learner}asked\"; echo '{\"version\": 3}'");
        let file = home.path().join("b.toml");
        branching.settings = vec!["training.learning_rate=0.5".to_owned()];
        let told = branch(&branching, &file, home.path()).expect("branched");
        assert!(
            told.contains("after 3 iterations") && told.contains("Not carried over: the moments"),
            "{told}"
        );
        let asked = fs::read_to_string(home.path().join("asked")).expect("asked");
        assert!(asked.contains("/a --to") && asked.contains("/b-adapter --checkpoint 3"), "{asked}");
        let text = fs::read_to_string(&file).expect("written");
        let branch = RunConfig::from_toml(&text).expect("valid");
        assert!(text.contains("# Not carried over") || text.contains("Not carried over"), "{text}");
        let expected =
            RunConfig::from_toml(&fs::read_to_string(home.path().join("a/config.toml")).expect("there"));
        let mut expected = expected.expect("valid");
        expected.run.name = "b".to_owned();
        expected.training.learning_rate = 0.5;
        expected.adapter.start_from = home.path().join("b-adapter/peft");
        assert_eq!(branch, expected);
        let again = super::branch(&branching, &file, home.path()).expect_err("exists");
        assert!(again.to_string().contains("b.toml exists"), "{again}");
    }

    #[test]
    fn what_the_learner_refuses_is_passed_on_and_nothing_is_written() {
        let (home, branching) = home("echo 'error: there is no checkpoint 3' >&2; exit 2");
        let file = home.path().join("b.toml");
        let error = branch(&branching, &file, home.path()).expect_err("refused");
        assert_eq!((error.exit_code(), error.to_string().as_str()), (2, "there is no checkpoint 3"));
        assert!(!file.exists());
    }

    #[test]
    fn a_run_whose_checkpoints_are_elsewhere_is_branched_off_there() {
        let (home, mut branching) = home("exit 1");
        let run = RunDirectory::new(home.path().join("a"));
        let half =
            LearnerHalf { host: "gpu1".to_owned(), directory: "/data/the half".to_owned(), has_begun: true };
        let record = RunRecord { learner_half: Some(half), ..RunRecord::new("a") };
        let owner = service::Ownership::claim(&run, 0, None).expect("claimed");
        record.write(owner.directory()).expect("written");
        branching.settings = vec!["run.seed=7".to_owned()];
        let file = home.path().join("b.toml");
        let error = branch(&branching, &file, home.path()).expect_err("they are elsewhere");
        let told = error.to_string();
        let command = "`coordinator init --from '/data/the half' --checkpoint 3 --set run.seed=7 b.toml`, then bring b.toml";
        assert!(
            error.exit_code() == 2 && told.contains("/data/the half on gpu1") && told.contains(command),
            "{told}"
        );
        assert!(!file.exists());
        fs::create_dir_all(run.checkpoints().join("iteration-000003")).expect("copied");
        let told = branch(&branching, &file, home.path()).expect_err("the learner's script").to_string();
        assert!(told.contains("ended with"), "{told}");
    }

    #[test]
    fn a_branch_is_named_after_its_file_but_never_as_its_run() {
        for (file, name) in [("b.toml", "b"), ("x/a.toml", "a-branch"), ("my run.toml", "a-branch")] {
            assert_eq!(name_of(Path::new(file), "a"), name, "{file}");
        }
    }
}
