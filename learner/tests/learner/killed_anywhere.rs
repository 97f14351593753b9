//! A learner killed at any change of a file leaves what the next one needs to end as if nothing had happened.
//!
//! Lives are processes of their own: this test program, asked for [`a_life`] alone, with a library between it and the C
//! library that counts changes of files and kills it before one of them. `KILL_EVERYWHERE=1` tries every place; without it,
//! the places after the last change of each kind that a reader of the run directory can see are tried.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use crate::lab::{Delivery, Lab, Sample, Shared};
use crate::remains::{self, Remains};
use config::{TaskKind, TaskSpec};
use learner::error::LearnerError;
use learner::run::TrainingEnd;

/// Where the life of a child process goes on.
const FOLDER: &str = "KILLED_ANYWHERE_FOLDER";

/// Three iterations of which the first is the best, and one checkpoint kept besides.
fn lab(folder: &Path) -> Lab {
    Lab::inside(folder, |config| {
        config.run.iterations = 3;
        config.sampling.prompts_per_iteration = 1;
        config.sampling.branches_per_seed = 2;
        config.training.updates_per_iteration = 1;
        config.evaluation.every = 1;
        config.checkpoints.keep_last = 1;
        config.checkpoints.retry_minutes = 0.0;
    })
}

fn prefer_the_first(task: &TaskSpec, sample: &mut Sample) {
    if task.kind == TaskKind::Evaluate && task.version == 1 {
        let _ = sample.tensor("rewards").g_add_scalar_(5.0);
    }
}

/// A run that is opened and taken to its end, in the folder that the environment names or in one of its own.
#[test]
fn a_life() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = std::env::var_os(FOLDER).map_or(temporary.path().to_owned(), PathBuf::from);
    let lab = lab(&folder);
    let TrainingEnd::Done(summary) = lab.train(Delivery::InOrder, prefer_the_first).unwrap() else {
        panic!("it was not stopped")
    };
    assert_eq!((summary.best.unwrap().version, summary.after.unwrap().version), (1, 3));
    assert_eq!(summary.best_adapter, lab.directory().best_adapter().display().to_string());
}

/// The library between, made once.
fn interposed() -> &'static Path {
    static LIBRARY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let make = || {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("file_changes.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/interposed/file_changes.c");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(source)
            .args(["-ldl", "-lpthread"]);
        assert!(compiler.status().unwrap().success());
        (folder, library)
    };
    &LIBRARY.get_or_init(make).1
}

/// The places of a run directory and the processes that work on it.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// One life, in an environment.
    fn live(&self, environment: &[(&str, &str)]) -> (ExitStatus, String) {
        let mut life = Command::new(std::env::current_exe().unwrap());
        life.args(["--exact", "killed_anywhere::a_life", "--nocapture", "--test-threads=1"]);
        life.env("LD_PRELOAD", interposed()).env("INTERPOSED_BELOW", self.run());
        life.env("INTERPOSED_LOG", self.log()).env(FOLDER, self.folder.path());
        life.envs(environment.iter().copied()).stdin(Stdio::null());
        let output = life.output().unwrap();
        (output.status, String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("changes")
    }

    /// What was changed so far, as `OPERATION PATH`.
    fn changes(&self) -> Vec<String> {
        std::fs::read_to_string(self.log()).unwrap().lines().map(str::to_owned).collect()
    }

    /// A life that is killed before a change; whether it came that far.
    fn is_killed_at(&self, place: usize) -> bool {
        let (status, output) = self.live(&[("INTERPOSED_KILL_AT", &place.to_string())]);
        match status.signal() {
            Some(signal) => assert_eq!(signal, 9, "{output}"),
            None => assert!(status.success(), "{output}"),
        }
        !status.success()
    }

    #[track_caller]
    fn end(&self, environment: &[(&str, &str)]) -> Remains {
        let (status, output) = self.live(environment);
        assert!(status.success(), "{output}");
        remains::of(&self.run())
    }
}

