//! The plan in rounds: in each, everybody who has no source asks, and then what flows arrives, or does not.

use super::*;
use std::collections::BTreeMap;

const NAME: WeightsName = WeightsName { version: 7, role: crate::WeightsRole::Policy };

fn worker(number: usize) -> String {
    format!("worker-{number}")
}

fn of(number: usize) -> WeightsSource {
    WeightsSource::Worker(worker(number))
}

fn seek(plan: &mut RelayPlan, asker: usize, failed: &[String], n_workers: usize) -> SourceAdvice {
    plan.seek(SourceSought { worker: &worker(asker), name: NAME, failed, n_workers })
}

/// What became of a version on its way to all workers.
#[derive(Debug, Default)]
struct Spread {
    n_rounds: usize,
    /// Streams of each source over all rounds, those that failed included.
    served: BTreeMap<WeightsSource, usize>,
    /// The most that one source served at a time.
    widest: usize,
    /// Sources between a worker and the learner.
    depth: BTreeMap<usize, usize>,
}

/// Spreads a version over so many workers; a stream from `source` to a worker arrives unless `fails` says otherwise.
fn spread(n_workers: usize, fails: impl Fn(&WeightsSource, usize) -> bool) -> Spread {
    let (mut plan, mut spread) = (RelayPlan::default(), Spread::default());
    let mut failed: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    while spread.depth.len() < n_workers {
        spread.n_rounds += 1;
        assert!(spread.n_rounds <= 10 * n_workers, "somebody waits for ever: {spread:?}");
        let without: Vec<usize> = (0..n_workers).filter(|asker| !spread.depth.contains_key(asker)).collect();
        let mut flowing = Vec::new();
        for &asker in &without {
            let failed = failed.entry(asker).or_default();
            if let SourceAdvice::Fetch(source) = seek(&mut plan, asker, failed, n_workers) {
                flowing.push((asker, source));
            }
        }
        assert!(!flowing.is_empty(), "all wait, and nothing flows");
        for (asker, source) in flowing {
            *spread.served.entry(source.clone()).or_default() += 1;
            spread.widest = spread.widest.max(plan.n_served(&source));
            match (&source, fails(&source, asker)) {
                (WeightsSource::Worker(holder), true) => {
                    failed.entry(asker).or_default().push(holder.clone())
                }
                (WeightsSource::Learner, true) => {}
                (_, false) => {
                    let depth_of_source = match &source {
                        WeightsSource::Learner => 0,
                        WeightsSource::Worker(holder) => {
                            let number = holder.trim_start_matches("worker-").parse().expect("a number");
                            spread.depth[&number]
                        }
                    };
                    spread.depth.insert(asker, depth_of_source + 1);
                }
            }
        }
        for asker in without.into_iter().filter(|asker| spread.depth.contains_key(asker)) {
            plan.end(&worker(asker));
            plan.holds(&worker(asker), &[NAME]);
        }
    }
    spread
}

#[test]
fn the_rounds_grow_with_the_logarithm_and_no_source_serves_more_than_its_share() {
    for (n_workers, most_rounds) in
        [(1, 1), (2, 1), (3, 2), (8, 2), (9, 3), (26, 3), (64, 4), (80, 4), (242, 5)]
    {
        let spread = spread(n_workers, |_, _| false);
        assert!(spread.n_rounds <= most_rounds, "{n_workers} workers: {spread:?}");
        assert!(spread.widest <= FAN_OUT, "{n_workers} workers: {spread:?}");
        let n_of_learner = spread.served[&WeightsSource::Learner];
        assert!(n_of_learner <= FAN_OUT * spread.n_rounds, "{n_workers} workers: {spread:?}");
        let deepest = spread.depth.values().max().expect("somebody");
        assert!(*deepest <= most_rounds, "{n_workers} workers: {spread:?}");
    }
}

#[test]
fn the_learner_sends_to_sixty_four_workers_a_few_times() {
    let spread = spread(64, |_, _| false);
    assert!(spread.served[&WeightsSource::Learner] <= 8, "{:?}", spread.served);
    assert!(spread.served.values().all(|n_served| *n_served <= 2 * spread.n_rounds));
    assert_eq!(spread.served.values().sum::<usize>(), 64, "nobody is sent to twice");
}

#[test]
fn sources_that_fail_everybody_are_passed_over() {
    let bad = 0..20;
    let of_bad = |source: &WeightsSource| bad.clone().any(|number| *source == of(number));
    let spread = spread(64, |source, _| of_bad(source));
    for (source, n_served) in spread.served.iter().filter(|(source, _)| of_bad(source)) {
        assert!(*n_served <= MOST_DOUBTS + FAN_OUT, "{source:?} was asked {n_served} times");
    }
    assert!(spread.n_rounds <= 12, "{spread:?}");
}

#[test]
fn where_every_worker_fails_the_learner_serves_all() {
    let spread = spread(64, |source, _| *source != WeightsSource::Learner);
    assert!(spread.served[&WeightsSource::Learner] == 64 && spread.widest <= FAN_OUT, "{spread:?}");
}

#[test]
fn a_learner_that_fails_is_asked_again_unless_a_worker_holds_the_version() {
    let mut plan = RelayPlan::default();
    for _ in 0..100 {
        assert_eq!(seek(&mut plan, 1, &[], 3), SourceAdvice::Fetch(WeightsSource::Learner));
    }
    plan.holds(&worker(2), &[NAME]);
    assert_eq!(seek(&mut plan, 1, &[], 3), SourceAdvice::Fetch(of(2)));
}

