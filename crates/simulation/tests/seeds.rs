//! A few hundred worlds of faults, and deliberate bugs that the simulator must notice.

use simulation::{Bug, run};
use std::collections::BTreeMap;
use std::ops::Range;

#[test]
fn worlds_of_faults_end_as_an_undisturbed_one_does() {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for seed in 0..400 {
        let outcome = run(seed, None, false);
        if let Some(violation) = outcome.violation {
            panic!("seed {seed}: {violation}\nfor the story: make sim SEED={seed}");
        }
        for (what, count) in outcome.seen {
            *seen.entry(what).or_default() += count;
        }
    }
    // Worlds in which nothing happens would prove nothing.
    for (what, least) in [
        ("coordinator ended", 40),
        ("member killed", 40),
        ("member gave up", 20),
        ("fenced", 40),
        ("joined again", 40),
        ("learner resumed", 40),
        ("outcome held already", 20),
        ("outcome not wanted any more", 20),
        ("next latents asked for", 5),
        ("checkpoint not written", 5),
        ("row not written", 5),
        ("learner orphaned", 20),
        ("fenced at the disk", 1),
        ("change too late", 1),
        ("task granted a second time", 40),
        ("task given back", 20),
        ("place set aside", 5),
        ("weights from a worker", 40),
        ("source passed over", 10),
    ] {
        assert!(seen.get(what).is_some_and(|count| *count >= least), "{what}: {seen:?}");
    }
}

#[test]
fn a_seed_tells_the_same_story_again() {
    for seed in 0..20 {
        let (first, second) = (run(seed, None, true), run(seed, None, true));
        assert!(first.story.len() > 20, "seed {seed} has hardly a story");
        assert_eq!(first.story, second.story, "seed {seed}");
        assert_eq!(first.events, run(seed, None, false).events, "telling changes nothing");
    }
}

/// Fails unless one of the seeds shows the bug by a violation that says these words.
fn notices(bug: Bug, seeds: Range<u64>, words: &str) {
    let violation = seeds.clone().find_map(|seed| run(seed, Some(bug), false).violation);
    let violation = violation.unwrap_or_else(|| panic!("{bug:?} is not noticed by the seeds {seeds:?}"));
    assert!(violation.contains(words), "{bug:?}: {violation}");
}

#[test]
fn bugs_of_the_exchange_are_noticed() {
    for (bug, seeds, words) in [
        (Bug::AcknowledgesWithoutHolding, 0..10, "says that it holds"),
        (Bug::CountsDuplicates, 0..100, "not that of an undisturbed run"),
        (Bug::AddsInOrderOfArrival, 0..20, "in the turn of"),
        (Bug::SamplesWithNewestWeights, 0..20, "another outcome"),
        (Bug::WithdrawsWeightsEarly, 0..100, "does not offer"),
        (Bug::TellsHeldUnheard, 0..50, "no learner said so"),
        (Bug::NeverForgetsIterations, 0..20, "sets are wanted"),
        (Bug::ForgetsEarlierVersions, 0..500, "does not offer"),
    ] {
        notices(bug, seeds, words);
    }
}

#[test]
fn bugs_of_weights_from_workers_are_noticed() {
    for (bug, seeds, words) in [
        (Bug::TrustsDigestsOfWorkers, 0..200, "another outcome"),
        (Bug::NeverPassesOverSources, 0..200, "which has failed it"),
    ] {
        notices(bug, seeds, words);
    }
}

#[test]
fn bugs_of_leases_and_waiting_are_noticed() {
    for (bug, seeds, words) in [
        (Bug::BelievesWorkersForever, 0..50, "nothing got on"),
        (Bug::AdmitsFencedMembers, 0..100, "is the newest"),
        (Bug::ReportsEndsEarly, 0..50, "live at a time"),
        (Bug::LosesWakeUps, 0..10, "nothing got on"),
        (Bug::ReportsOnce, 0..10, "nothing got on"),
        (Bug::WaitsForever, 900..1200, "nothing got on"),
        (Bug::HidesStandstill, 0..200, "nothing got on"),
    ] {
        notices(bug, seeds, words);
    }
}

#[test]
fn bugs_of_who_may_change_a_run_are_noticed() {
    for (bug, seeds, words) in [
        (Bug::RenamesUnasked, 400..600, "and another one has its place or none"),
        (Bug::TakesOverWithoutEpoch, 0..20, "gets incarnation"),
    ] {
        notices(bug, seeds, words);
    }
}

#[test]
fn bugs_of_workers_that_hang_come_and_go_are_noticed() {
    for (bug, seeds, words) in [
        (Bug::HidesOpening, 0..1000, "nothing got on"),
        (Bug::HidesTraining, 0..200, "nothing got on"),
        (Bug::NeverLearnsDeadlines, 0..500, "it should be gone"),
        (Bug::GrantsToItsOwnRunner, 0..20, "is granted to who finishes it"),
        (Bug::GrantsWithoutRoom, 0..100, "and has room for"),
        (Bug::IgnoresNotice, 0..200, "is still there"),
        (Bug::EndsWithAPlace, 0..200, "the run ends with a place"),
    ] {
        notices(bug, seeds, words);
    }
}

#[test]
fn bugs_of_what_is_durable_are_noticed() {
    for (bug, seeds, words) in [
        (Bug::AcknowledgesBeforeFlush, 0..20, "checkpoint"),
        (Bug::AcknowledgesFailedWrites, 0..200, "checkpoint"),
        (Bug::RenamesBeforeFlush, 0..20, "checkpoint"),
        (Bug::TrustsTornCheckpoints, 500..1000, "another policy"),
        (Bug::PrunesBeforeWriting, 0..100, "was acknowledged"),
        (Bug::ResumesFromOldest, 0..100, "was acknowledged"),
        (Bug::AppendsWithoutFlush, 0..20, "the run is done with"),
        (Bug::TrustsUnflushedNames, 500..1000, "checkpoint"),
        (Bug::OmitsCopies, 1700..1800, "instead of"),
        (Bug::RecordsAfterCheckpoint, 0..200, "finds the evaluations"),
        (Bug::SkipsAnIteration, 0..100, "a learner at version"),
    ] {
        notices(bug, seeds, words);
    }
}
