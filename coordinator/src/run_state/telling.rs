//! What the state tells who looks at it.

use super::{RunState, Worked};
use crate::membership::Member;
use crate::results::RunProgress;
use crate::tasks::TaskBook;
use config::{Determinism, RunConfig};
use proto::Role;
use std::time::{Duration, Instant};

impl RunState {
    /// Number of rollout workers there should be.
    pub fn workers_wanted(&self) -> u32 {
        self.workers_wanted
    }

    /// Most rollout workers that the config allows.
    pub fn most_workers(&self) -> u32 {
        self.catalog.config().resources.max_workers as u32
    }

    /// Whether the learner has reported how far the run is.
    pub fn has_progress(&self) -> bool {
        self.has_progress
    }

    /// What the learner last reported.
    pub fn progress(&self) -> &RunProgress {
        &self.progress
    }

    /// What the learner wanted a user to hear of.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The run.
    pub fn config(&self) -> &RunConfig {
        self.catalog.config()
    }

    /// The name of the run.
    pub fn run_name(&self) -> &str {
        &self.catalog.config().run.name
    }

    /// Whether its bits can be had again.
    pub fn determinism(&self) -> Determinism {
        self.catalog.config().run.determinism
    }

    /// The tasks of the iterations at work.
    pub fn tasks(&self) -> &TaskBook {
        &self.tasks
    }

    /// Share of a member's time that it had something to do.
    pub fn busy(&self, member: &Member, now: Instant) -> f64 {
        match member.applicant.role {
            Role::Learner => self.progress.learner_busy,
            _ => share(self.tasks.busy(&member.applicant.member_id, now), member.present(now)),
        }
    }

    /// Share of all workers' time with a task in hand, those that are forgotten by now included.
    pub fn worker_busy(&self, now: Instant) -> f64 {
        let workers = self.members.iter().filter(|member| member.applicant.role == Role::RolloutWorker);
        let Worked { mut busy, mut present } = self.forgotten;
        for worker in workers {
            busy += self.tasks.busy(&worker.applicant.member_id, now);
            present += worker.present(now);
        }
        share(busy, present)
    }
}

fn share(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { (part.as_secs_f64() / whole.as_secs_f64()).min(1.0) }
}

/// What a member of that role is told of the config. Workers have no use for the environments of others, which may have more
/// in them than should go round; the learner keeps all of it with its checkpoints.
pub(super) fn config_for(role: Role, config: &RunConfig) -> String {
    match role {
        Role::Learner => config.to_toml(),
        Role::RolloutWorker | Role::Unspecified => {
            RunConfig { hosts: Vec::new(), ..config.clone() }.to_toml()
        }
    }
}
