//! Every rule of the book, with the clock in hand.

mod second_grants;

use super::*;

fn train(iteration: u32, index: u32) -> TaskName {
    TaskName { iteration, kind: TaskKind::Train, index }
}

fn evaluate(version: u32, index: u32) -> TaskName {
    TaskName { iteration: version, kind: TaskKind::Evaluate, index }
}

fn wants(iteration: u32, n_tasks: u32, held: &[u32]) -> WantedTasks {
    WantedTasks { iteration, kind: TaskKind::Train, n_tasks, held: held.to_vec(), open_below: u32::MAX }
}

/// A book whose learner wants `n_tasks` training tasks of iteration 0.
fn book(n_tasks: u32, now: Instant) -> TaskBook {
    let mut book = TaskBook::default();
    book.report(0, &[wants(0, n_tasks, &[])], now);
    book
}

/// What a worker is told; a task that failed may come back to it.
fn ask(book: &mut TaskBook, worker: &str, finishing: &[TaskName], now: Instant) -> Grant {
    book.grant(Asking { worker, finishing, n_workers: 1 }, now)
}

fn granted(book: &mut TaskBook, worker: &str, now: Instant) -> TaskName {
    match ask(book, worker, &[], now) {
        Grant::Task(task) => task,
        Grant::Wait(reason) => panic!("{worker} got nothing: {reason}"),
    }
}

/// The only worker fails.
fn fail(book: &mut TaskBook, worker: &str, task: TaskName, is_own_fault: bool, now: Instant) -> Verdict {
    let blame = if is_own_fault { Blame::Task } else { Blame::Worker };
    book.fail(Failed { worker, task, blame, n_workers: 1 }, now)
}

fn waits(book: &mut TaskBook, worker: &str, now: Instant) -> bool {
    matches!(ask(book, worker, &[], now), Grant::Wait(_))
}

/// Four training tasks for each of two ranks, the first four the first rank's.
fn two_ranks() -> TaskBook {
    let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
    (config.sampling.prompts_per_iteration, config.sampling.seeds_per_prompt) = (8, 1);
    (config.training.updates_per_iteration, config.resources.learners) = (1, 2);
    TaskBook::new(RankLayout::of(&config))
}

#[test]
fn ranks_of_the_learner_take_turns() {
    let now = Instant::now();
    let mut book = two_ranks();
    book.report(0, &[wants(0, 8, &[]), wants(1, 8, &[])], now);
    assert_eq!(granted(&mut book, "a", now), train(0, 0), "one rank has told");
    book.report(1, &[wants(0, 8, &[])], now);
    let order: Vec<_> = ["b", "c", "d", "e"].map(|worker| granted(&mut book, worker, now)).into();
    assert_eq!(order, [train(0, 4), train(0, 1), train(0, 5), train(0, 2)]);
    assert_eq!(book.counts(), TaskCounts { waiting: 7, leased: 5, held: 0 });
}

#[test]
fn a_rank_that_is_gone_takes_its_own_tasks_with_it_and_no_other() {
    let now = Instant::now();
    let mut book = two_ranks();
    for rank in [0, 1] {
        book.report(rank, &[wants(0, 8, &[])], now);
    }
    let mine = [granted(&mut book, "a", now), granted(&mut book, "b", now)];
    assert_eq!(mine, [train(0, 0), train(0, 4)]);
    book.finish("a", mine[0], now);
    book.finish("b", mine[1], now);
    book.forget_learner(1);
    assert_eq!(book.counts(), TaskCounts { waiting: 3, leased: 0, held: 1 });
    assert!(book.not_needed(&[mine[1]]).is_empty(), "it may be wanted again");
    book.report(1, &[wants(0, 8, &[])], now);
    assert_eq!(granted(&mut book, "a", now), train(0, 4), "what it held is lost");
    let full = WantedTasks { open_below: 5, ..wants(0, 8, &[4]) };
    book.report(1, &[full], now);
    assert_eq!(granted(&mut book, "b", now), train(0, 1), "the other rank has no room");
}

