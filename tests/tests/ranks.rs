//! The law of the learner's ranks: the trained adapter is the same to the last bit, however many processes the learner
//! consists of, and whatever happens to them.

use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex};

use nix::sys::signal::{Signal, kill};
use tests::Run;

type Digests = BTreeMap<String, String>;

/// How rewards are compared, and with which lag.
const COMPARISONS: [(&str, &str, &str); 4] =
    [("seed", "sum", "0"), ("prompt", "sum", "1"), ("batch", "sum", "0"), ("seed", "gdpo", "1")];

fn run_of((group, combination, lag): (&str, &str, &str), learners: &str) -> Run {
    Run::new(&[
        ("run.lag", lag),
        ("training.advantage_group", &format!("{group:?}")),
        ("training.reward_combination", &format!("{combination:?}")),
        ("resources.learners", learners),
    ])
}

/// What a run ends with whose learner is one process.
fn alone(comparison: (&str, &str, &str)) -> Digests {
    static KNOWN: LazyLock<Mutex<BTreeMap<String, Digests>>> = LazyLock::new(Mutex::default);
    // Whoever comes first trains it, and the others wait.
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let digests = known.entry(format!("{comparison:?}")).or_insert_with(|| {
        let mut run = run_of(comparison, "1");
        run.complete(&["--workers", "2"]);
        run.adapter_digests()
    });
    digests.clone()
}

#[test]
fn any_number_of_ranks_trains_the_same_adapter() {
    for comparison in COMPARISONS {
        for learners in ["2", "3"] {
            let mut run = run_of(comparison, learners);
            run.complete(&["--workers", "2"]);
            assert_eq!(run.adapter_digests(), alone(comparison), "{learners} ranks, {comparison:?}");
            let metrics = run.rows("metrics.jsonl");
            assert_eq!(metrics.len(), 6, "one row per iteration");
        }
    }
}

/// Disturbs a run of two ranks after its second iteration and expects it to end as if nothing had happened.
fn survives(comparison: (&str, &str, &str), disturb: impl FnOnce(&mut Run)) {
    let mut run = run_of(comparison, "2");
    run.start(&["--workers", "2"]);
    run.wait_for_iterations(2);
    disturb(&mut run);
    assert_eq!(run.wait(), Some(0), "the run failed:\n{}", run.output());
    assert_eq!(run.adapter_digests(), alone(comparison), "{comparison:?}:\n{}", run.output());
    assert_eq!(run.rows("metrics.jsonl").len(), 6, "one row per iteration, none twice");
}

fn kill_member(run: &Run, member_id: &str) {
    kill(run.member_pid(member_id), Signal::SIGKILL).expect("the member lives");
}

#[test]
fn a_killed_rank_changes_nothing() {
    for comparison in [COMPARISONS[0], COMPARISONS[2]] {
        survives(comparison, |run| kill_member(run, "learner-1"));
    }
}

#[test]
fn a_killed_first_rank_changes_nothing() {
    for comparison in [COMPARISONS[1], COMPARISONS[3]] {
        survives(comparison, |run| kill_member(run, "learner"));
    }
}

#[test]
fn a_killed_coordinator_of_ranks_changes_nothing() {
    survives(COMPARISONS[0], |run| {
        kill(run.coordinator_pid(), Signal::SIGKILL).expect("the coordinator lives");
        assert_eq!(run.wait(), None, "a killed process has no exit code");
        run.start(&["--resume"]);
    });
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    survives(COMPARISONS[1], |run| {
        kill(run.coordinator_pid(), Signal::SIGTERM).expect("the coordinator lives");
        run.wait();
        run.start(&["--resume", "--set", "resources.learners=3"]);
    });
}
