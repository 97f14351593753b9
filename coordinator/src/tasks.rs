//! Which task goes to which worker: decisions only, without I/O and without a clock.
//!
//! The learner says what it wants and what it holds; workers ask, finish, fail or vanish. A task is a pure function of
//! its name, so running one twice costs time and nothing else: this book may forget, guess and start over.
//!
//! Invariants:
//! 1. Only a wanted task is granted, and only while there is a learner that said so.
//! 2. A worker has at most two tasks: one that it samples, and one that it finishes meanwhile. While it has them nobody
//!    else gets them; asking again gives the one that it does not name as being finished.
//! 3. Held is what the learner says. A worker's word counts until a report has had the time to confirm it.
//! 4. Tasks are granted in the order of their names: earlier iterations first, evaluation before training.
//! 5. A task that failed goes to a worker that has not failed at it, as long as there is one.
//! 6. A task that failed three times by its own fault, or ten times by whosever, ends the run.

mod leases;

use config::TaskKind;
use leases::Leases;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

/// One to sample, and one to score and push meanwhile.
const MOST_LEASES: usize = 2;
/// How long a worker's "the learner holds it" is believed without the learner saying so.
const CONFIRMATION: Duration = Duration::from_secs(3);
/// Failures by a task's own fault (a NaN, a bad prompt) after which it is given up.
const MAX_OWN_FAILURES: u32 = 3;
/// Failures of any kind after which a task is given up.
const MAX_FAILURES: u32 = 10;

/// Name of a task; names sort in the order in which tasks are granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskName {
    /// Train: the iteration it feeds. Evaluate and test: the version they measure.
    pub iteration: u32,
    /// What it is for.
    pub kind: TaskKind,
    /// Position among its kind and iteration.
    pub index: u32,
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            TaskKind::Evaluate => write!(f, "evaluation task {} of version {}", self.index, self.iteration),
            TaskKind::Test => write!(f, "test task {} of version {}", self.index, self.iteration),
            TaskKind::Train => write!(f, "training task {} of iteration {}", self.index, self.iteration),
        }
    }
}

/// A set of tasks that the learner wants, and which of them it holds already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedTasks {
    /// Iteration of all of them.
    pub iteration: u32,
    /// Kind of all of them.
    pub kind: TaskKind,
    /// Their indices are `0 .. n_tasks`.
    pub n_tasks: u32,
    /// Indices of those that the learner holds.
    pub held: Vec<u32>,
}

/// A worker that asks for a task.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    /// Its member id.
    pub worker: &'a str,
    /// What it has sampled already and still scores or pushes.
    pub finishing: &'a [TaskName],
    /// Workers that may get tasks, this one included.
    pub n_workers: usize,
}

/// The answer to a worker that asks for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Run this one.
    Task(TaskName),
    /// Nothing to do now, and why.
    Wait(&'static str),
}

/// What follows from a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The task waits for another attempt.
    TryAgain,
    /// The run cannot go on: this task has failed that often.
    GiveUp {
        /// Failures so far.
        failures: u32,
    },
}

/// How many of the wanted tasks are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskCounts {
    /// Nobody has them.
    pub waiting: u32,
    /// A worker has them.
    pub leased: u32,
    /// The learner has them.
    pub held: u32,
}

/// All that the coordinator knows of tasks.
#[derive(Clone, Debug, Default)]
pub struct TaskBook {
    /// Number of tasks of each wanted set; `None` while no learner has said what it wants.
    wanted: Option<BTreeMap<(u32, TaskKind), u32>>,
    /// By the learner's word.
    held: BTreeSet<TaskName>,
    /// By a worker's word, and since when.
    delivered: BTreeMap<TaskName, Instant>,
    leases: Leases,
    failures: BTreeMap<TaskName, Failures>,
}

#[derive(Clone, Debug, Default)]
struct Failures {
    own: u32,
    all: u32,
    /// Workers that failed.
    by: BTreeSet<String>,
}

impl TaskBook {
    /// Forgets what the learner said: it is gone, or another one has come. Workers keep their tasks.
    pub fn forget_learner(&mut self) {
        self.wanted = None;
        self.held.clear();
        self.delivered.clear();
    }

    /// Takes the learner's full account of what it wants and holds.
    pub fn report(&mut self, wanted: &[WantedTasks], now: Instant) {
        self.wanted = Some(wanted.iter().map(|set| ((set.iteration, set.kind), set.n_tasks)).collect());
        let names = wanted.iter().flat_map(|set| {
            set.held.iter().map(|&index| TaskName { iteration: set.iteration, kind: set.kind, index })
        });
        self.held = names.collect();
        let held = &self.held;
        self.delivered
            .retain(|task, since| !held.contains(task) && now.duration_since(*since) < CONFIRMATION);
        let sets: BTreeSet<_> = wanted.iter().map(|set| (set.iteration, set.kind)).collect();
        self.failures.retain(|task, _| sets.contains(&(task.iteration, task.kind)));
    }

