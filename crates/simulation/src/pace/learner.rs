//! The learner of a paced run: takes outcomes in order, trains, and wants the next ones.

use super::Pace;
use config::{RunConfig, TaskKind};
use proto::Wanted;
use protocol::{Delivered, HoldLimit, Intake, Taken, TaskName, TaskSet, TaskStanding};
use std::time::Duration;

/// What the training thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// Waits for the next outcome.
    Waiting,
    Gradient,
    Update,
    /// All is trained.
    Nothing,
}

#[derive(Debug)]
pub(super) struct Learner {
    intake: Intake<()>,
    pace: Pace,
    /// Tasks are those of this config, with so many prompts.
    tasks_of: (RunConfig, usize),
    iteration: u32,
    next_index: u32,
    doing: Doing,
    /// Whether workers that find no task wait for this process.
    keeps_waiting: bool,
    /// When each iteration was trained.
    pub(super) ends: Vec<Duration>,
    pub(super) most_held: HoldLimit,
}

impl Learner {
    pub(super) fn new(pace: &Pace, tasks_of: (RunConfig, usize), limit: HoldLimit) -> Self {
        let most_held = HoldLimit { outcomes: 0, bytes: 0 };
        let mut learner = Self {
            intake: Intake::new(limit),
            pace: pace.clone(),
            tasks_of,
            iteration: 0,
            next_index: 0,
            doing: Doing::Waiting,
            keeps_waiting: false,
            ends: Vec::new(),
            most_held,
        };
        learner.want();
        learner
    }

    /// Wants what can be sampled with the newest version.
    fn want(&mut self) {
        let last = (self.iteration + self.pace.lag).min(self.pace.iterations - 1);
        for iteration in self.iteration..=last {
            let tasks = self.tasks_of.0.train_tasks(self.tasks_of.1, iteration);
            let set = TaskSet { tasks, steps: Vec::new(), outcome_bytes: self.pace.outcome_bytes() };
            self.intake.want(TaskKind::Train, iteration, set);
        }
        self.changed();
    }

    fn changed(&mut self) {
        self.keeps_waiting = self.intake.is_short_of_room() || self.intake.counts().missing == 0;
    }

    /// What the coordinator is told.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        self.intake.wanted()
    }

    /// An outcome is here whole.
    pub(super) fn hold(&mut self, task: TaskName) -> Delivered {
        let standing = self.intake.hold(task, ());
        let holds = self.holds();
        self.most_held.outcomes = self.most_held.outcomes.max(holds.outcomes);
        self.most_held.bytes = self.most_held.bytes.max(holds.bytes);
        self.changed();
        match standing {
            TaskStanding::NotWanted => Delivered::NotWanted,
            TaskStanding::Held | TaskStanding::Wanted(..) => Delivered::Held,
        }
    }

    /// Goes on with the next outcome if it is here: for how long.
    pub(super) fn begin(&mut self) -> Option<Duration> {
        if self.doing != Doing::Waiting {
            return None;
        }
        let task = TaskName { iteration: self.iteration, kind: TaskKind::Train, index: self.next_index };
        let Taken::Here(()) = self.intake.take(task) else { return None };
        self.changed();
        self.doing = Doing::Gradient;
        Some(Duration::from_secs_f64(self.pace.gradient))
    }

    /// What was begun is done; for how long it does what follows by itself.
    pub(super) fn done(&mut self, now: Duration) -> Option<Duration> {
        if self.doing == Doing::Gradient {
            self.next_index += 1;
            if self.next_index == self.pace.tasks {
                self.doing = Doing::Update;
                return Some(Duration::from_secs_f64(self.pace.update));
            }
            self.doing = Doing::Waiting;
            return None;
        }
        self.ends.push(now);
        self.intake.forget(TaskKind::Train, self.iteration);
        (self.iteration, self.next_index) = (self.iteration + 1, 0);
        self.doing = if self.iteration == self.pace.iterations { Doing::Nothing } else { Doing::Waiting };
        if !self.is_done() {
            self.want();
        }
        None
    }

    pub(super) fn is_done(&self) -> bool {
        self.doing == Doing::Nothing
    }

    pub(super) fn is_busy(&self) -> bool {
        matches!(self.doing, Doing::Gradient | Doing::Update)
    }

    pub(super) fn holds(&self) -> HoldLimit {
        self.intake.holds()
    }

    /// Whether workers that find no task wait for this process, and not for each other.
    pub(super) fn keeps_waiting(&self) -> bool {
        self.keeps_waiting
    }
}
