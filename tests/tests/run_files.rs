//! Files of a run that are lost, damaged or in the way, and a learner killed while it writes them.

use std::fs;

use tests::{Run, coordinator_output};

/// Four iterations, of which every second version is evaluated.
fn short_run() -> Run {
    Run::new(&[("run.iterations", "4"), ("evaluation.every", "2"), ("checkpoints.retry_minutes", "0.0")])
}

#[test]
fn a_learner_killed_right_after_its_last_checkpoint_exports_it_all_the_same() {
    let mut straight = short_run();
    straight.start_interposed(&[], &["--workers", "1"]);
    assert_eq!(straight.wait(), Some(0), "{}", straight.output());
    let changes = straight.changes();
    let last = changes.iter().rposition(|change| change == "rename checkpoints/iteration-000004");
    let place = (last.expect("a last checkpoint") + 2).to_string();

    let mut run = short_run();
    run.start_interposed(&[("INTERPOSED_KILL_AT", &place)], &["--workers", "1"]);
    assert_eq!(run.wait(), Some(0), "{}", run.output());
    assert!(run.output().contains("signal: 9"), "the learner was killed:\n{}", run.output());
    assert_eq!(run.adapter_digests(), straight.adapter_digests());
}

#[test]
fn a_run_whose_last_export_fails_is_not_done_until_that_is_mended() {
    let mut run = short_run();
    run.complete(&["--workers", "1"]);
    let digests = run.adapter_digests();
    let (place, directory) = (run.directory().join("adapter/peft"), run.directory().display().to_string());
    fs::remove_dir_all(&place).expect("removed");
    fs::write(&place, "notes").expect("written");

    run.start(&["--resume", "--workers", "1"]);
    assert_eq!(run.wait(), Some(1), "{}", run.output());
    let said = run.said();
    for words in ["could not be exported", "adapter/peft", "Not a directory", "test reward after"] {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
    assert!(run.status(&[]).contains("could not be exported"), "{}", run.status(&[]));
    assert_eq!(fs::read_to_string(&place).expect("kept"), "notes");

    fs::remove_file(&place).expect("removed");
    let to = run.directory().join("exported").display().to_string();
    let export = || coordinator_output(&["export", &directory, "--to", &to]);
    let refused = export();
    assert_eq!(refused.status.code(), Some(75), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("coordinator resume"), "{refused:?}");
    run.complete(&["--resume", "--workers", "1"]);
    assert_eq!(run.adapter_digests(), digests);
    assert!(export().status.success());
}

#[test]
fn a_run_that_lost_small_files_and_rows_goes_on_and_says_what_it_did() {
    let mut straight = Run::new(&[("evaluation.every", "2")]);
    straight.complete(&["--workers", "1"]);

    let mut run = Run::new(&[("run.iterations", "4"), ("evaluation.every", "2")]);
    run.complete(&["--workers", "1"]);
    for lost in ["run.json", "config.toml"] {
        fs::remove_file(run.directory().join(lost)).expect("removed");
    }
    let damage = |file: &str, line: usize| {
        let path = run.directory().join(file);
        let text = fs::read_to_string(&path).expect("readable");
        let mut lines: Vec<&str> = text.lines().collect();
        let damaged = lines[line].replace('{', "[");
        lines[line] = &damaged;
        fs::write(&path, lines.join("\n") + "\n").expect("written");
        damaged
    };
    let (row, _) = (damage("metrics.jsonl", 1), damage("evaluations.jsonl", 0));
    assert!(run.status(&[]).contains("makes it anew"), "{}", run.status(&[]));

    run.complete(&["--resume", "--workers", "1", "--set", "run.iterations=6"]);
    let said = run.said();
    let words = [
        "run.json is lost or damaged; it is made anew",
        "config.toml is lost or damaged",
        "config.toml is taken in its place",
        "metrics.jsonl: line 2 damaged, kept in",
        "metrics.jsonl lacks iterations 1",
        "put back from the checkpoint",
    ];
    for words in words {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
    let kept = fs::read_to_string(run.directory().join("metrics.jsonl.damaged")).expect("kept");
    assert_eq!(kept.trim_end(), row);
    let versions: Vec<_> = run.rows("evaluations.jsonl").iter().map(|row| row["version"].as_u64()).collect();
    assert_eq!(versions, [Some(0), Some(2), Some(4), Some(6)]);
    assert_eq!(run.adapter_digests(), straight.adapter_digests());
}

#[test]
fn a_run_whose_checkpoints_are_gone_is_not_begun_again() {
    let mut run = short_run();
    run.complete(&["--workers", "1"]);
    let before = fs::read(run.directory().join("metrics.jsonl")).expect("readable");
    fs::remove_dir_all(run.directory().join("checkpoints")).expect("removed");
    let adapter = run.directory().join("adapter/peft/adapter_model.safetensors");
    let exported = fs::read(&adapter).expect("readable");
    run.start(&["--resume", "--workers", "1"]);
    assert_eq!(run.wait(), Some(2), "{}", run.output());
    assert!(run.said().contains("no checkpoint any more"), "{}", run.said());
    run.start(&["--workers", "1"]);
    assert_eq!(run.wait(), Some(2), "{}", run.output());
    let left = fs::read(run.directory().join("metrics.jsonl")).expect("readable");
    assert!(left == before && fs::read(&adapter).expect("readable") == exported, "nothing is touched");
}
