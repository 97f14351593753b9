mod whatever_happens;

use super::*;
use MemberName::{Learner, Worker};

fn sight(observed: Observed, presence: Option<Presence>) -> Sight {
    Sight { observed, presence, work_done: 0 }
}

fn silent() -> Sight {
    sight(Observed::Running, None)
}

fn living() -> Sight {
    sight(Observed::Running, Some(Presence::Living))
}

fn lost(loss: Loss) -> Sight {
    sight(Observed::Running, Some(Presence::Lost(loss)))
}

fn pending() -> Sight {
    sight(Observed::Pending("no machine is free".to_owned()), None)
}

fn exited(member: MemberName, code: impl Into<Option<i32>>) -> Sight {
    let (code, log) = (code.into(), "member.log".into());
    let report = ExitReport { member, code, how: "ended".to_owned(), log, last_lines: Vec::new() };
    sight(Observed::Exited(report), None)
}

fn words(action: &Action) -> String {
    match action {
        Action::Start(member) => format!("start {member}"),
        Action::Drain(member) => format!("drain {member}"),
        Action::Signal(member, Signal::Terminate) => format!("end {member}"),
        Action::Signal(member, Signal::Kill) => format!("kill {member}"),
        Action::Forget(member) => format!("forget {member}"),
        Action::SetAside(report) => format!("set aside {}", report.member),
        Action::GiveUp(report) => format!("give up {}", report.member),
    }
}

const fn run(workers: u32) -> Roster {
    Roster::Run { has_learner: true, workers }
}

const fn nobody(grace: u64) -> Roster {
    Roster::Nobody { grace: Some(Duration::from_secs(grace)) }
}

/// Milliseconds since the beginning, who is wanted, what is seen, and what follows.
type Row<'a> = (u64, Roster, &'a [(MemberName, Sight)], &'a str);