    /// Decides what a worker that asks is to do.
    pub fn grant(&mut self, asking: Asking<'_>, now: Instant) -> Grant {
        let Asking { worker, finishing, .. } = asking;
        if self.wanted.is_none() {
            return Grant::Wait("no learner has said yet what it wants");
        }
        // What is being finished stays, even if the learner has told already that it holds it: its worker will say so.
        let is_over = |task: &&TaskName| !finishing.contains(task) && !self.is_open(task);
        let over: Vec<TaskName> = self.leases.of(worker).iter().filter(is_over).copied().collect();
        for task in over {
            self.leases.remove(worker, task, now);
        }
        let in_hand = self.leases.of(worker);
        if let Some(task) = in_hand.iter().find(|task| !finishing.contains(task)) {
            return Grant::Task(*task);
        }
        if in_hand.len() >= MOST_LEASES {
            return Grant::Wait("the worker has yet to finish what it sampled");
        }
        let leased = self.leases.all();
        let is_free = |task: &TaskName| !leased.contains(task) && !finishing.contains(task);
        let next = self
            .wanted_tasks()
            .find(|task| is_free(task) && self.is_open(task) && self.may_try(task, &asking));
        match next {
            Some(task) => {
                self.leases.add(worker, task, now);
                Grant::Task(task)
            }
            None => Grant::Wait("every wanted task is held or with a worker"),
        }
    }

    /// Notes what a worker that joins says it has in hand: after a restart of the coordinator, this is how leases come
    /// back. What it does not name is free again.
    pub fn claim(&mut self, worker: &str, in_hand: &[TaskName], now: Instant) {
        self.leases.set(worker, in_hand, now);
    }

    /// Takes a worker's word that the learner has a task, or wants it no more; whether the worker had the task. Hearing it
    /// twice does no harm.
    pub fn finish(&mut self, worker: &str, task: TaskName, now: Instant) -> bool {
        if !self.held.contains(&task) {
            self.delivered.insert(task, now);
        }
        self.leases.remove(worker, task, now)
    }

    /// Notes that a worker failed at a task; `own_fault` if the task is to blame rather than the worker.
    pub fn fail(&mut self, worker: &str, task: TaskName, own_fault: bool, now: Instant) -> Verdict {
        if !self.leases.remove(worker, task, now) {
            // Heard before, or another worker's by now.
            return Verdict::TryAgain;
        }
        let failures = self.failures.entry(task).or_default();
        failures.all += 1;
        failures.own += u32::from(own_fault);
        failures.by.insert(worker.to_owned());
        match failures {
            Failures { own: MAX_OWN_FAILURES.., .. } | Failures { all: MAX_FAILURES.., .. } => {
                Verdict::GiveUp { failures: failures.all }
            }
            _ => Verdict::TryAgain,
        }
    }

    /// Takes the tasks of a worker that is gone, so that they are granted anew; `until` is its last sign of life.
    pub fn release(&mut self, worker: &str, until: Instant) {
        self.leases.set(worker, &[], until);
    }

    /// The tasks that a worker has.
    pub fn leases_of(&self, worker: &str) -> &[TaskName] {
        self.leases.of(worker)
    }

    /// Time that a worker has had a task in hand, two at a time counted once.
    pub fn busy(&self, worker: &str, now: Instant) -> Duration {
        self.leases.busy(worker, now)
    }

    /// Counts the wanted tasks.
    pub fn counts(&self) -> TaskCounts {
        let leased = self.leases.all();
        let mut counts = TaskCounts::default();
        for task in self.wanted_tasks() {
            match () {
                () if !self.is_open(&task) => counts.held += 1,
                () if leased.contains(&task) => counts.leased += 1,
                () => counts.waiting += 1,
            }
        }
        counts
    }

    /// Wanted tasks in the order in which they are granted.
    fn wanted_tasks(&self) -> impl Iterator<Item = TaskName> {
        self.wanted.iter().flatten().flat_map(|(&(iteration, kind), &n_tasks)| {
            (0..n_tasks).map(move |index| TaskName { iteration, kind, index })
        })
    }

    /// Whether a task is wanted and not held.
    fn is_open(&self, task: &TaskName) -> bool {
        let n_tasks = self.wanted.as_ref().and_then(|sets| sets.get(&(task.iteration, task.kind)));
        n_tasks.is_some_and(|&n_tasks| task.index < n_tasks)
            && !self.held.contains(task)
            && !self.delivered.contains_key(task)
    }

    /// Whether a worker may try a task: not if it failed at it and another one has not. Where as many have failed as there
    /// are workers, there may be no other.
    fn may_try(&self, task: &TaskName, asking: &Asking<'_>) -> bool {
        self.failures.get(task).is_none_or(|failures| {
            !failures.by.contains(asking.worker) || failures.by.len() >= asking.n_workers
        })
    }
}

#[cfg(test)]
mod tests;
