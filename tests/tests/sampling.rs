//! What a run leaves can be drawn with: `rollout-worker sample --run` gives the images that the run evaluated.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tests::{Run, binary, coordinator_output, repository};

/// Runs a command of the worker far from where the run was started, and returns what it wrote.
#[track_caller]
fn worker(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(binary("rollout-worker")).args(arguments).current_dir(folder).output();
    let output = output.expect("the worker starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The mean score of images that `sample` draws with these arguments.
#[track_caller]
fn mean_score(folder: &Path, arguments: &[&str]) -> f64 {
    let images = tempfile::tempdir().expect("a temporary directory");
    let images = images.path().to_str().expect("text");
    worker(folder, &[&["sample", "--out", images], arguments].concat());
    let prompts = repository().join("assets/prompts/validation.jsonl");
    let prompts = prompts.to_str().expect("text");
    let score = ["score", "--json", "--reward", "shapes", "--images", images, "--prompts", prompts];
    let told = worker(folder, &score);
    let last: Value = serde_json::from_str(told.lines().last().expect("the means")).expect("JSON");
    assert_eq!(last["images"], 24);
    last["mean"].as_f64().expect("a number")
}

/// Trains, and draws with everything that the run left by every path that leads to it.
fn draws_what_it_evaluated(changes: &[(&str, &str)]) {
    let fixed = [("evaluation.images_per_prompt", "2"), ("sampling.max_rows", "5")];
    let mut run = Run::new(&[&fixed[..], changes].concat());
    run.complete(&["--workers", "1"]);
    let elsewhere = tempfile::tempdir().expect("a temporary directory");
    let directory = run.directory();
    let directory = directory.to_str().expect("text");
    let rewards: Vec<f64> =
        run.rows("evaluations.jsonl").iter().map(|row| row["reward"].as_f64().expect("a number")).collect();
    assert_eq!(rewards.len(), 3);
    let drawn =
        |arguments: &[&str]| mean_score(elsewhere.path(), &[&["--run", directory], arguments].concat());
    let is = |mean: f64, reward: f64| (mean - reward).abs() < 1e-6;

    let best = rewards.iter().copied().fold(f64::MIN, f64::max);
    assert!(is(drawn(&[]), best), "the best of {rewards:?}");
    assert!(is(drawn(&["--trained", "last"]), rewards[2]), "the last of {rewards:?}");
    assert!(is(drawn(&["--trained", "none"]), rewards[0]), "the first of {rewards:?}");
    let exported = elsewhere.path().join("exported");
    let exported = exported.to_str().expect("text");
    let output = coordinator_output(&["export", directory, "--to", exported]);
    assert!(output.status.success(), "{output:?}");
    assert!(is(drawn(&["--adapter", exported]), rewards[2]), "the last of {rewards:?}");
    let best_of_export = format!("{exported}/best");
    assert!(is(drawn(&["--adapter", &best_of_export]), best), "the best of {rewards:?}");
}

#[test]
fn a_run_is_drawn_as_it_was_evaluated() {
    draws_what_it_evaluated(&[]);
}

#[test]
fn a_whole_transformer_is_drawn_as_it_was_evaluated() {
    draws_what_it_evaluated(&[
        ("adapter.method", "\"full\""),
        ("adapter.rank", "32"),
        ("adapter.alpha", "64.0"),
        ("training.learning_rate", "1e-4"),
    ]);
}
