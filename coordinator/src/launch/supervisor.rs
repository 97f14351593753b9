//! Carries out what the keeper decides, and shows it what the launcher and the run's state see.

use super::{Action, Handle, Keeper, Launcher, MemberName, Roster, Sight};
use crate::error::CoordinatorError;
use crate::membership::Member;
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
    pub fn new(launcher: impl Launcher + 'static, plane: ControlPlane) -> Self {
        Self { launcher: Box::new(launcher), plane, keeper: Keeper::default() }
    }

    /// Takes over those members of an earlier coordinator that still live, and names them.
    pub fn adopt(&mut self, members: &BTreeMap<String, Handle>, now: Instant) -> Vec<String> {
        let mut adopted = Vec::new();
        for (member_id, &handle) in members {
            let named = MemberName::parse(member_id);
            if let Some(member) = named.filter(|&member| self.launcher.adopt(member, handle)) {
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
    /// If a member cannot be started, or one ended in a way that starting it again does not cure.
    pub fn keep_alive(&mut self, now: Instant) -> Result<(), CoordinatorError> {
        let workers = self.plane.read(RunState::workers_wanted);
        self.keep(Roster::Run { workers }, now)
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
        self.keeper.decide(wanted, &sights, now).into_iter().try_for_each(|action| self.carry_out(action))
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

    fn carry_out(&mut self, action: Action) -> Result<(), CoordinatorError> {
        match action {
            Action::Start(member) => self.launcher.start(member)?,
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
                let (member, how, log) = (report.member, &report.how, report.log.display());
                let notice = format!(
                    "{member} is set aside: again and again it ended without having finished anything, last it {how}; see {log}. \
                     Another number of workers (`coordinator scale`) gives it another chance"
                );
                self.plane.update(|state, _| state.note(&notice));
            }
            Action::GiveUp(report) => return Err(CoordinatorError::MemberFailed(Box::new(report))),
        }
        Ok(())
    }
}

/// The member of the run that what was started as it has become; none before it has joined, or if another has.
fn own<'a>(launcher: &dyn Launcher, state: &'a RunState, member: MemberName) -> Option<&'a Member> {
    let known = state.members.get(&member.to_string());
    known.filter(|known| launcher.is_own(member, &known.applicant))
}

fn work_done(state: &RunState, member: MemberName) -> u64 {
    match member {
        MemberName::Learner => state.progress().iteration.into(),
        MemberName::Worker(_) => state.members.get(&member.to_string()).map_or(0, |known| known.tasks_done),
    }
}