#[test]
fn nothing_is_granted_before_a_learner_speaks() {
    let now = Instant::now();
    let mut book = TaskBook::default();
    assert_eq!(ask(&mut book, "a", &[], now), Grant::Wait("no learner has said yet what it wants"));
    book.report(0, &[], now);
    assert_eq!(ask(&mut book, "a", &[], now), Grant::Wait("every wanted task is held or with a worker"));
}

#[test]
fn earlier_iterations_go_first_and_evaluation_before_training() {
    let now = Instant::now();
    let mut book = TaskBook::default();
    let evaluation = WantedTasks { kind: TaskKind::Evaluate, ..wants(4, 1, &[]) };
    book.report(0, &[wants(5, 1, &[]), wants(4, 2, &[0]), evaluation], now);
    let order: Vec<_> = ["a", "b", "c"].map(|worker| granted(&mut book, worker, now)).into();
    assert_eq!(order, [evaluate(4, 0), train(4, 1), train(5, 0)]);
    assert!(waits(&mut book, "d", now));
}

#[test]
fn a_worker_that_asks_again_gets_its_task_again() {
    let now = Instant::now();
    let mut book = book(2, now);
    assert_eq!(granted(&mut book, "a", now), train(0, 0));
    assert_eq!(granted(&mut book, "a", now), train(0, 0));
    assert_eq!(book.counts(), TaskCounts { waiting: 1, leased: 1, held: 0 });
}

#[test]
fn the_task_of_a_lost_worker_goes_to_the_next() {
    let now = Instant::now();
    let mut book = book(1, now);
    granted(&mut book, "a", now);
    assert!(waits(&mut book, "b", now));
    book.release("a", now);
    assert_eq!(granted(&mut book, "b", now), train(0, 0));
}

#[test]
fn a_finished_task_is_held_at_once_and_twice_does_no_harm() {
    let now = Instant::now();
    let mut book = book(1, now);
    granted(&mut book, "a", now);
    assert!(book.finish("a", train(0, 0), now));
    assert!(!book.finish("a", train(0, 0), now));
    assert!(!book.finish("b", train(0, 0), now));
    assert_eq!(book.counts(), TaskCounts { waiting: 0, leased: 0, held: 1 });
}

#[test]
fn a_report_under_way_does_not_undo_a_finish_but_a_later_one_does() {
    let now = Instant::now();
    let mut book = book(1, now);
    granted(&mut book, "a", now);
    book.finish("a", train(0, 0), now);
    book.report(0, &[wants(0, 1, &[])], now + CONFIRMATION / 2);
    assert!(waits(&mut book, "b", now), "the report may be older than the push");
    book.report(0, &[wants(0, 1, &[])], now + CONFIRMATION);
    assert_eq!(granted(&mut book, "b", now), train(0, 0), "the learner lost it");
}

#[test]
fn a_confirmed_task_stays_held() {
    let now = Instant::now();
    let mut book = book(1, now);
    granted(&mut book, "a", now);
    book.finish("a", train(0, 0), now);
    book.report(0, &[wants(0, 1, &[0])], now);
    book.report(0, &[wants(0, 1, &[0])], now + CONFIRMATION * 2);
    assert!(waits(&mut book, "a", now));
}

#[test]
fn finishing_another_task_keeps_the_lease() {
    let now = Instant::now();
    let mut book = book(2, now);
    granted(&mut book, "a", now);
    assert!(!book.finish("a", train(0, 1), now));
    assert_eq!(book.leases_of("a"), [train(0, 0)]);
}

