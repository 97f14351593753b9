//! Who is started, asked to end, killed or given up: decisions only, without processes and without a clock.
//!
//! Invariants:
//! 1. A member is started only where its earlier life has been seen to end.
//! 2. A member that cannot be helped by starting it again is given up, which ends the run; a worker's place only once no
//!    other is left. Until then it is set aside.
//! 3. Who is told to leave is asked to end once, after a grace, and killed a while later.
//! 4. Once nobody is wanted, nobody is started.

use super::restart::{End, RestartDecision, RestartHistory};
use super::{ExitReport, MemberName, Observed, Signal};
use crate::membership::{Loss, Presence};
use service::exit_code;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What runs for that long without being a member is taken for hung.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// What an earlier coordinator started and has not joined again after that long is replaced.
const ADOPTION_LIMIT: Duration = Duration::from_secs(10);
/// Time for a worker that is too many to finish its task.
const SURPLUS_GRACE: Duration = Duration::from_secs(120);
/// Time between asking a member to end and making it.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// Who there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roster {
    /// The learner, and workers at the positions below this number.
    Run {
        /// How many workers.
        workers: u32,
    },
    /// Nobody.
    Nobody {
        /// Time to end by oneself before being asked to; without it everybody is killed at once.
        grace: Option<Duration>,
    },
}

impl Roster {
    fn includes(self, member: MemberName) -> bool {
        match (self, member) {
            (Self::Run { workers }, MemberName::Worker(position)) => position < workers,
            (Self::Run { .. }, MemberName::Learner) => true,
            (Self::Nobody { .. }, _) => false,
        }
    }

    /// All that there should be.
    pub fn members(self) -> impl Iterator<Item = MemberName> {
        let (learner, workers) = match self {
            Self::Run { workers } => (Some(MemberName::Learner), workers),
            Self::Nobody { .. } => (None, 0),
        };
        learner.into_iter().chain((0..workers).map(MemberName::Worker))
    }
}

/// What is seen of a member that was started or adopted.
#[derive(Clone, Debug)]
pub struct Sight {
    /// By its launcher.
    pub observed: Observed,
    /// Whether and how it is a member of the run.
    pub presence: Option<Presence>,
    /// Tasks of a worker, or iterations of the learner, over all its lives.
    pub work_done: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the launcher for it.
    Start(MemberName),
    /// Have it told that it may leave once it has finished what it has in hand.
    Drain(MemberName),
    /// Make it end.
    Signal(MemberName, Signal),
    /// It has ended: end its membership, and have the launcher forget it.
    Forget(MemberName),
    /// Say that the member that ended so is not started again as long as others work.
    SetAside(ExitReport),
    /// The run cannot go on without the member that ended so.
    GiveUp(ExitReport),
}

/// Keeps the members of one run alive.
#[derive(Debug, Default)]
pub struct Keeper {
    records: BTreeMap<MemberName, Record>,
    /// Since when nobody is wanted.
    stopping_since: Option<Instant>,
    /// Who there should be as of the last decision.
    roster: Option<Roster>,
}

/// What is known of one member.
#[derive(Debug, Default)]
struct Record {
    history: RestartHistory,
    /// As last seen.
    work_done: u64,
    /// It is not to be started before then.
    not_before: Option<Instant>,
    life: Option<Life>,
    /// How it ended, if it is not started again until another number of workers is wanted.
    set_aside: Option<ExitReport>,
}

/// From a member's start to its end.
#[derive(Debug)]
struct Life {
    /// When it is killed unless it is a member.
    member_by: Instant,
    work_at_start: u64,
    /// What it waits for, if it does not run yet.
    pending: Option<String>,
    /// When it was noticed to be too many.
    surplus_since: Option<Instant>,
    /// Whether it was asked to end.
    is_asked: bool,
}

impl Keeper {
    /// Takes note of a member that an earlier coordinator started and that still lives.
    pub fn adopt(&mut self, member: MemberName, now: Instant) {
        let life = Life::new(0, now + ADOPTION_LIMIT);
        self.records.entry(member).or_default().life = Some(life);
    }

    /// Decides what follows from who is wanted and what is seen; an action that is still needed is decided again.
    pub fn decide(
        &mut self,
        wanted: Roster,
        sights: &BTreeMap<MemberName, Sight>,
        now: Instant,
    ) -> Vec<Action> {
        if self.roster.replace(wanted).is_some_and(|earlier| earlier != wanted) {
            let set_aside = self.records.values_mut().filter(|record| record.set_aside.is_some());
            set_aside
                .for_each(|record| (record.set_aside, record.history) = (None, RestartHistory::default()));
        }
        let is_stopping = matches!(wanted, Roster::Nobody { .. });
        self.stopping_since = is_stopping.then(|| self.stopping_since.unwrap_or(now));
        let (mut actions, mut given_up) = (Vec::new(), None);
        for (&member, sight) in sights {
            match &sight.observed {
                Observed::Exited(report) => {
                    actions.push(Action::Forget(member));
                    match self.plan_restart(report, wanted, sight, now) {
                        Some(RestartDecision::GiveUp) => given_up = given_up.or(Some(report.clone())),
                        // The last one that is set aside ends the run.
                        Some(RestartDecision::SetAside) if self.cannot_do_without(report.member, wanted) => {
                            given_up = given_up.or(Some(report.clone()));
                        }
                        Some(RestartDecision::SetAside) => actions.push(Action::SetAside(report.clone())),
                        Some(RestartDecision::After(_)) | None => {}
                    }
                }
                _ => actions.extend(self.watch(member, sight, wanted, now)),
            }
        }
        match given_up {
            Some(report) => actions.push(Action::GiveUp(report)),
            None => actions.extend(self.start_missing(wanted, now)),
        }
        actions
    }