/// Shows a keeper one row after the other.
fn check_from(mut keeper: Keeper, start: Instant, rows: &[Row<'_>]) {
    for (millis, wanted, sights, expected) in rows {
        let now = start + Duration::from_millis(*millis);
        let sights = sights.iter().cloned().collect();
        let actions = keeper.decide(*wanted, &sights, now);
        let actions: Vec<String> = actions.iter().map(words).collect();
        assert_eq!(actions.join(", "), *expected, "after {millis} ms");
    }
}

fn check(rows: &[Row<'_>]) {
    check_from(Keeper::default(), Instant::now(), rows);
}

#[test]
fn what_is_missing_is_started_once() {
    check(&[
        (0, run(2), &[], "start learner, start worker-0, start worker-1"),
        (1, run(2), &[], ""),
        (100, run(2), &[(Learner, living()), (Worker(0), silent()), (Worker(1), pending())], ""),
        (200, run(3), &[(Learner, living()), (Worker(0), living()), (Worker(1), silent())], "start worker-2"),
    ]);
}

#[test]
fn what_ended_is_started_again_after_a_pause_that_grows() {
    let other = (Learner, living());
    let ended = [other.clone(), (Worker(0), exited(Worker(0), 1))];
    let only = [other.clone()];
    check(&[
        (0, run(1), &[], "start learner, start worker-0"),
        (1000, run(1), &ended, "forget worker-0"),
        (1199, run(1), &only, ""),
        (1200, run(1), &only, "start worker-0"),
        (1300, run(1), &ended, "forget worker-0"),
        (1699, run(1), &only, ""),
        (1700, run(1), &only, "start worker-0"),
        (1800, run(1), &[other, (Worker(0), silent())], ""),
        // However long it lived.
        (31_700, run(1), &ended, "forget worker-0"),
        (32_499, run(1), &only, ""),
        (32_500, run(1), &only, "start worker-0"),
    ]);
}

#[test]
fn who_ends_without_having_worked_is_given_up_in_the_end() {
    let mut keeper = Keeper::default();
    let mut now = Instant::now();
    // What the first life did is no work of the others.
    let ended = || BTreeMap::from([(Learner, Sight { work_done: 1, ..exited(Learner, 1) })]);
    for life in 1..=6 {
        assert_eq!(keeper.decide(run(0), &BTreeMap::new(), now), [Action::Start(Learner)]);
        now += Duration::from_secs(11);
        let actions: Vec<String> = keeper.decide(run(0), &ended(), now).iter().map(words).collect();
        let expected = if life < 6 { "forget learner" } else { "forget learner, give up learner" };
        assert_eq!(actions.join(", "), expected, "life {life}");
        now += Duration::from_secs(11);
    }
}

/// Has workers die at their starts until the keeper says something else than that it forgets them.
fn die(keeper: &mut Keeper, dying: &[u32], wanted: Roster, now: &mut Instant) -> String {
    let living: Vec<MemberName> =
        wanted.members().filter(|member| !dying.iter().any(|n| *member == Worker(*n))).collect();
    loop {
        *now += Duration::from_secs(11);
        let alive = living.iter().map(|member| (*member, self::living()));
        keeper.decide(wanted, &alive.clone().collect(), *now);
        *now += Duration::from_secs(40);
        let dead = dying.iter().map(|number| (Worker(*number), exited(Worker(*number), None)));
        let actions = keeper.decide(wanted, &alive.chain(dead).collect(), *now);
        let said: Vec<String> =
            actions.iter().map(words).filter(|word| !word.starts_with("forget")).collect();
        if !said.is_empty() {
            return said.join(", ");
        }
    }
}

#[test]
fn a_worker_that_keeps_dying_is_set_aside_and_ends_the_run_only_with_the_last_of_them() {
    let (mut keeper, mut now) = (Keeper::default(), Instant::now());
    assert_eq!(die(&mut keeper, &[1], run(2), &mut now), "set aside worker-1");
    let both = BTreeMap::from([(Learner, living()), (Worker(0), living())]);
    now += TIME_SET_ASIDE - Duration::from_secs(1);
    assert_eq!(keeper.decide(run(2), &both, now), [], "it is not started again");
    // Another number of workers gives it another chance, also where that leaves nobody else.
    let more = keeper.decide(run(3), &both, now);
    assert_eq!(more, [Action::Start(Worker(1)), Action::Start(Worker(2))]);
    let (mut other, mut then) = (Keeper::default(), now);
    assert_eq!(die(&mut other, &[0], run(2), &mut then), "set aside worker-0");
    let both = BTreeMap::from([(Learner, living()), (Worker(1), living())]);
    let fewer: Vec<String> = other.decide(run(1), &both, then).iter().map(words).collect();
    assert_eq!(fewer.join(", "), "drain worker-1, start worker-0");
    let mut keeper = Keeper::default();
    assert_eq!(die(&mut keeper, &[1], run(2), &mut now), "set aside worker-1");
    assert_eq!(die(&mut keeper, &[0], run(2), &mut now), "give up worker-0", "nobody is left");
}

#[test]
fn a_place_that_was_set_aside_is_tried_again_after_a_long_while_and_again() {
    let (mut keeper, mut now) = (Keeper::default(), Instant::now());
    die(&mut keeper, &[1], run(2), &mut now);
    let alone = [(Learner, living()), (Worker(0), living())];
    let dead = BTreeMap::from([alone[0].clone(), alone[1].clone(), (Worker(1), exited(Worker(1), None))]);
    for attempt in 0..3 {
        now += TIME_SET_ASIDE;
        let tried = keeper.decide(run(2), &alone.iter().cloned().collect(), now);
        assert_eq!(tried, [Action::Start(Worker(1))], "attempt {attempt}");
        let said: Vec<String> = keeper.decide(run(2), &dead, now).iter().map(words).collect();
        assert_eq!(said.join(", "), "forget worker-1, set aside worker-1", "one death is enough");
    }
    now += TIME_SET_ASIDE;
    keeper.decide(run(2), &alone.iter().cloned().collect(), now);
    let worked = Sight { work_done: 1, ..exited(Worker(1), None) };
    let sights = BTreeMap::from([alone[0].clone(), alone[1].clone(), (Worker(1), worked)]);
    assert_eq!(keeper.decide(run(2), &sights, now), [Action::Forget(Worker(1))], "it works again");
}

#[test]
fn workers_that_joined_by_hand_keep_a_run_going_whose_own_are_all_set_aside() {
    let (mut keeper, mut now) = (Keeper::default(), Instant::now());
    keeper.note_others(1);
    let said = die(&mut keeper, &[0, 1], run(2), &mut now);
    assert_eq!(said, "set aside worker-0, set aside worker-1");
    // Whether anybody works is asked again when another attempt has failed.
    keeper.note_others(0);
    let learner = BTreeMap::from([(Learner, living())]);
    assert_eq!(keeper.decide(run(2), &learner, now), []);
    now += TIME_SET_ASIDE * 2;
    assert_eq!(keeper.decide(run(2), &learner, now), [Action::Start(Worker(0)), Action::Start(Worker(1))]);
    let one = BTreeMap::from([(Learner, living()), (Worker(0), silent()), (Worker(1), exited(Worker(1), 1))]);
    let said: Vec<String> = keeper.decide(run(2), &one, now).iter().map(words).collect();
    assert_eq!(said.join(", "), "forget worker-1, set aside worker-1", "the other is being tried");
    let none = BTreeMap::from([(Learner, living()), (Worker(0), exited(Worker(0), 1))]);
    let said: Vec<String> = keeper.decide(run(2), &none, now).iter().map(words).collect();
    assert_eq!(said.join(", "), "forget worker-0, give up worker-0");
}

#[test]
fn what_one_worker_cannot_use_ends_the_run_only_if_no_other_can() {
    let ended = |number| (Worker(number), exited(Worker(number), 2));
    check(&[
        (0, run(2), &[], "start learner, start worker-0, start worker-1"),
        (
            100,
            run(2),
            &[(Learner, living()), (Worker(0), living()), ended(1)],
            "forget worker-1, set aside worker-1",
        ),
        (200, run(2), &[(Learner, living()), ended(0)], "forget worker-0, give up worker-0"),
    ]);
}

#[test]
fn an_end_that_was_announced_does_not_count() {
    let (mut keeper, mut now) = (Keeper::default(), Instant::now());
    let left = Sight { presence: Some(Presence::Left), ..exited(Worker(0), 0) };
    for _ in 0..20 {
        keeper.decide(run(1), &BTreeMap::from([(Learner, living())]), now);
        let sights = BTreeMap::from([(Learner, living()), (Worker(0), left.clone())]);
        assert_eq!(keeper.decide(run(1), &sights, now), [Action::Forget(Worker(0))]);
        now += Duration::from_secs(1);
    }
}

#[test]
fn work_since_the_start_makes_a_short_life_a_sound_one() {
    let worked = |work_done, sight: Sight| Sight { work_done, ..sight };
    let mut keeper = Keeper::default();
    let mut now = Instant::now();
    for iteration in 0..20 {
        keeper.decide(run(0), &BTreeMap::new(), now);
        // What earlier lives did is no work of this one.
        keeper.decide(run(0), &BTreeMap::from([(Learner, worked(iteration, living()))]), now);
        let ended = worked(iteration + 1, exited(Learner, None));
        let actions = keeper.decide(run(0), &BTreeMap::from([(Learner, ended)]), now);
        assert_eq!(actions, [Action::Forget(Learner)]);
        now += Duration::from_millis(200);
    }
}

#[test]
fn bad_input_is_given_up_at_once_and_nothing_is_started_beside() {
    let ended = Sight { work_done: 3, ..exited(Learner, 2) };
    check(&[
        (0, run(0), &[], "start learner"),
        (90_000, run(1), &[(Learner, ended)], "forget learner, give up learner"),
    ]);
}

#[test]
fn who_is_no_member_for_too_long_is_killed_until_it_has_ended() {
    check(&[
        (0, run(0), &[], "start learner"),
        (60_000, run(0), &[(Learner, silent())], ""),
        (60_001, run(0), &[(Learner, silent())], "kill learner"),
        (60_101, run(0), &[(Learner, silent())], "kill learner"),
        (60_201, run(0), &[(Learner, exited(Learner, None))], "forget learner"),
        (60_401, run(0), &[], "start learner"),
        (70_401, run(0), &[(Learner, living())], ""),
        (130_401, run(0), &[(Learner, lost(Loss::Silent))], ""),
        (130_402, run(0), &[(Learner, lost(Loss::Silent))], "kill learner"),
        (130_403, run(0), &[(Learner, living())], ""),
        (130_404, run(0), &[(Learner, lost(Loss::Stuck))], "kill learner"),
    ]);
}

#[test]
fn who_was_adopted_is_not_started_again_and_has_less_time_to_join() {
    let start = Instant::now();
    let mut keeper = Keeper::default();
    [Learner, Worker(1)].iter().for_each(|&member| keeper.adopt(member, start));
    let adopted = [(Learner, silent()), (Worker(1), living())];
    let both = [(Learner, silent()), (Worker(0), silent()), (Worker(1), living())];
    check_from(
        keeper,
        start,
        &[
            (0, run(2), &adopted, "start worker-0"),
            (10_000, run(2), &both, ""),
            (10_001, run(2), &both, "kill learner"),
            (10_100, run(2), &[(Learner, exited(Learner, None)), both[1].clone()], "forget learner"),
            (10_300, run(2), &both[1..], "start learner"),
        ],
    );
}

#[test]
fn a_worker_too_many_is_told_then_asked_once_then_killed() {
    let too_many = [(Learner, living()), (Worker(0), living())];
    let ended = [(Learner, living()), (Worker(0), exited(Worker(0), 2))];
    check(&[
        (0, run(1), &[], "start learner, start worker-0"),
        (100, run(1), &too_many, ""),
        (1000, run(0), &too_many, "drain worker-0"),
        (120_999, run(0), &too_many, "drain worker-0"),
        (121_000, run(0), &too_many, "drain worker-0, end worker-0"),
        (121_100, run(0), &too_many, "drain worker-0"),
        (131_000, run(0), &too_many, "drain worker-0"),
        (131_001, run(0), &too_many, "drain worker-0, kill worker-0"),
        // Nobody wants to know why it ended, and it may come back at once.
        (131_100, run(0), &ended, "forget worker-0"),
        (131_200, run(1), &too_many[..1], "start worker-0"),
    ]);
}

#[test]
fn when_nobody_is_wanted_all_are_asked_once_and_killed_in_the_end() {
    let both = [(Learner, living()), (Worker(0), lost(Loss::Stuck))];
    check(&[
        (0, run(1), &[], "start learner, start worker-0"),
        (1000, nobody(5), &both, ""),
        (5999, nobody(5), &both, ""),
        (6000, nobody(5), &both, "end learner, end worker-0"),
        (6100, nobody(5), &both, ""),
        (16_000, nobody(5), &both, ""),
        (16_001, nobody(5), &both, "kill learner, kill worker-0"),
        (
            16_100,
            nobody(5),
            &[(Learner, exited(Learner, 2)), (Worker(0), silent())],
            "forget learner, kill worker-0",
        ),
        (16_200, nobody(5), &[(Worker(0), exited(Worker(0), None))], "forget worker-0"),
        (99_000, nobody(5), &[], ""),
    ]);
    check(&[
        (0, run(0), &[], "start learner"),
        (100, nobody(5), &[(Learner, living())], ""),
        (200, Roster::Nobody { grace: None }, &[(Learner, living())], "kill learner"),
    ]);
}

#[test]
fn what_is_pending_is_neither_silent_nor_alive_and_has_nothing_to_finish() {
    let waits = [(Learner, living()), (Worker(0), pending())];
    check(&[
        (0, run(1), &[], "start learner, start worker-0"),
        (500_000, run(1), &waits, ""),
        (560_000, run(1), &[(Learner, living()), (Worker(0), silent())], ""),
        (560_001, run(1), &[(Learner, living()), (Worker(0), silent())], "kill worker-0"),
    ]);
    check(&[
        (0, run(1), &[], "start learner, start worker-0"),
        (1000, run(1), &waits, ""),
        // It may have begun since, and be a member with a task by now.
        (2000, run(0), &waits, "drain worker-0, end worker-0"),
        (3000, nobody(5), &waits, ""),
        (13_001, nobody(5), &waits, "end learner, kill worker-0"),
    ]);
}

#[test]
fn every_decision_is_an_event_with_its_reason_and_said_once() {
    let (mut keeper, start) = (Keeper::default(), Instant::now());
    let mut said = |seconds: u64, wanted: Roster, sights: &[(MemberName, Sight)]| {
        keeper.decide(wanted, &sights.iter().cloned().collect(), start + Duration::from_secs(seconds));
        let events = keeper.take_events();
        let label = |event: &Event| event.label();
        events.iter().map(label).collect::<Vec<_>>()
    };
    let both = [(Learner, living()), (Worker(0), living())];
    assert_eq!(said(0, run(1), &[]), [("process_started", ""); 2]);
    assert_eq!(said(1, run(0), &both), [("process_drained", "")]);
    assert_eq!(said(2, run(0), &both), [], "it is told again, and that is no news");
    assert_eq!(said(125, run(0), &both), [("process_signalled", "surplus")]);
    assert_eq!(said(126, run(1), &both), [], "it is wanted again");
    assert_eq!(said(127, run(0), &both), [("process_drained", "")]);
    let stuck = [(Learner, living()), (Worker(0), lost(Loss::Stuck))];
    assert_eq!(said(128, run(1), &stuck), [("process_signalled", "hung")]);
    let ended = [(Learner, living()), (Worker(0), exited(Worker(0), 1))];
    assert_eq!(said(129, run(1), &ended), [("process_ended", "restarted")]);
    assert_eq!(said(140, run(1), &both[..1]), [("process_started", "")]);
    assert_eq!(
        said(141, run(1), &[(Learner, exited(Learner, 2)), both[1].clone()]),
        [("process_ended", "given_up")]
    );
}
