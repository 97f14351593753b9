//! Keeps as many processes alive as the run wants: starts, starts again, drains surplus, kills what hangs.

use super::{
    ExitReport, LEARNER, LocalLauncher, RestartDecision, RestartHistory, worker_id, worker_position,
};
use crate::error::CoordinatorError;
use crate::membership::{Loss, Presence};
use crate::server::ControlPlane;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A started process that is no member for that long is taken for hung.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// A process of an earlier coordinator that has not joined again after that long is replaced.
const ADOPTION_LIMIT: Duration = Duration::from_secs(10);
/// Time for a worker that is too many to finish its task.
const SURPLUS_GRACE: Duration = Duration::from_secs(120);
/// Time between asking a process to end and making it.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// Watches over the processes of one run.
pub struct Supervisor {
    launcher: LocalLauncher,
    plane: ControlPlane,
    histories: BTreeMap<String, RestartHistory>,
    /// Members that are not to be started before then.
    not_before: BTreeMap<String, Instant>,
    /// When a process that is no member is killed.
    member_by: BTreeMap<String, Instant>,
    /// Workers that are too many, and when that was noticed.
    surplus: BTreeMap<String, Instant>,
    /// Work done by a member when its process started.
    work_at_start: BTreeMap<String, u64>,
}

impl Supervisor {
    /// Watches over nothing yet.
    pub fn new(launcher: LocalLauncher, plane: ControlPlane) -> Self {
        Self {
            launcher,
            plane,
            histories: BTreeMap::new(),
            not_before: BTreeMap::new(),
            member_by: BTreeMap::new(),
            surplus: BTreeMap::new(),
            work_at_start: BTreeMap::new(),
        }
    }

    /// Takes over those processes of an earlier coordinator that still live, and names them.
    pub fn adopt(&mut self, members: &BTreeMap<String, u32>, now: Instant) -> Vec<String> {
        let mut adopted = Vec::new();
        for (member_id, &pid) in members {
            if self.launcher.adopt(member_id, pid, now) {
                self.member_by.insert(member_id.clone(), now + ADOPTION_LIMIT);
                adopted.push(member_id.clone());
            }
        }
        adopted
    }

    /// Process ids of the living members, for `run.json`.
    pub fn processes(&self) -> BTreeMap<String, u32> {
        self.launcher.processes()
    }

    /// Buries what has ended and starts what is missing.
    ///
    /// # Errors
    /// If a process cannot be started, or one ended in a way that starting it again does not cure.
    pub fn keep_alive(&mut self, now: Instant) -> Result<(), CoordinatorError> {
        for report in self.bury(now) {
            if !self.is_surplus(&report.member_id) {
                self.plan_restart(report, now)?;
            }
        }
        self.kill_the_hung(now);
        self.drain_surplus(now);
        self.start_missing(now)
    }

    /// Takes the ended processes out of the books.
    pub fn bury(&mut self, now: Instant) -> Vec<ExitReport> {
        let reports = self.launcher.poll(now);
        for report in &reports {
            tracing::info!(member = report.member_id, pid = report.pid, "{}", report.how);
            self.plane.update(|state, now| state.exited(&report.member_id, report.pid, now));
            self.member_by.remove(&report.member_id);
            self.surplus.remove(&report.member_id);
        }
        reports
    }

    /// Sends a signal to every process.
    pub fn signal_all(&self, signal: Signal) {
        for member_id in self.launcher.processes().keys() {
            self.launcher.signal(member_id, signal);
        }
    }

    fn plan_restart(&mut self, report: ExitReport, now: Instant) -> Result<(), CoordinatorError> {
        let worked = self.work_done(&report.member_id)
            > self.work_at_start.get(&report.member_id).copied().unwrap_or(0);
        let history = self.histories.entry(report.member_id.clone()).or_default();
        match history.decide(report.lived, worked, report.code) {
            RestartDecision::After(pause) => {
                tracing::warn!("{} {}, starting it again in {pause:?}", report.member_id, report.how);
                self.not_before.insert(report.member_id, now + pause);
                Ok(())
            }
            RestartDecision::GiveUp => Err(CoordinatorError::MemberFailed(Box::new(report))),
        }
    }

    fn kill_the_hung(&mut self, now: Instant) {
        for (member_id, pid) in self.launcher.processes() {
            let presence = self.plane.presence(&member_id, pid);
            let deadline = self.member_by.entry(member_id.clone()).or_insert(now + SILENCE_LIMIT);
            let hung = match presence {
                Some(Presence::Living) => {
                    *deadline = now + SILENCE_LIMIT;
                    false
                }
                Some(Presence::Lost(Loss::Stuck)) => true,
                _ => now > *deadline,
            };
            if hung {
                tracing::warn!(member = member_id, pid, "hangs, killed");
                self.launcher.signal(&member_id, Signal::SIGKILL);
            }
        }
    }

    /// Workers go by their position; the highest are the ones too many.
    fn is_surplus(&self, member_id: &str) -> bool {
        let wanted = self.plane.read(|state| state.workers_wanted());
        worker_position(member_id).is_some_and(|position| position >= wanted)
    }

    fn drain_surplus(&mut self, now: Instant) {
        let mut surplus: Vec<String> = self.launcher.processes().into_keys().collect();
        surplus.retain(|member_id| self.is_surplus(member_id));
        for member_id in surplus {
            self.plane.update(|state, _| state.members.drain(&member_id));
            let since = *self.surplus.entry(member_id.clone()).or_insert(now);
            let waited = now.saturating_duration_since(since);
            if waited > SURPLUS_GRACE + KILL_GRACE {
                self.launcher.signal(&member_id, Signal::SIGKILL);
            } else if waited > SURPLUS_GRACE {
                self.launcher.signal(&member_id, Signal::SIGTERM);
            }
        }
    }

    fn start_missing(&mut self, now: Instant) -> Result<(), CoordinatorError> {
        let wanted = self.plane.read(|state| state.workers_wanted());
        let members = std::iter::once(LEARNER.to_owned()).chain((0..wanted).map(worker_id));
        let living = self.launcher.processes();
        for member_id in members.filter(|member_id| !living.contains_key(member_id)) {
            if self.not_before.get(&member_id).is_some_and(|&then| now < then) {
                continue;
            }
            self.launcher.spawn(&member_id, now)?;
            self.member_by.insert(member_id.clone(), now + SILENCE_LIMIT);
            self.work_at_start.insert(member_id.clone(), self.work_done(&member_id));
        }
        Ok(())
    }

    /// Tasks of a worker, or iterations of the learner.
    fn work_done(&self, member_id: &str) -> u64 {
        self.plane.read(|state| match member_id {
            LEARNER => state.progress().iteration.into(),
            _ => state.members.get(member_id).map_or(0, |member| member.tasks_done),
        })
    }
}
