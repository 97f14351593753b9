//! Who is started, asked to end, killed or given up: decisions only, without processes and without a clock.
//!
//! Invariants:
//! 1. A member is started only where its earlier life has been seen to end.
//! 2. A learner that cannot be helped by starting it again is given up, which ends the run. A worker's place is set aside, and
//!    tried again after a long while; it ends the run only where no other place is left and nobody else works.
//! 3. Who is told to leave is asked to end once, after a grace, and killed a while later.
//! 4. Once nobody is wanted, nobody is started.

use super::restart::{ProcessEnd, RestartDecision, RestartHistory};
use super::{ExitReport, MemberName, Observed, Signal};
use crate::events::Event;
use crate::membership::{Loss, Presence};
use config::{LearnerPlace, RunConfig};
use service::exit_code;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What runs for that long without being a member is taken for hung.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// What an earlier coordinator started and has not joined again after that long is replaced.
const ADOPTION_LIMIT: Duration = Duration::from_secs(10);
/// Time for a worker that is too many to finish its task.
const SURPLUS_GRACE: Duration = Duration::from_secs(120);
/// A place that was set aside is tried again after that long: what keeps killing its members may be mended meanwhile (a card that
/// was reset, a disk that was cleared), and four starts an hour cost little besides what the run is there for.
pub(super) const TIME_SET_ASIDE: Duration = Duration::from_secs(15 * 60);
/// Time between asking a member to end and making it.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// What follows from the end of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aftermath {
    Restarted,
    NotWanted,
    SetAside,
    GivenUp,
}

impl Aftermath {
    /// The cause of the event about the end.
    fn cause(self) -> &'static str {
        match self {
            Self::Restarted => "restarted",
            Self::NotWanted => "not_wanted",
            Self::SetAside => "set_aside",
            Self::GivenUp => "given_up",
        }
    }
}

/// Who there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roster {
    /// Ranks of the learner, where that is not somebody else's to start, and workers at the positions below these numbers.
    Run {
        /// How many ranks of the learner are among them.
        learners: u32,
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
            (Self::Run { workers, .. }, MemberName::Worker(position)) => position < workers,
            (Self::Run { learners, .. }, MemberName::Learner(rank)) => rank < learners,
            (Self::Nobody { .. }, _) => false,
        }
    }

    /// As a config has it.
    pub fn of(config: &RunConfig) -> Self {
        let workers = config.resources.workers as u32;
        Self::Run { learners: Self::learners_of(config), workers }
    }

    /// How many ranks of the learner there should be of those that are started here.
    pub fn learners_of(config: &RunConfig) -> u32 {
        match config.network.learner {
            LearnerPlace::Here => config.resources.learners as u32,
            LearnerPlace::ByHand => 0,
        }
    }

    /// All that there should be.
    pub fn members(self) -> impl Iterator<Item = MemberName> {
        let (learners, workers) = match self {
            Self::Run { learners, workers } => (learners, workers),
            Self::Nobody { .. } => (0, 0),
        };
        (0..learners).map(MemberName::Learner).chain((0..workers).map(MemberName::Worker))
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
    /// Say that the member that ended so is not started again for a long while, as long as others work.
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
    /// Workers of the run that are not its own, as last seen.
    n_others: u32,
    /// What was decided and not taken yet.
    events: Vec<Event>,
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
    /// Whether it is not started before then because its members kept dying, unless another number of workers is wanted.
    is_set_aside: bool,
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
    /// What was decided about it: what is decided again is no event.
    said: Vec<Event>,
}

impl Keeper {
    /// Takes note of a member that an earlier coordinator started and that still lives.
    pub fn adopt(&mut self, member: MemberName, now: Instant) {
        let life = Life::new(0, now + ADOPTION_LIMIT);
        self.records.entry(member).or_default().life = Some(life);
    }

    /// Takes note of how many living workers there are that it has not started, such as those that joined by hand.
    pub fn note_others(&mut self, n_others: u32) {
        self.n_others = n_others;
    }

