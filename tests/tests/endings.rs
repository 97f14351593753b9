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
    let mut run = Run::new(&[("run.iterations", "4")]);
    run.start(&["--workers", "1"]);
    run.wait_for_iterations(1);
    assert!(run.status(&[]).contains("worker-0"), "it lives");
    kill(run.coordinator_pid(), Signal::SIGTERM).expect("the coordinator lives");
    assert_eq!(run.wait(), Some(75), "{}", run.output());
    assert!(run.status(&[]).contains("stopped; go on with `coordinator up"), "{}", run.status(&[]));

    run.complete(&["--resume", "--workers", "1"]);
    let status = run.status(&[]);
    for words in ["done", "held-out reward after", "best version", "workers busy"] {
        assert!(status.contains(words), "{words} is not in\n{status}");
    }
    assert!(status.contains("since the run was resumed"), "the share of workers covers a part:\n{status}");
    let record: Value = serde_json::from_str(&run.status(&["--log-format", "json"])).expect("JSON");
    assert_eq!(record["ended"]["how"], "done");
    assert_eq!(record["ended"]["summary"]["after"]["version"], 4);
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
