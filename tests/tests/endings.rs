//! What a run says of itself on the way and after its end.

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tests::Run;

#[test]
fn progress_as_json_has_a_record_of_every_evaluation_and_of_nothing_that_was_not_measured() {
    let mut run = Run::new(&[]);
    run.complete(&["--workers", "1", "--log-format", "json"]);
    let records: Vec<Value> = (run.said_on_stdout().lines())
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let evaluated = records.iter().filter_map(|record| record["evaluation"]["version"].as_u64());
    assert_eq!(evaluated.collect::<Vec<_>>(), [0, 3, 6]);
    let first = records.iter().find(|record| record.get("phase").is_some()).expect("progress");
    assert!(first.get("reward").is_none() && first.get("held_out").is_none(), "{first}");
    let summary = &records.last().expect("records")["summary"];
    assert_eq!(
        (summary["before"]["version"].as_u64(), summary["after"]["version"].as_u64()),
        (Some(0), Some(6))
    );
}

#[test]
fn status_tells_how_a_run_ended() {
    let mut run = Run::new(&[("run.iterations", "1000000")]);
    run.start(&["--workers", "1"]);
    run.wait_for_iterations(1);
    assert!(run.status(&[]).contains("worker-0"), "it lives");
    kill(run.coordinator_pid(), Signal::SIGTERM).expect("the coordinator lives");
    assert_eq!(run.wait(), Some(75), "{}", run.output());
    assert!(run.status(&[]).contains("stopped; go on with `coordinator resume /"), "{}", run.status(&[]));

    let last = run.rows("metrics.jsonl").len() + 3;
    run.complete(&["--resume", "--workers", "1", "--set", &format!("run.iterations={last}")]);
    let status = run.status(&[]);
    for words in ["done", "test reward after", "best version", "workers busy"] {
        assert!(status.contains(words), "{words} is not in\n{status}");
    }
    assert!(status.contains("since the run was resumed"), "the share of workers covers a part:\n{status}");
    let record: Value = serde_json::from_str(&run.status(&["--log-format", "json"])).expect("JSON");
    assert_eq!(record["ended"]["how"], "done");
    assert_eq!(record["ended"]["summary"]["after"]["version"], last);
}

#[test]
fn status_says_when_nobody_could_note_how_a_run_ended() {
    let mut run = Run::new(&[]);
    run.start(&["--workers", "1"]);
    run.wait_for_iterations(1);
    kill(run.coordinator_pid(), Signal::SIGKILL).expect("the coordinator lives");
    assert_eq!(run.wait(), None);
    let status = run.status(&[]);
    assert!(status.contains("was killed before it could note how the run ended"), "{status}");
}

/// Files get larger or smaller, and one of two opposite rewards for that gets worse at every evaluation.
const UNTRAINED_REWARDS: &str = "
[[evaluation_rewards]]
name = \"shapes\"

[[evaluation_rewards]]
name = \"jpeg_compressibility\"

[[evaluation_rewards]]
name = \"jpeg_incompressibility\"
";

#[test]
fn a_run_that_games_its_reward_stops_with_a_summary_and_goes_on_when_told_to() {
    let mut run = Run::new(&[
        ("run.iterations", "8"),
        ("evaluation.every", "1"),
        ("evaluation.hacking_patience", "1"),
        ("evaluation.on_reward_hacking", "\"stop\""),
    ]);
    let config = std::fs::read_to_string(run.config()).expect("the config is there");
    std::fs::write(run.config(), config + UNTRAINED_REWARDS).expect("the config is written");
    run.start(&["--workers", "1"]);
    assert_eq!(run.wait(), Some(1), "{}", run.output());
    let (evaluations, said) = (run.rows("evaluations.jsonl"), run.said());
    let hacked = evaluations.last().expect("rows")["reward_hacking"][0].as_str().expect("hacked").to_owned();
    assert!(hacked.starts_with("jpeg_"), "{hacked}");
    for words in [
        "the run failed: reward hacking",
        "coordinator resume",
        "test reward after",
        "reward hacking seen in",
        "→",
    ] {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
    assert!(run.status(&[]).contains("reward hacking seen in"), "{}", run.status(&[]));
    let n_trained = run.rows("metrics.jsonl").len();
    assert!(
        n_trained < 8 && n_trained == evaluations.len(),
        "the iteration beside the evaluation is finished"
    );

    run.complete(&["--resume", "--workers", "1", "--set", "evaluation.on_reward_hacking=warn"]);
    assert_eq!(run.rows("metrics.jsonl").len(), 8);
}