#[test]
fn a_worker_is_sent_to_others_that_hold_the_version_and_have_not_failed_it() {
    let mut plan = RelayPlan::default();
    assert!(plan.holds(&worker(1), &[NAME]) && !plan.holds(&worker(1), &[NAME]), "news once");
    plan.holds(&worker(2), &[WeightsName::average(7), WeightsName::policy(6)]);
    assert_eq!(seek(&mut plan, 1, &[], 3), SourceAdvice::Fetch(WeightsSource::Learner), "not to itself");
    assert_eq!(seek(&mut plan, 3, &[], 3), SourceAdvice::Fetch(of(1)));
    assert_eq!(seek(&mut plan, 3, &[worker(1)], 3), SourceAdvice::Fetch(WeightsSource::Learner), "it failed");
    assert_eq!(seek(&mut plan, 4, &[], 4), SourceAdvice::Fetch(of(1)), "it failed one worker only");
    assert_eq!(seek(&mut plan, 4, &[worker(1)], 4), SourceAdvice::Wait, "the learner has two already");
    assert_eq!(seek(&mut plan, 5, &[], 5), SourceAdvice::Wait, "two say so");
    plan.end(&worker(3));
    assert_eq!(seek(&mut plan, 5, &[], 5), SourceAdvice::Fetch(WeightsSource::Learner));
}

#[test]
fn the_learner_alone_serves_few_workers() {
    let mut plan = RelayPlan::default();
    plan.holds(&worker(0), &[NAME]);
    assert_eq!(seek(&mut plan, 1, &[], 2), SourceAdvice::Fetch(WeightsSource::Learner));
    assert_eq!(seek(&mut plan, 1, &[], FEWEST_WORKERS), SourceAdvice::Fetch(of(0)));
}

#[test]
fn who_is_gone_neither_serves_nor_keeps_others_waiting() {
    let mut plan = RelayPlan::default();
    plan.holds(&worker(0), &[NAME]);
    for asker in 1..=4 {
        assert_ne!(seek(&mut plan, asker, &[], 9), SourceAdvice::Wait);
    }
    assert_eq!(seek(&mut plan, 5, &[], 9), SourceAdvice::Wait);
    let fetches_from_learner =
        plan.streams().find(|(_, stream)| stream.source == WeightsSource::Learner).expect("one").0.to_owned();
    plan.gone(&fetches_from_learner);
    assert_eq!(seek(&mut plan, 5, &[], 9), SourceAdvice::Fetch(WeightsSource::Learner));
    plan.gone(&worker(0));
    assert_eq!(seek(&mut plan, 6, &[], 9), SourceAdvice::Wait, "not to who is gone");
    assert!(plan.stream(&fetches_from_learner).is_none());
}

#[test]
fn a_worker_that_names_many_sources_and_versions_fills_no_memory() {
    let mut plan = RelayPlan::default();
    let many: Vec<_> = (0..1000).map(WeightsName::policy).collect();
    plan.holds(&worker(0), &many);
    assert_eq!(plan.holders[&worker(0)].len(), MOST_HELD);
    let failed: Vec<_> = (0..1000).map(worker).collect();
    let advice = seek(&mut plan, 1, &failed, 1000);
    assert_eq!(advice, SourceAdvice::Fetch(WeightsSource::Learner));
    assert_eq!(plan.streams.len(), 1);
    plan.holds(&worker(0), &[]);
    plan.end(&worker(1));
    assert!(plan.holders.is_empty() && plan.streams.is_empty());
    assert!(plan.n_served.is_empty() && plan.with_room.is_empty());
}

/// Of each version, workers with how many they serve.
type WithRoom = BTreeMap<WeightsName, BTreeSet<(usize, String)>>;

/// What follows from who holds what and who fetches from whom, counted anew.
fn counted(plan: &RelayPlan) -> (BTreeMap<WeightsSource, usize>, WithRoom) {
    let mut n_served: BTreeMap<WeightsSource, usize> = BTreeMap::new();
    for (_, stream) in plan.streams() {
        *n_served.entry(stream.source.clone()).or_default() += 1;
    }
    let mut with_room = WithRoom::new();
    for (holder, held) in &plan.holders {
        let n_served = n_served.get(&WeightsSource::Worker(holder.clone())).copied().unwrap_or(0);
        for (name, _) in held.iter().filter(|(_, doubts)| n_served < FAN_OUT && doubts.len() < MOST_DOUBTS) {
            with_room.entry(*name).or_default().insert((n_served, holder.clone()));
        }
    }
    (n_served, with_room)
}

#[test]
fn who_has_room_is_known_whatever_happens() {
    let (mut plan, mut state) = (RelayPlan::default(), 7_u64);
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..20_000 {
        let (asker, version) = (worker(below(9)), WeightsName::policy(below(3) as u32));
        match below(8) {
            0 => plan.gone(&asker),
            1 => drop(plan.end(&asker)),
            2 | 3 => {
                let held: Vec<_> = (0..below(4) as u32).map(WeightsName::policy).collect();
                plan.holds(&asker, &held);
            }
            _ => {
                let failed: Vec<String> = (0..below(3)).map(|_| worker(below(9))).collect();
                let sought = SourceSought { worker: &asker, name: version, failed: &failed, n_workers: 9 };
                plan.seek(sought);
            }
        }
        assert_eq!((plan.n_served.clone(), plan.with_room.clone()), counted(&plan));
    }
}