#[test]
fn a_restarted_learner_gets_again_what_it_lost() {
    let now = Instant::now();
    let mut book = book(3, now);
    granted(&mut book, "a", now);
    granted(&mut book, "b", now);
    book.finish("a", train(0, 0), now);
    book.forget_learner(0);
    assert!(waits(&mut book, "c", now), "nobody is there to take it");
    book.report(0, &[wants(0, 3, &[2])], now);
    assert_eq!(granted(&mut book, "a", now), train(0, 0), "lost with the old learner");
    assert!(waits(&mut book, "c", now), "b still runs 1, and 2 is held");
}

#[test]
fn a_restarted_coordinator_learns_leases_from_the_workers() {
    let now = Instant::now();
    let mut book = TaskBook::default();
    book.claim("a", &[train(0, 1), train(0, 3)], now);
    book.claim("b", &[], now);
    book.report(0, &[wants(0, 4, &[0])], now);
    assert_eq!(granted(&mut book, "b", now), train(0, 2));
    assert!(waits(&mut book, "c", now));
    assert!(book.finish("a", train(0, 1), now));
}

#[test]
fn a_worker_that_comes_back_empty_handed_frees_its_task() {
    let now = Instant::now();
    let mut book = book(1, now);
    granted(&mut book, "a", now);
    book.claim("a", &[train(0, 0)], now);
    assert!(waits(&mut book, "b", now), "the same lease goes on");
    book.claim("a", &[], now);
    assert_eq!(granted(&mut book, "b", now), train(0, 0));
}

#[test]
fn a_worker_with_a_task_that_is_wanted_no_more_gets_another() {
    let now = Instant::now();
    let mut book = book(1, now);
    granted(&mut book, "a", now);
    book.report(0, &[wants(1, 1, &[])], now);
    assert_eq!(book.counts(), TaskCounts { waiting: 1, leased: 0, held: 0 });
    assert_eq!(granted(&mut book, "a", now), train(1, 0));
}

#[test]
fn three_failures_of_its_own_give_a_task_up() {
    let now = Instant::now();
    let mut book = book(1, now);
    for attempt in 1..=3 {
        granted(&mut book, "a", now);
        let verdict = fail(&mut book, "a", train(0, 0), true, now);
        let expected = if attempt < 3 { Verdict::TryAgain } else { Verdict::GiveUp { failures: 3 } };
        assert_eq!(verdict, expected);
    }
}

#[test]
fn failures_of_workers_count_less() {
    let now = Instant::now();
    let mut book = book(1, now);
    for _ in 0..9 {
        granted(&mut book, "a", now);
        assert_eq!(fail(&mut book, "a", train(0, 0), false, now), Verdict::TryAgain);
    }
    granted(&mut book, "a", now);
    assert_eq!(fail(&mut book, "a", train(0, 0), false, now), Verdict::GiveUp { failures: 10 });
}

#[test]
fn a_failure_told_twice_counts_once() {
    let now = Instant::now();
    let mut book = book(1, now);
    granted(&mut book, "a", now);
    for _ in 0..5 {
        assert_eq!(fail(&mut book, "a", train(0, 0), true, now), Verdict::TryAgain);
    }
}

#[test]
fn a_worker_gets_another_task_while_it_finishes_one_but_no_third() {
    let now = Instant::now();
    let mut book = book(4, now);
    assert_eq!(granted(&mut book, "a", now), train(0, 0));
    let second = ask(&mut book, "a", &[train(0, 0)], now);
    assert_eq!(second, Grant::Task(train(0, 1)));
    assert_eq!(ask(&mut book, "a", &[train(0, 0)], now), second, "asked again: the reply may have been lost");
    assert!(matches!(ask(&mut book, "a", &[train(0, 0), train(0, 1)], now), Grant::Wait(_)));
    assert!(book.finish("a", train(0, 0), now));
    assert_eq!(ask(&mut book, "a", &[train(0, 1)], now), Grant::Task(train(0, 2)));
    assert_eq!(book.counts(), TaskCounts { waiting: 1, leased: 2, held: 1 });
}