    /// Closes a life and plans the next, if there is to be one.
    fn plan_restart(
        &mut self,
        report: &ExitReport,
        wanted: Roster,
        sight: &Sight,
        now: Instant,
    ) -> Option<RestartDecision> {
        let record = self.records.entry(report.member).or_default();
        record.work_done = sight.work_done;
        let life = record.life.take().filter(|_| wanted.includes(report.member))?;
        let is_orderly =
            [exit_code::DONE, exit_code::RETRY].map(|code| Some(code.into())).contains(&report.code);
        let decision = record.history.decide(End {
            has_worked: sight.work_done > life.work_at_start,
            is_announced: is_orderly && sight.presence == Some(Presence::Left),
            code: report.code,
        });
        match decision {
            RestartDecision::After(pause) => {
                tracing::warn!("{} {}, starting it again in {pause:?}", report.member, report.how);
                record.not_before = Some(now + pause);
            }
            RestartDecision::SetAside => record.set_aside = Some(report.clone()),
            RestartDecision::GiveUp => {}
        }
        Some(decision)
    }

    /// Whether the run ends with a member that was set aside: the learner, or the last of all workers.
    fn cannot_do_without(&self, member: MemberName, wanted: Roster) -> bool {
        let is_left = |other: MemberName| {
            let is_set_aside = self.records.get(&other).is_some_and(|record| record.set_aside.is_some());
            other != MemberName::Learner && !is_set_aside
        };
        member == MemberName::Learner || !wanted.members().any(is_left)
    }

    /// What is to be done about a member that has not ended.
    fn watch(&mut self, member: MemberName, sight: &Sight, wanted: Roster, now: Instant) -> Vec<Action> {
        let record = self.records.entry(member).or_default();
        record.work_done = sight.work_done;
        let life = record.life.get_or_insert_with(|| Life::new(sight.work_done, now + SILENCE_LIMIT));
        // A member that was gone for long is forgotten, and counts from nothing again.
        life.work_at_start = life.work_at_start.min(sight.work_done);
        life.note_pending(member, &sight.observed, now);
        let (since, grace) = match wanted {
            Roster::Nobody { grace } => (self.stopping_since.unwrap_or(now), grace),
            Roster::Run { .. } if life.is_hung(sight.presence, now) => {
                tracing::warn!(member = member.to_string(), "hangs, killed");
                return vec![Action::Signal(member, Signal::Kill)];
            }
            Roster::Run { .. } if wanted.includes(member) => {
                life.is_wanted_again();
                return Vec::new();
            }
            Roster::Run { .. } => (*life.surplus_since.get_or_insert(now), Some(SURPLUS_GRACE)),
        };
        let signal = life.leave(now.saturating_duration_since(since), grace);
        // Where nobody is wanted, everybody has been told already.
        let drain = self.stopping_since.is_none().then_some(Action::Drain(member));
        drain.into_iter().chain(signal.map(|signal| Action::Signal(member, signal))).collect()
    }

    fn start_missing(&mut self, wanted: Roster, now: Instant) -> Vec<Action> {
        let mut starts = Vec::new();
        for member in wanted.members() {
            let record = self.records.entry(member).or_default();
            let is_there = record.life.is_some() || record.set_aside.is_some();
            if !is_there && record.not_before.is_none_or(|then| now >= then) {
                record.life = Some(Life::new(record.work_done, now + SILENCE_LIMIT));
                starts.push(Action::Start(member));
            }
        }
        starts
    }
}

impl Life {
    fn new(work_at_start: u64, member_by: Instant) -> Self {
        Self { member_by, work_at_start, pending: None, surplus_since: None, is_asked: false }
    }

    fn note_pending(&mut self, member: MemberName, observed: &Observed, now: Instant) {
        let Observed::Pending(reason) = observed else {
            self.pending = None;
            return;
        };
        // It has yet to begin, and is not silent.
        self.member_by = now + SILENCE_LIMIT;
        if self.pending.as_ref() != Some(reason) {
            tracing::info!("{member} does not run yet: {reason}");
            self.pending = Some(reason.clone());
        }
    }

    fn is_hung(&mut self, presence: Option<Presence>, now: Instant) -> bool {
        match presence {
            Some(Presence::Living) => {
                self.member_by = now + SILENCE_LIMIT;
                false
            }
            Some(Presence::Lost(Loss::Stuck)) => true,
            _ => now > self.member_by,
        }
    }

    /// Whatever it was told when it was too many.
    fn is_wanted_again(&mut self) {
        (self.surplus_since, self.is_asked) = (None, false);
    }

    /// How it is made to end that was told to leave `waited` ago.
    fn leave(&mut self, waited: Duration, grace: Option<Duration>) -> Option<Signal> {
        match grace {
            // What does not run yet has nothing to finish.
            Some(grace) if self.pending.is_none() && waited <= grace + KILL_GRACE => {
                let is_due = waited >= grace && !self.is_asked;
                self.is_asked |= is_due;
                is_due.then_some(Signal::Terminate)
            }
            _ => Some(Signal::Kill),
        }
    }
}

#[cfg(test)]
mod tests;