/// What an undisturbed run leaves, and the changes that it took.
fn undisturbed() -> &'static (Remains, Vec<String>) {
    static UNDISTURBED: OnceLock<(Remains, Vec<String>)> = OnceLock::new();
    UNDISTURBED.get_or_init(|| {
        let scene = Scene::new();
        (scene.end(&[]), scene.changes())
    })
}

#[track_caller]
fn assert_same(remains: &Remains, place: &str) {
    let expected = &undisturbed().0;
    let names: Vec<&String> = expected.keys().chain(remains.keys()).collect();
    for name in names {
        assert_eq!(remains.get(name), expected.get(name), "{name}, after a kill before {place}");
    }
}

/// Numbers, from 1, of the changes after the last of each kind by which something is there that is not hidden.
fn places_in_sight(changes: &[String]) -> Vec<usize> {
    let mut last = BTreeMap::new();
    for (position, change) in changes.iter().enumerate() {
        let kind: String = change.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        let is_there = ["write ", "rename ", "exchange "].iter().any(|operation| kind.starts_with(operation));
        if is_there && !kind.contains("/.") && !kind.contains(" .") {
            last.insert(kind, position + 2);
        }
    }
    let mut places: Vec<usize> = last.into_values().filter(|place| *place <= changes.len()).collect();
    places.sort_unstable();
    places.dedup();
    places
}

#[test]
fn killed_at_any_change_of_a_file_a_run_ends_as_if_nothing_had_happened() {
    let changes = &undisturbed().1;
    let everywhere = std::env::var_os("KILL_EVERYWHERE").is_some();
    let places = if everywhere { (1..=changes.len()).collect() } else { places_in_sight(changes) };
    assert!(places.len() > 8, "{changes:?}");
    for place in places {
        let scene = Scene::new();
        assert!(scene.is_killed_at(place), "{place}");
        // Everywhere, the next one is killed, too, on its way to where the first one was.
        let again = everywhere.then_some(1 + place % 11);
        again.map(|again| scene.is_killed_at(again));
        assert_same(&scene.end(&[]), &format!("{place}, {}, and {again:?}", changes[place - 1]));
    }
}

#[test]
fn a_file_system_that_cannot_exchange_names_or_flush_directories_holds_a_run() {
    let scene = Scene::new();
    let remains = scene.end(&[("INTERPOSED_LACKS", "exchange flush")]);
    assert_same(&remains, "nothing");
    assert!(!scene.changes().iter().any(|change| change.starts_with("exchange")));
    // Killed between the two renames of the last replacement, for which the old adapter has no name.
    let aside =
        scene.changes().iter().rposition(|change| change == "rename adapter/.diffusers.replaced").unwrap();
    let scene = Scene::new();
    let place = (aside + 2).to_string();
    let (status, output) =
        scene.live(&[("INTERPOSED_LACKS", "exchange flush"), ("INTERPOSED_KILL_AT", &place)]);
    assert_eq!(status.signal(), Some(9), "{output}");
    assert!(!scene.run().join("adapter/diffusers").exists());
    assert_same(&scene.end(&[("INTERPOSED_LACKS", "exchange flush")]), &place);
}

#[test]
fn a_run_whose_last_export_fails_is_not_done_and_says_why() {
    let scene = Scene::new();
    scene.end(&[]);
    let place = scene.run().join("adapter/peft");
    std::fs::remove_dir_all(&place).unwrap();
    std::fs::write(&place, "notes").unwrap();
    let lab = lab(scene.folder.path());
    let failed = lab.train(Delivery::InOrder, prefer_the_first);
    let Err(LearnerError::NotExported { source, summary }) = failed else { panic!("{failed:?}") };
    let reason = format!("{source}: {}", std::error::Error::source(&*source).unwrap());
    assert!(reason.contains("adapter/peft") && reason.contains("Not a directory"), "{reason}");
    assert_eq!(summary.after.unwrap().version, 3, "it says what the run came to");
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "notes", "it is not ours to remove");
    let run = lab.open(&Shared::default()).unwrap();
    assert!(run.trainer.progress.notices().concat().contains("Not a directory"));
    drop(run);
    std::fs::remove_file(&place).unwrap();
    assert_same(&scene.end(&[]), "nothing");
}