    /// Decides what follows from who is wanted and what is seen; an action that is still needed is decided again.
    pub fn decide(
        &mut self,
        wanted: Roster,
        sights: &BTreeMap<MemberName, Sight>,
        now: Instant,
    ) -> Vec<Action> {
        if self.roster.replace(wanted).is_some_and(|earlier| earlier != wanted) {
            for record in self.records.values_mut() {
                // Also one that is just being tried again.
                if record.is_set_aside || record.history.is_exhausted() {
                    record.history = RestartHistory::default();
                }
                if std::mem::take(&mut record.is_set_aside) {
                    record.not_before = None;
                }
            }
        }
        let is_stopping = matches!(wanted, Roster::Nobody { .. });
        self.stopping_since = is_stopping.then(|| self.stopping_since.unwrap_or(now));
        let (mut actions, mut given_up) = (Vec::new(), None);
        for (&member, sight) in sights {
            match &sight.observed {
                Observed::Exited(report) => {
                    actions.push(Action::Forget(member));
                    match self.bury(report, wanted, sight, now) {
                        Aftermath::GivenUp => given_up = given_up.or(Some(report.clone())),
                        Aftermath::SetAside => actions.push(Action::SetAside(report.clone())),
                        Aftermath::Restarted | Aftermath::NotWanted => {}
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

    /// What was decided since this was asked last.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Decides what follows from the end of a member.
    fn bury(&mut self, report: &ExitReport, wanted: Roster, sight: &Sight, now: Instant) -> Aftermath {
        let aftermath = match self.plan_restart(report, wanted, sight, now) {
            Some(RestartDecision::GiveUp) => Aftermath::GivenUp,
            // The last one that is set aside ends the run.
            Some(RestartDecision::SetAside) if self.cannot_do_without(report.member, wanted) => {
                Aftermath::GivenUp
            }
            Some(RestartDecision::SetAside) => Aftermath::SetAside,
            Some(RestartDecision::After(_)) => Aftermath::Restarted,
            None => Aftermath::NotWanted,
        };
        let (member, cause, reason) = (report.member.to_string(), aftermath.cause(), report.how.clone());
        self.events.push(Event::ProcessEnded { member, cause, reason });
        aftermath
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
        let mut decision = record.history.decide(ProcessEnd {
            has_worked: sight.work_done > life.work_at_start,
            is_announced: is_orderly && sight.presence == Some(Presence::Left),
            code: report.code,
        });
        // What one worker cannot use, such as a card that is gone, another may; if none can, the last one ends the run.
        if decision == RestartDecision::GiveUp && !report.member.is_learner() {
            decision = RestartDecision::SetAside;
        }
        match decision {
            RestartDecision::After(pause) => {
                tracing::warn!("{} {}, starting it again in {pause:?}", report.member, report.how);
                record.not_before = Some(now + pause);
            }
            RestartDecision::SetAside => {
                (record.is_set_aside, record.not_before) = (true, Some(now + TIME_SET_ASIDE));
            }
            RestartDecision::GiveUp => {}
        }
        Some(decision)
    }

    /// Whether the run ends with a member that was set aside: a rank of the learner, or the last of all workers.
    fn cannot_do_without(&self, member: MemberName, wanted: Roster) -> bool {
        let is_left = |other: MemberName| {
            let is_set_aside = self.records.get(&other).is_some_and(|record| record.is_set_aside);
            !other.is_learner() && !is_set_aside
        };
        member.is_learner() || (self.n_others == 0 && !wanted.members().any(is_left))
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
                let reason = match sight.presence {
                    Some(Presence::Lost(Loss::Stuck)) => "its task got nowhere",
                    _ => "it runs without being a member",
                };
                life.say(signalled(member, Signal::Kill, ("hung", reason)), &mut self.events);
                return vec![Action::Signal(member, Signal::Kill)];
            }
            Roster::Run { .. } if wanted.includes(member) => {
                life.is_wanted_again();
                return Vec::new();
            }
            Roster::Run { .. } => (*life.surplus_since.get_or_insert(now), Some(SURPLUS_GRACE)),
        };
        let signal = life.leave(now.saturating_duration_since(since), grace);
        let why = match wanted {
            Roster::Nobody { .. } => ("stopping", "the run is being stopped"),
            Roster::Run { .. } => ("surplus", "fewer workers are wanted"),
        };
        // Where nobody is wanted, everybody has been told already.
        let drain = self.stopping_since.is_none().then_some(Action::Drain(member));
        let drained = || Event::ProcessDrained { member: member.to_string(), reason: why.1.to_owned() };
        let said = drain.iter().map(|_| drained());
        let said = said.chain(signal.map(|signal| signalled(member, signal, why)));
        said.for_each(|event| life.say(event, &mut self.events));
        drain.into_iter().chain(signal.map(|signal| Action::Signal(member, signal))).collect()
    }

    fn start_missing(&mut self, wanted: Roster, now: Instant) -> Vec<Action> {
        let mut starts = Vec::new();
        for member in wanted.members() {
            let record = self.records.entry(member).or_default();
            if record.life.is_none() && record.not_before.is_none_or(|then| now >= then) {
                record.is_set_aside = false;
                record.life = Some(Life::new(record.work_done, now + SILENCE_LIMIT));
                self.events.push(Event::ProcessStarted { member: member.to_string() });
                starts.push(Action::Start(member));
            }
        }
        starts
    }
}

impl Life {
    fn new(work_at_start: u64, member_by: Instant) -> Self {
        let (pending, surplus_since, said) = (None, None, Vec::new());
        Self { member_by, work_at_start, pending, surplus_since, is_asked: false, said }
    }

    fn say(&mut self, event: Event, events: &mut Vec<Event>) {
        if !self.said.contains(&event) {
            self.said.push(event.clone());
            events.push(event);
        }
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
        self.said.clear();
    }

    /// How it is made to end that was told to leave `waited` ago.
    fn leave(&mut self, waited: Duration, grace: Option<Duration>) -> Option<Signal> {
        // What does not run yet has nothing to finish; what has begun since its launcher looked last ends in good order.
        match grace.map(|grace| if self.pending.is_some() { Duration::ZERO } else { grace }) {
            Some(grace) if waited <= grace + KILL_GRACE => {
                let is_due = waited >= grace && !self.is_asked;
                self.is_asked |= is_due;
                is_due.then_some(Signal::Terminate)
            }
            _ => Some(Signal::Kill),
        }
    }
}

fn signalled(member: MemberName, signal: Signal, (cause, reason): (&'static str, &str)) -> Event {
    let signal = match signal {
        Signal::Terminate => "terminate",
        Signal::Kill => "kill",
    };
    Event::ProcessSignalled { member: member.to_string(), signal, cause, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
