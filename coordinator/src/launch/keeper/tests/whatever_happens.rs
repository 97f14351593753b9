//! The keeper in a world of chance.

use super::*;

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
    is_asked: bool,
}

/// A place whose members do what they like, short of ignoring to be killed.
struct World {
    dice: Dice,
    now: Instant,
    members: BTreeMap<MemberName, Reality>,
    idle_deaths: BTreeMap<MemberName, u32>,
    /// Since when a place is.
    set_aside: BTreeMap<MemberName, Instant>,
    n_tried_again: u32,
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
            set_aside: BTreeMap::new(),
            n_tried_again: 0,
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

    fn look(&self) -> BTreeMap<MemberName, Sight> {
        self.members.iter().map(|(&member, reality)| (member, reality.sight.clone())).collect()
    }

    fn carry_out(&mut self, action: Action, wanted: Roster) {
        match action {
            Action::Start(member) => {
                assert!(wanted.includes(member) && !self.has_given_up, "{member} is not wanted");
                let deaths = self.idle_deaths.get(&member);
                let is_due = |since: &Instant| self.now >= *since + TIME_SET_ASIDE;
                let is_tried_again = self.set_aside.remove(&member).is_some_and(|since| is_due(&since));
                self.n_tried_again += u32::from(is_tried_again);
                assert!(deaths.is_none_or(|deaths| *deaths < 6) || is_tried_again, "{member} is set aside");
                let work = self.work.entry(member).or_default();
                work.1 = work.0;
                let sight = if self.dice.throw(3) == 0 { pending() } else { silent() };
                let sight = Sight { work_done: work.0, ..sight };
                let reality = Reality { sight, is_asked: false };
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
                assert!(self.idle_deaths[&report.member] >= 6, "{} is set aside early", report.member);
                self.set_aside.insert(report.member, self.now);
            }
            Action::GiveUp(report) => {
                assert!(self.idle_deaths[&report.member] >= 6, "{} is given up early", report.member);
                let others =
                    wanted.members().filter(|member| !report.member.is_learner() && !member.is_learner());
                others.for_each(|other| assert!(self.idle_deaths[&other] >= 6, "{other} could work"));
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
    }
}

#[test]
fn whatever_happens_nobody_is_there_twice_or_too_often_and_all_end() {
    let (mut n_given_up, mut n_starts, mut n_tried_again) = (0, 0, 0);
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
        n_tried_again += world.n_tried_again;
        let stopped = world.now;
        while !world.members.is_empty() {
            world.go_on();
            let actions = keeper.decide(nobody(7), &world.look(), world.now);
            actions.into_iter().for_each(|action| world.carry_out(action, nobody(7)));
            // Looks are 40 seconds apart at most: one to begin, one to kill, one to see that it worked.
            assert!(world.now - stopped <= Duration::from_secs(7 + 10 + 3 * 40), "they do not end");
        }
    }
    assert!(n_tried_again > 0, "nothing that was set aside was tried again");
    assert!((50..450).contains(&n_given_up) && n_starts > 5000, "{n_given_up} given up, {n_starts} starts");
}
