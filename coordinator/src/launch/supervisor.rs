//! Carries out what the keeper decides, and shows it what the launcher and the run's state see.

use super::keeper::TIME_SET_ASIDE;
use super::{Action, Handle, Keeper, Launcher, MemberName, Roster, Sight};
use crate::error::CoordinatorError;
use crate::membership::{Member, Presence};
use crate::run_state::RunState;
use crate::server::ControlPlane;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Watches over the members of one run.
pub struct Supervisor {
    launcher: Box<dyn Launcher>,
    plane: ControlPlane,
    keeper: Keeper,
}

impl Supervisor {
    /// Watches over nothing yet.
    pub fn new(launcher: Box<dyn Launcher>, plane: ControlPlane) -> Self {
        Self { launcher, plane, keeper: Keeper::default() }
    }

    /// Takes over those members of an earlier coordinator that still live, and names them.
    pub fn adopt(&mut self, members: &BTreeMap<String, Handle>, now: Instant) -> Vec<String> {
        let mut adopted = Vec::new();
        for (member_id, handle) in members {
            let named = MemberName::parse(member_id);
            if let Some(member) = named.filter(|&member| self.launcher.adopt(member, handle.clone())) {
                self.keeper.adopt(member, now);
                adopted.push(member_id.clone());
            }
        }
        adopted
    }

    /// What the next coordinator would adopt, for `run.json`.
    pub fn processes(&self) -> BTreeMap<String, Handle> {
        let handles = self.launcher.handles().into_iter();
        handles.map(|(member, handle)| (member.to_string(), handle)).collect()
    }

    /// Buries what has ended and starts what is missing.
    ///
    /// # Errors
    /// If a member that the run needs ended in a way that starting it again does not cure.
    pub fn keep_alive(&mut self, now: Instant) -> Result<(), CoordinatorError> {
        let wanted = self.plane.read(|state| Roster::Run {
            learners: Roster::learners_of(state.config()),
            workers: state.workers_wanted(),
        });
        self.keep(wanted, now)
    }

    /// Buries what has ended and has the rest end: by itself within the grace that began with the first call, else
    /// because it is asked to, else because it is killed; at once without a grace.
    pub fn take_down(&mut self, grace: Option<Duration>, now: Instant) {
        if let Err(error) = self.keep(Roster::Nobody { grace }, now) {
            tracing::error!("{error}");
        }
    }

    fn keep(&mut self, wanted: Roster, now: Instant) -> Result<(), CoordinatorError> {
        let sights = self.look();
        self.note_who_has_come(&sights);
        self.keeper.note_others(self.count_others(&sights));
        let actions = self.keeper.decide(wanted, &sights, now);
        let events = self.keeper.take_events();
        if !events.is_empty() {
            let note =
                |state: &mut RunState| events.into_iter().for_each(|event| state.events_mut().note(event));
            self.plane.update(|state, _| note(state));
        }
        actions.into_iter().try_for_each(|action| self.carry_out(action))
    }

    fn look(&mut self) -> BTreeMap<MemberName, Sight> {
        let observed = self.launcher.observe();
        self.plane.read(|state| {
            let sight = |(member, observed)| {
                let presence = own(&*self.launcher, state, member).map(|own| own.presence);
                (member, Sight { observed, presence, work_done: work_done(state, member) })
            };
            observed.into_iter().map(sight).collect()
        })
    }

    /// From when on the names of what was started are nobody else's.
    fn note_who_has_come(&self, sights: &BTreeMap<MemberName, Sight>) {
        let living = sights.iter().filter(|(_, sight)| sight.presence == Some(Presence::Living));
        let names: Vec<String> = living.map(|(member, _)| member.to_string()).collect();
        let is_awaited = |state: &RunState| names.iter().any(|name| state.members.is_awaited(name));
        if self.plane.read(is_awaited) {
            self.plane.update(|state, _| names.iter().for_each(|name| state.members.has_come(name)));
        }
    }

    /// Living workers that the launcher has neither started nor adopted.
    fn count_others(&self, sights: &BTreeMap<MemberName, Sight>) -> u32 {
        let is_own_worker = |(member, sight): &(&MemberName, &Sight)| {
            !member.is_learner() && sight.presence == Some(Presence::Living)
        };
        let n_own = sights.iter().filter(is_own_worker).count() as u32;
        self.plane.read(|state| state.members.n_workers()).saturating_sub(n_own)
    }

    fn carry_out(&mut self, action: Action) -> Result<(), CoordinatorError> {
        match action {
            Action::Start(member) => {
                self.launcher.start(member);
                self.plane.update(|state, _| state.members.await_process(&member.to_string()));
            }
            Action::Drain(member) => self.plane.update(|state, _| state.members.drain(&member.to_string())),
            Action::Signal(member, signal) => self.launcher.signal(member, signal),
            Action::Forget(member) => {
                self.plane.update(|state, now| {
                    let own = own(&*self.launcher, state, member).map(|own| own.applicant.clone());
                    own.iter().for_each(|own| state.exited(own, now));
                });
                self.launcher.forget(member);
            }
            Action::SetAside(report) => {
                let (how, log) = (&report.how, report.log.display());
                let said = set_aside_notice(&report.member.to_string());
                let minutes = TIME_SET_ASIDE.as_secs() / 60;
                let notice = format!(
                    "{said} its processes end without having finished anything, last it {how}; see {log}. It is tried again \
                     every {minutes} minutes, and at once by another number of workers (`coordinator scale`)"
                );
                self.plane.update(|state, _| state.note(&notice));
            }
            Action::GiveUp(report) => return Err(CoordinatorError::MemberFailed(Box::new(report))),
        }
        Ok(())
    }
}

/// How the notice of a member begins that is not started again.
pub(crate) fn set_aside_notice(member_id: &str) -> String {
    format!("{member_id} is set aside:")
}

/// The member of the run that what was started as it has become; none before it has joined, or if another has.
fn own<'a>(launcher: &dyn Launcher, state: &'a RunState, member: MemberName) -> Option<&'a Member> {
    let known = state.members.get(&member.to_string());
    known.filter(|known| launcher.is_own(member, &known.applicant))
}

fn work_done(state: &RunState, member: MemberName) -> u64 {
    match member {
        MemberName::Learner(_) => state.progress().iteration.into(),
        MemberName::Worker(_) => state.members.get(&member.to_string()).map_or(0, |known| known.tasks_done),
    }
}
