//! Whole runs on a device that is not the host: `tests/interposed/stand_in_card.cpp` before every process.

use std::collections::BTreeMap;

use nix::sys::signal::{Signal, kill};
use tests::Run;

/// Three iterations with all that touches tensors: guidance, a divergence, evaluations of the average.
const CHANGES: [(&str, &str); 7] = [
    ("run.iterations", "3"),
    ("sampling.guidance_scale", "3.0"),
    ("model.max_sequence_length", "8"),
    ("training.kl_beta", "0.01"),
    ("training.gradient_checkpointing", "true"),
    ("evaluation.every", "1"),
    ("sampling.prompts_per_iteration", "4"),
];
/// An allocation in the midst of sampling, and of training: both programs have opened their model long before.
const FULL_AT: (&str, &str) = ("STAND_IN_CARD_FAILS_AT", "10000");

/// A run that computed on the host after all would prove nothing.
#[track_caller]
fn assert_card_was_used(run: &Run) {
    let counts = run.counts_of_stand_in_card();
    let of = |program: &str| counts.iter().filter(|line| line.starts_with(program)).count();
    assert!(of("learner ") >= 1 && of("rollout-worker ") >= 1, "{counts:?}");
}

fn on_card(changes: &[(&str, &str)]) -> Run {
    Run::new(&[&CHANGES[..], changes, &[("resources.device", "\"cuda\"")]].concat())
}

/// What a run on the host ends with.
fn trained_on_host(changes: &[(&str, &str)]) -> (BTreeMap<String, String>, Vec<f64>) {
    let mut run = Run::new(&[&CHANGES[..], changes].concat());
    run.complete(&["--workers", "1"]);
    (run.adapter_digests(), rewards(&run))
}

fn rewards(run: &Run) -> Vec<f64> {
    run.rows("evaluations.jsonl").iter().filter_map(|row| row["reward"].as_f64()).collect()
}

/// What is computed is the same on the stand-in, so what is trained is too.
fn trains_the_same(changes: &[(&str, &str)]) {
    let mut run = on_card(changes);
    run.start_on_stand_in_card(&[], &["--workers", "2"]);
    assert_eq!(run.wait(), Some(0), "the run failed on the card:\n{}", run.output());
    assert_card_was_used(&run);
    assert_eq!((run.adapter_digests(), rewards(&run)), trained_on_host(changes));
}

#[test]
fn a_run_trains_on_a_card_what_it_trains_on_the_host() {
    trains_the_same(&[]);
}

#[test]
fn a_run_trains_a_whole_network_on_a_card_as_on_the_host() {
    // Without an adapter its rank and alpha must be those of the defaults.
    trains_the_same(&[
        ("adapter.method", "\"full\""),
        ("adapter.rank", "32"),
        ("adapter.alpha", "64"),
        ("training.learning_rate", "1e-4"),
    ]);
}

/// What was saved lies on the host, as do embeddings of a cache and versions on their way.
#[test]
fn a_run_goes_on_from_its_checkpoint_on_a_card() {
    let changes = [
        ("run.lag", "1"),
        ("run.iterations", "4"),
        ("model.embedding_cache", "\"embeddings\""),
        ("training.updates_per_iteration", "2"),
    ];
    let mut run = on_card(&changes);
    run.start_on_stand_in_card(&[], &["--workers", "2"]);
    run.wait_for_iterations(2);
    kill(run.member_pid("learner"), Signal::SIGKILL).expect("the learner lives");
    assert_eq!(run.wait(), Some(0), "the run failed on the card:\n{}", run.output());
    assert_card_was_used(&run);
    assert_eq!((run.adapter_digests(), rewards(&run)), trained_on_host(&changes));
}

#[test]
fn a_worker_whose_card_is_full_once_changes_nothing() {
    let mut run = on_card(&[]);
    let full = [FULL_AT, ("STAND_IN_CARD_FAILS_IN", "rollout-worker")];
    run.start_on_stand_in_card(&full, &["--workers", "1"]);
    assert_eq!(run.wait(), Some(0), "{}", run.output());
    assert!(run.output().contains("task failed: out of memory (CUDA out of memory"), "{}", run.output());
    assert_eq!(run.adapter_digests(), trained_on_host(&[]).0);
}

#[test]
fn a_learner_whose_card_is_full_tells_the_remedy() {
    let mut run = on_card(&[("training.gradient_checkpointing", "false")]);
    let full = [FULL_AT, ("STAND_IN_CARD_FAILS_IN", "learner")];
    run.start_on_stand_in_card(&full, &["--workers", "1"]);
    assert_eq!(run.wait(), Some(1), "{}", run.output());
    let said = run.said();
    assert!(
        said.contains("out of memory (CUDA out of memory") && said.contains("training.max_rows"),
        "{said}"
    );
}
