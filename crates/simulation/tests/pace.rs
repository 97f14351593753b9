//! Runs by measured times, without faults: how well workers are used, and what waits for a slow learner.

use protocol::HoldLimit;
use simulation::pace::Pace;

/// Sixteen tasks for each of sixteen workers, a learner that keeps up with them, and links that hardly count.
fn pace() -> Pace {
    Pace {
        tasks: 256,
        iterations: 5,
        lag: 0,
        sampling: 10.0,
        spread: 0.1,
        scoring: 1.0,
        outcome_mb: 50.0,
        weights_mb: 75.0,
        link: 1000.0,
        gradient: 0.05,
        update: 1.0,
    }
}

fn efficiency(pace: &Pace, n_workers: u32) -> f64 {
    let seconds = |n_workers| pace.run(n_workers, HoldLimit::NONE).expect("possible").seconds_per_iteration;
    seconds(1) / (seconds(n_workers) * f64::from(n_workers))
}

#[test]
fn sixteen_workers_do_nine_tenths_of_what_sixteen_single_ones_would() {
    for lag in [0, 1] {
        let efficiency = efficiency(&Pace { lag, ..pace() }, 16);
        assert!((0.9..=1.03).contains(&efficiency), "lag {lag}: {efficiency}");
    }
}

#[test]
fn whole_tasks_and_a_slow_learner_bound_what_workers_reach() {
    // One worker has a second task, for which the others wait at lag 0.
    let few = Pace { tasks: 17, spread: 0.0, ..pace() };
    assert!((0.5..0.54).contains(&few.bound_by_tasks(16)), "{}", few.bound_by_tasks(16));
    let reached = efficiency(&few, 16);
    assert!(reached <= few.bound_by_tasks(16) + 0.05, "{reached}");
    let slow = Pace { gradient: 10.0, lag: 1, ..pace() };
    let paced = slow.run(16, HoldLimit::NONE).expect("possible");
    assert!(paced.learner_busy > 0.99 && paced.shares.reason() == "the learner", "{:?}", paced.shares);
}

#[test]
fn what_workers_do_comes_to_all_of_their_time_and_is_the_same_again() {
    let paced = pace().run(7, HoldLimit::NONE).expect("possible");
    let shares = paced.shares;
    let all = shares.drawing + shares.fetching + shares.delivering + shares.learner + shares.others;
    assert!((all - 1.0).abs() < 1e-6, "{shares:?}");
    assert_eq!(paced, pace().run(7, HoldLimit::NONE).expect("possible"));
}

#[test]
fn a_learner_that_is_ten_times_too_slow_holds_what_it_has_room_for_and_workers_wait() {
    let slow = Pace { lag: 1, iterations: 4, tasks: 128, gradient: 6.25, ..pace() };
    let outcome_bytes = 50_000_000;
    for limit in [
        HoldLimit { outcomes: 8, bytes: u64::MAX },
        HoldLimit { outcomes: u64::MAX, bytes: 20 * outcome_bytes + 1 },
    ] {
        let paced = slow.run(16, limit).expect("possible");
        let (held, fits) = (paced.most_held, limit.outcomes.min(limit.bytes / outcome_bytes));
        assert!(held.outcomes <= fits && held.bytes <= limit.bytes, "{held:?} with room for {limit:?}");
        assert!(held.outcomes + 1 >= fits, "its room is used: {held:?} of {limit:?}");
        assert!(paced.learner_busy > 0.99, "it never waits: {}", paced.learner_busy);
        assert!(paced.shares.learner > 0.8, "workers wait for it: {:?}", paced.shares);
        assert!(paced.moments.iter().all(|moment| moment.holds.outcomes <= fits));
    }
    let unlimited = slow.run(16, HoldLimit::NONE).expect("possible");
    assert!(unlimited.most_held.outcomes > 100, "without a limit they fill it: {:?}", unlimited.most_held);
}

#[test]
fn impossible_numbers_are_refused() {
    for wrong in [
        Pace { tasks: 0, ..pace() },
        Pace { iterations: 2, ..pace() },
        Pace { lag: 2, ..pace() },
        Pace { sampling: -1.0, ..pace() },
        Pace { gradient: f64::NAN, ..pace() },
        Pace { spread: 2.0, ..pace() },
        Pace { link: 0.0, ..pace() },
    ] {
        assert!(wrong.run(1, HoldLimit::NONE).is_err(), "{wrong:?}");
    }
    assert!(pace().run(0, HoldLimit::NONE).is_err());
}
