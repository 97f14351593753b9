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
    Roster::Run { workers }
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
    now += Duration::from_secs(3600);
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
        (2000, run(0), &waits, "drain worker-0, kill worker-0"),
        (3000, nobody(5), &waits, "kill worker-0"),
    ]);
}

/// Numbers that look random, by xorshift.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What really becomes of a member, which the keeper only sees.
struct Reality {
    sight: Sight,
    runs_since: Instant,
    is_asked: bool,
}

/// A place whose members do what they like, short of ignoring to be killed.
struct World {
    dice: Dice,
    now: Instant,
    members: BTreeMap<MemberName, Reality>,
    idle_deaths: BTreeMap<MemberName, u32>,
    /// Done by each, now and when it was last started.
    work: BTreeMap<MemberName, (u64, u64)>,
    has_given_up: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            dice: Dice(seed),
            now: Instant::now(),
            members: BTreeMap::new(),
            idle_deaths: BTreeMap::new(),
            work: BTreeMap::new(),
            has_given_up: false,
        }
    }

    /// Lets some time pass.
    fn go_on(&mut self) {
        self.now += Duration::from_millis(1 + self.dice.throw(3) * self.dice.throw(20_000));
        for (&member, reality) in &mut self.members {
            let (work_done, _) = self.work.entry(member).or_default();
            let is_pending = matches!(reality.sight.observed, Observed::Pending(_));
            match self.dice.throw(12) {
                _ if matches!(reality.sight.observed, Observed::Exited(_)) => {}
                0 => reality.sight = exited(member, Some(1)),
                1 => reality.sight = exited(member, None),
                2 if !is_pending => reality.sight = lost(Loss::Silent),
                3 if !is_pending => reality.sight = lost(Loss::Stuck),
                4..7 if !is_pending => *work_done += 1,
                7..10 => reality.sight = living(),
                _ => {}
            }
            reality.sight.work_done = *work_done;
        }
    }

    fn look(&mut self) -> BTreeMap<MemberName, Sight> {
        for reality in self.members.values_mut() {
            if let Observed::Pending(_) = reality.sight.observed {
                reality.runs_since = self.now;
            }
        }
        self.members.iter().map(|(&member, reality)| (member, reality.sight.clone())).collect()
    }

    fn carry_out(&mut self, action: Action, wanted: Roster) {
        match action {
            Action::Start(member) => {
                assert!(wanted.includes(member) && !self.has_given_up, "{member} is not wanted");
                let deaths = self.idle_deaths.get(&member);
                assert!(deaths.is_none_or(|deaths| *deaths < 6), "{member} is set aside");
                let work = self.work.entry(member).or_default();
                work.1 = work.0;
                let sight = if self.dice.throw(3) == 0 { pending() } else { silent() };
                let sight = Sight { work_done: work.0, ..sight };
                let reality = Reality { sight, runs_since: self.now, is_asked: false };
                let earlier = self.members.insert(member, reality);
                assert!(earlier.is_none(), "{member} was there already");
            }
            Action::Signal(member, signal) => {
                let reality = self.members.get_mut(&member).expect("it is there");
                let is_asked = signal == Signal::Terminate;
                assert!(!(is_asked && reality.is_asked), "{member} is asked twice");
                reality.is_asked |= is_asked;
                let obeys = !is_asked || self.dice.throw(2) == 0;
                reality.sight = if obeys { exited(member, None) } else { reality.sight.clone() };
                reality.sight.work_done = self.work[&member].0;
            }
            Action::Forget(member) => {
                let reality = self.members.remove(&member).expect("it was there");
                assert!(matches!(reality.sight.observed, Observed::Exited(_)), "{member} has not ended");
                self.count(member, wanted);
            }
            Action::SetAside(report) => {
                assert_eq!(self.idle_deaths[&report.member], 6, "{} is set aside early", report.member);
            }
            Action::GiveUp(report) => {
                assert_eq!(self.idle_deaths[&report.member], 6, "{} is given up early", report.member);
                let others = wanted
                    .members()
                    .filter(|member| report.member != MemberName::Learner && *member != Learner);
                others.for_each(|other| assert_eq!(self.idle_deaths[&other], 6, "{other} could work"));
                self.has_given_up = true;
            }
            Action::Drain(member) => assert!(!wanted.includes(member), "{member} is wanted"),
        }
    }

    /// As many deaths without work in a row as a member is allowed.
    fn count(&mut self, member: MemberName, wanted: Roster) {
        if !wanted.includes(member) {
            return;
        }
        let (done, at_start) = self.work[&member];
        let idle_deaths = self.idle_deaths.entry(member).or_default();
        *idle_deaths = if done > at_start { 1 } else { *idle_deaths + 1 };
        assert!(*idle_deaths <= 6, "{member} was started too often");
    }
}

#[test]
fn whatever_happens_nobody_is_there_twice_or_too_often_and_all_end() {
    let (mut n_given_up, mut n_starts) = (0, 0);
    for seed in 1..=500 {
        let (mut world, mut keeper) = (World::new(seed * 0x9e37_79b9), Keeper::default());
        let mut wanted = run(3);
        for _ in 0..200 {
            if world.dice.throw(20) == 0 {
                let earlier = wanted;
                wanted = run(world.dice.throw(6) as u32);
                if wanted != earlier {
                    // Whose place was set aside has another chance.
                    world.idle_deaths.retain(|_, deaths| *deaths < 6);
                }
            }
            world.go_on();
            for action in keeper.decide(wanted, &world.look(), world.now) {
                n_starts += u32::from(matches!(action, Action::Start(_)));
                world.carry_out(action, wanted);
            }
            if world.has_given_up {
                n_given_up += 1;
                break;
            }
        }
        let stopped = world.now;
        while !world.members.is_empty() {
            world.go_on();
            let actions = keeper.decide(nobody(7), &world.look(), world.now);
            actions.into_iter().for_each(|action| world.carry_out(action, nobody(7)));
            // Looks are 40 seconds apart at most: one to begin, one to kill, one to see that it worked.
            assert!(world.now - stopped <= Duration::from_secs(7 + 10 + 3 * 40), "they do not end");
        }
    }
    assert!((50..450).contains(&n_given_up) && n_starts > 5000, "{n_given_up} given up, {n_starts} starts");
}