#[test]
fn both_tasks_of_a_lost_worker_go_to_others() {
    let now = Instant::now();
    let mut book = book(2, now);
    granted(&mut book, "a", now);
    ask(&mut book, "a", &[train(0, 0)], now);
    assert!(waits(&mut book, "b", now));
    book.release("a", now);
    assert_eq!(granted(&mut book, "b", now), train(0, 0));
    assert_eq!(granted(&mut book, "c", now), train(0, 1));
}

#[test]
fn a_task_that_the_learner_holds_before_its_worker_says_so_stays_with_it() {
    let now = Instant::now();
    let mut book = book(2, now);
    granted(&mut book, "a", now);
    book.report(0, &[wants(0, 2, &[0])], now);
    assert_eq!(ask(&mut book, "a", &[train(0, 0)], now), Grant::Task(train(0, 1)));
    assert!(book.finish("a", train(0, 0), now), "counted as its work");
}

#[test]
fn what_a_worker_says_it_is_finishing_is_not_granted_to_it() {
    let now = Instant::now();
    let mut book = book(2, now);
    assert_eq!(ask(&mut book, "a", &[train(0, 0)], now), Grant::Task(train(0, 1)));
}

#[test]
fn a_failed_task_goes_to_a_worker_that_has_not_failed_at_it() {
    let now = Instant::now();
    let mut book = book(1, now);
    let ask = |book: &mut TaskBook, worker| book.grant(Asking { worker, finishing: &[], n_workers: 2 }, now);
    ask(&mut book, "a");
    fail(&mut book, "a", train(0, 0), false, now);
    assert!(matches!(ask(&mut book, "a"), Grant::Wait(_)), "b may do better");
    assert_eq!(ask(&mut book, "b"), Grant::Task(train(0, 0)));
    fail(&mut book, "b", train(0, 0), false, now);
    assert_eq!(ask(&mut book, "a"), Grant::Task(train(0, 0)), "there is nobody else");
}

#[test]
fn a_worker_left_alone_with_a_task_it_failed_at_tries_again() {
    let now = Instant::now();
    let mut book = book(1, now);
    granted(&mut book, "a", now);
    fail(&mut book, "a", train(0, 0), false, now);
    assert_eq!(granted(&mut book, "a", now), train(0, 0));
}

#[test]
fn one_worker_alone_among_several_does_not_end_the_run() {
    let now = Instant::now();
    let mut book = book(1, now);
    let fail = |book: &mut TaskBook, worker| {
        // Whatever it was granted before.
        book.leases.add(worker, train(0, 0), now);
        book.fail(Failed { worker, task: train(0, 0), blame: Blame::Task, n_workers: 2 }, now)
    };
    for _ in 0..20 {
        assert_eq!(fail(&mut book, "a"), Verdict::TryAgain);
    }
    assert_eq!(fail(&mut book, "b"), Verdict::GiveUp { failures: 21 }, "two of them agree");
}

#[test]
fn what_is_not_wanted_cannot_fail() {
    let now = Instant::now();
    let mut book = book(1, now);
    for task in [train(0, 1), train(0, u32::MAX), train(u32::MAX, 0), evaluate(0, 0)] {
        for _ in 0..10 {
            book.claim("a", &[task], now);
            assert_eq!(fail(&mut book, "a", task, true, now), Verdict::TryAgain, "{task}");
        }
    }
    assert!(book.failures.is_empty());
}

#[test]
fn only_who_had_a_task_can_say_that_it_is_delivered() {
    let now = Instant::now();
    let mut book = book(1, now);
    assert!(!book.finish("a", train(0, 0), now));
    assert_eq!(granted(&mut book, "b", now), train(0, 0));
}

#[test]
fn a_worker_that_claims_everything_is_believed_two_tasks() {
    let now = Instant::now();
    let mut book = book(4, now);
    let all: Vec<TaskName> = (0..4).map(|index| train(0, index)).collect();
    book.claim("a", &all, now);
    assert_eq!(book.leases_of("a"), &all[..2]);
    assert_eq!(granted(&mut book, "b", now), train(0, 2));
}

