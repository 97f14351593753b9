//! Room at the learner, tasks that are late, and tasks that are given back.

use super::*;

#[test]
fn tasks_that_the_learner_has_no_room_for_wait() {
    let now = Instant::now();
    let mut book = TaskBook::default();
    let open = |open_below| WantedTasks { open_below, ..wants(0, 3, &[]) };
    book.report(0, &[open(1)], now);
    assert_eq!(granted(&mut book, "a", now), train(0, 0));
    assert!(!book.has_grantable() && waits(&mut book, "b", now));
    assert_eq!(book.counts(), TaskCounts { waiting: 2, leased: 1, held: 0 });
    book.report(0, &[open(2)], now);
    assert_eq!(granted(&mut book, "b", now), train(0, 1));
    // What is open again is granted again, however full the learner is of later ones.
    book.release("a", now);
    assert_eq!(granted(&mut book, "c", now), train(0, 0));
}

/// A book in which `a` and `b` have each finished a task of 10 s, and `slow` one of 60 s; nothing else is free but the tasks
/// from 3 on.
fn known(n_free: u32, start: Instant) -> (TaskBook, Instant) {
    let mut book = book(3 + n_free, start);
    for worker in ["a", "b", "slow"] {
        granted(&mut book, worker, start);
    }
    let second = Duration::from_secs(1);
    book.finish("a", train(0, 0), start + second * 10);
    book.finish("b", train(0, 1), start + second * 10);
    book.finish("slow", train(0, 2), start + second * 60);
    let now = start + second * 60;
    book.report(0, &[wants(0, 3 + n_free, &[0, 1, 2])], now);
    book.look_for_late(now);
    (book, now)
}

#[test]
fn where_nothing_is_left_a_late_task_goes_to_another_worker_once() {
    let second = Duration::from_secs(1);
    let (mut book, start) = known(1, Instant::now());
    assert_eq!(granted(&mut book, "a", start), train(0, 3));
    for (after, is_late) in [(15, false), (16, true)] {
        let now = start + second * after;
        book.look_for_late(now);
        assert_eq!(book.has_grantable(), is_late, "after {after} s");
    }
    let now = start + second * 16;
    let own = ask(&mut book, "a", &[train(0, 3)], now);
    assert!(matches!(own, Grant::Wait(_)), "who has it does not get it a second time");
    assert_eq!(granted(&mut book, "b", now), train(0, 3));
    assert_eq!(granted(&mut book, "b", now), train(0, 3), "asking again gives it again");
    book.look_for_late(now + second * 600);
    assert!(!book.has_grantable() && waits(&mut book, "c", now + second * 600), "two have it");
    assert_eq!(book.counts().leased, 1);
}

#[test]
fn of_two_workers_of_a_task_the_first_to_finish_counts_and_the_other_gives_it_back() {
    let (mut book, now) = known(1, Instant::now());
    assert_eq!(granted(&mut book, "slow", now), train(0, 3));
    book.look_for_late(now);
    assert_eq!(granted(&mut book, "a", now), train(0, 3), "it would take the slow one six times as long");
    assert_eq!(book.not_needed(&[train(0, 3)]), []);
    assert!(book.finish("a", train(0, 3), now));
    assert_eq!(book.not_needed(&[train(0, 3)]), [train(0, 3)]);
    book.give_back("slow", train(0, 3), now);
    assert!(book.leases_of("slow").is_empty() && book.failures.is_empty());
    assert_eq!(book.counts().held, 4);
}

#[test]
fn a_slow_worker_gets_no_late_task_that_it_would_be_later_with() {
    let (mut book, start) = known(1, Instant::now());
    assert_eq!(granted(&mut book, "slow", start), train(0, 3));
    book.release("slow", start);
    assert_eq!(granted(&mut book, "a", start), train(0, 3));
    book.look_for_late(start);
    assert!(waits(&mut book, "slow", start));
    let late = start + Duration::from_secs(16);
    book.look_for_late(late);
    assert_eq!(granted(&mut book, "slow", late), train(0, 3), "nobody knows what became of the first");
}

#[test]
fn the_late_task_that_was_granted_first_goes_first_and_free_ones_before() {
    let second = Duration::from_secs(1);
    let (mut book, start) = known(3, Instant::now());
    assert_eq!(granted(&mut book, "b", start), train(0, 3));
    assert_eq!(granted(&mut book, "a", start - second), train(0, 4));
    let now = start + second * 100;
    book.look_for_late(now);
    assert_eq!(granted(&mut book, "c", now), train(0, 5));
    assert_eq!(granted(&mut book, "d", now), train(0, 4));
    assert_eq!(granted(&mut book, "e", now), train(0, 3));
}

#[test]
fn what_is_given_back_is_free_again_and_no_failure() {
    let now = Instant::now();
    let mut book = book(1, now);
    granted(&mut book, "a", now);
    book.give_back("b", train(0, 0), now);
    assert!(waits(&mut book, "b", now), "it was not that worker's");
    book.give_back("a", train(0, 0), now);
    book.give_back("a", train(0, 0), now);
    assert_eq!(granted(&mut book, "a", now), train(0, 0));
    assert!(book.failures.is_empty());
}

#[test]
fn only_what_is_held_or_past_is_not_needed() {
    let now = Instant::now();
    let mut book = TaskBook::default();
    let in_hand = [train(4, 0), train(5, 0), train(5, 1), train(6, 0), evaluate(3, 0)];
    assert_eq!(book.not_needed(&in_hand), [], "no learner has spoken");
    book.report(0, &[], now);
    assert_eq!(book.not_needed(&in_hand), [], "it has only just begun");
    book.report(0, &[wants(5, 2, &[1])], now);
    assert_eq!(book.not_needed(&in_hand), [train(4, 0), train(5, 1), evaluate(3, 0)]);
}

#[test]
fn a_task_whose_beginning_nobody_saw_teaches_nothing() {
    let second = Duration::from_secs(1);
    let start = Instant::now();
    let mut book = book(2, start);
    book.claim("a", &[train(0, 0)], start);
    book.finish("a", train(0, 0), start + second);
    book.look_for_late(start + second);
    granted(&mut book, "a", start + second);
    let longest = second * 600;
    assert_eq!(book.standstill_deadline("a", longest), longest);
    book.finish("a", train(0, 1), start + second * 21);
    book.report(0, &[wants(1, 1, &[])], start + second * 21);
    granted(&mut book, "a", start + second * 21);
    assert_eq!(book.standstill_deadline("a", longest), second * 80);
}