/// What the book says is free, against what is free by definition, after any course of events.
#[test]
fn free_tasks_are_those_that_nobody_has_after_any_course_of_events() {
    let (mut now, mut state) = (Instant::now(), 7_u64);
    let mut draw = move |bound: u64| {
        // Knuth's linear congruential generator; its upper bits are good enough to shuffle events.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut book = TaskBook::default();
    for _ in 0..4000 {
        now += Duration::from_millis(200);
        if draw(5) == 0 {
            book.look_for_late(now);
        }
        let worker = ["a", "b", "c"][draw(3) as usize];
        let task = train(draw(3) as u32, draw(5) as u32);
        match draw(9) {
            8 => book.give_back(worker, task, now),
            0 => {
                let held: Vec<u32> = (0..6).filter(|_| draw(3) == 0).collect();
                let wanted = [wants(draw(3) as u32, 5, &held), wants(draw(3) as u32, 5, &[])];
                book.report(0, &wanted[..draw(3) as usize], now);
            }
            1 | 2 => drop(ask(&mut book, worker, &[task], now)),
            3 => drop(ask(&mut book, worker, &[], now)),
            4 => drop(book.finish(worker, task, now)),
            5 => drop(fail(&mut book, worker, task, false, now)),
            6 => book.claim(worker, &[task, train(1, draw(9) as u32)], now),
            _ if draw(4) == 0 => book.forget_learner(0),
            _ => book.release(worker, now),
        }
        let leased: BTreeSet<TaskName> =
            ["a", "b", "c"].iter().flat_map(|worker| book.leases_of(worker)).copied().collect();
        let all = (0..3).flat_map(|iteration| (0..9).map(move |index| train(iteration, index)));
        let open: Vec<TaskName> = all.filter(|task| book.is_open(task)).collect();
        let free: Vec<TaskName> = open.iter().filter(|task| !leased.contains(task)).copied().collect();
        assert_eq!(book.grantable().collect::<Vec<_>>(), free);
        for (_, task) in &book.late {
            assert!(book.is_open(task) && book.leases.only_runner(task).is_some(), "{task} is not late");
        }
        let counts = book.counts();
        assert_eq!((counts.waiting, counts.leased), (free.len() as u32, (open.len() - free.len()) as u32));
    }
}

#[test]
fn a_task_that_memory_is_short_for_ends_the_run_when_three_workers_say_so_or_all_where_there_are_fewer() {
    let now = Instant::now();
    for (workers, n_workers) in [(&["a", "b", "c"][..], 10), (&["a", "b"], 2), (&["a", "a"], 1)] {
        let mut book = TaskBook::default();
        book.report(0, &[wants(0, 1, &[])], now);
        let mut short = |worker| {
            let asking = Asking { worker, finishing: &[], n_workers };
            assert_eq!(book.grant(asking, now), Grant::Task(train(0, 0)));
            book.fail(Failed { worker, task: train(0, 0), blame: Blame::Memory, n_workers }, now)
        };
        let (last, before) = workers.split_last().expect("some");
        before.iter().for_each(|worker| assert_eq!(short(worker), Verdict::TryAgain, "{workers:?}"));
        assert_eq!(short(last), Verdict::GiveUp { failures: workers.len() as u32 }, "{workers:?}");
    }
}

#[test]
fn failures_at_tasks_that_a_worker_only_says_it_has_end_nothing() {
    let now = Instant::now();
    let mut book = book(1, now);
    for worker in ["x", "y", "z"] {
        for _ in 0..20 {
            book.claim(worker, &[train(0, 0)], now);
            let failed = Failed { worker, task: train(0, 0), blame: Blame::Memory, n_workers: 3 };
            assert_eq!(book.fail(failed, now), Verdict::TryAgain);
        }
    }
    assert_eq!(granted(&mut book, "a", now), train(0, 0));
}
