//! Which task goes to which worker: decisions only, without I/O and without a clock.
//!
//! The learner says what it wants and what it holds; workers ask, finish, fail or vanish. A task is a pure function of
//! its name, so running one twice costs time and nothing else: this book may forget, guess and start over.
//!
//! Invariants:
//! 1. Only a wanted task is granted, and only while there is a learner that said so.
//! 2. A worker has at most one task, and while it has it nobody else gets it; asking again gives the same one.
//! 3. Held is what the learner says. A worker's word counts until a report has had the time to confirm it.
//! 4. Tasks are granted in the order of their names: earlier iterations first, evaluation before training.
//! 5. A task that failed three times by its own fault, or ten times by whosever, ends the run.

use config::TaskKind;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, Instant};

/// How long a worker's "the learner holds it" is believed without the learner saying so.
const CONFIRMATION: Duration = Duration::from_secs(3);
/// Failures by a task's own fault (a NaN, a bad prompt) after which it is given up.
const MAX_OWN_FAILURES: u32 = 3;
/// Failures of any kind after which a task is given up.
const MAX_FAILURES: u32 = 10;

/// Name of a task; names sort in the order in which tasks are granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskName {
    /// Train: the iteration it feeds. Evaluate: the version it measures.
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

/// The answer to a worker that asks for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Run this one.
    Task(TaskName),
    /// Nothing to do now, and why.
    Wait(&'static str),
}

/// A task that a worker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Which.
    pub task: TaskName,
    /// Since when.
    pub granted: Instant,
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
    /// By worker.
    leases: BTreeMap<String, Lease>,
    failures: BTreeMap<TaskName, Failures>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    own: u32,
    all: u32,
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
    pub fn grant(&mut self, worker: &str, now: Instant) -> Grant {
        if self.wanted.is_none() {
            return Grant::Wait("no learner has said yet what it wants");
        }
        if let Some(lease) = self.leases.get(worker)
            && self.is_open(&lease.task)
        {
            return Grant::Task(lease.task);
        }
        self.leases.remove(worker);
        let leased = self.leased();
        let next = self.wanted_tasks().find(|task| self.is_open(task) && !leased.contains(task));
        match next {
            Some(task) => {
                self.leases.insert(worker.to_owned(), Lease { task, granted: now });
                Grant::Task(task)
            }
            None => Grant::Wait("every wanted task is held or with a worker"),
        }
    }

    /// Notes what a worker that joins says it is running: after a restart of the coordinator, this is how leases
    /// come back. Nothing running ends the lease it had.
    pub fn claim(&mut self, worker: &str, running: Option<TaskName>, now: Instant) {
        let same = |lease: &Lease| Some(lease.task) == running;
        if self.leases.get(worker).is_some_and(same) {
            return;
        }
        match running {
            Some(task) => self.leases.insert(worker.to_owned(), Lease { task, granted: now }),
            None => self.leases.remove(worker),
        };
    }

    /// Takes a worker's word that the learner has a task, or wants it no more. Hearing it twice does no harm.
    pub fn finish(&mut self, worker: &str, task: TaskName, now: Instant) -> Option<Lease> {
        if !self.held.contains(&task) {
            self.delivered.insert(task, now);
        }
        self.end_lease(worker, task)
    }

    /// Notes that a worker failed at a task; `own_fault` if the task is to blame rather than the worker.
    pub fn fail(&mut self, worker: &str, task: TaskName, own_fault: bool) -> (Option<Lease>, Verdict) {
        let Some(lease) = self.end_lease(worker, task) else {
            // Heard before, or another worker's by now.
            return (None, Verdict::TryAgain);
        };
        let failures = self.failures.entry(task).or_default();
        failures.all += 1;
        failures.own += u32::from(own_fault);
        let verdict = match failures {
            Failures { own: MAX_OWN_FAILURES.., .. } | Failures { all: MAX_FAILURES.., .. } => {
                Verdict::GiveUp { failures: failures.all }
            }
            _ => Verdict::TryAgain,
        };
        (Some(lease), verdict)
    }

    /// Takes the task of a worker that is gone, so that it is granted anew.
    pub fn release(&mut self, worker: &str) -> Option<Lease> {
        self.leases.remove(worker)
    }

    /// The task that a worker has.
    pub fn lease_of(&self, worker: &str) -> Option<&Lease> {
        self.leases.get(worker)
    }

    /// Counts the wanted tasks.
    pub fn counts(&self) -> TaskCounts {
        let leased = self.leased();
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

    fn leased(&self) -> BTreeSet<TaskName> {
        self.leases.values().map(|lease| lease.task).collect()
    }

    fn end_lease(&mut self, worker: &str, task: TaskName) -> Option<Lease> {
        self.leases.remove(worker).and_then(|lease| {
            if lease.task == task {
                return Some(lease);
            }
            self.leases.insert(worker.to_owned(), lease);
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(iteration: u32, index: u32) -> TaskName {
        TaskName { iteration, kind: TaskKind::Train, index }
    }

    fn evaluate(version: u32, index: u32) -> TaskName {
        TaskName { iteration: version, kind: TaskKind::Evaluate, index }
    }

    fn wants(iteration: u32, n_tasks: u32, held: &[u32]) -> WantedTasks {
        WantedTasks { iteration, kind: TaskKind::Train, n_tasks, held: held.to_vec() }
    }

    /// A book whose learner wants `n_tasks` training tasks of iteration 0.
    fn book(n_tasks: u32, now: Instant) -> TaskBook {
        let mut book = TaskBook::default();
        book.report(&[wants(0, n_tasks, &[])], now);
        book
    }

    fn granted(book: &mut TaskBook, worker: &str, now: Instant) -> TaskName {
        match book.grant(worker, now) {
            Grant::Task(task) => task,
            Grant::Wait(reason) => panic!("{worker} got nothing: {reason}"),
        }
    }

    fn waits(book: &mut TaskBook, worker: &str, now: Instant) -> bool {
        matches!(book.grant(worker, now), Grant::Wait(_))
    }

    #[test]
    fn nothing_is_granted_before_a_learner_speaks() {
        let now = Instant::now();
        let mut book = TaskBook::default();
        assert_eq!(book.grant("a", now), Grant::Wait("no learner has said yet what it wants"));
        book.report(&[], now);
        assert_eq!(book.grant("a", now), Grant::Wait("every wanted task is held or with a worker"));
    }

    #[test]
    fn earlier_iterations_go_first_and_evaluation_before_training() {
        let now = Instant::now();
        let mut book = TaskBook::default();
        let evaluation = WantedTasks { iteration: 4, kind: TaskKind::Evaluate, n_tasks: 1, held: vec![] };
        book.report(&[wants(5, 1, &[]), wants(4, 2, &[0]), evaluation], now);
        let order: Vec<_> = ["a", "b", "c"].map(|worker| granted(&mut book, worker, now)).into();
        assert_eq!(order, [evaluate(4, 0), train(4, 1), train(5, 0)]);
        assert!(waits(&mut book, "d", now));
    }

    #[test]
    fn a_worker_that_asks_again_gets_its_task_again() {
        let now = Instant::now();
        let mut book = book(2, now);
        assert_eq!(granted(&mut book, "a", now), train(0, 0));
        assert_eq!(granted(&mut book, "a", now), train(0, 0));
        assert_eq!(book.counts(), TaskCounts { waiting: 1, leased: 1, held: 0 });
    }

    #[test]
    fn the_task_of_a_lost_worker_goes_to_the_next() {
        let now = Instant::now();
        let mut book = book(1, now);
        granted(&mut book, "a", now);
        assert!(waits(&mut book, "b", now));
        assert_eq!(book.release("a").expect("a lease").task, train(0, 0));
        assert_eq!(granted(&mut book, "b", now), train(0, 0));
    }

    #[test]
    fn a_finished_task_is_held_at_once_and_twice_does_no_harm() {
        let now = Instant::now();
        let mut book = book(1, now);
        granted(&mut book, "a", now);
        assert!(book.finish("a", train(0, 0), now).is_some());
        assert!(book.finish("a", train(0, 0), now).is_none());
        assert!(book.finish("b", train(0, 0), now).is_none());
        assert_eq!(book.counts(), TaskCounts { waiting: 0, leased: 0, held: 1 });
    }

    #[test]
    fn a_report_under_way_does_not_undo_a_finish_but_a_later_one_does() {
        let now = Instant::now();
        let mut book = book(1, now);
        granted(&mut book, "a", now);
        book.finish("a", train(0, 0), now);
        book.report(&[wants(0, 1, &[])], now + CONFIRMATION / 2);
        assert!(waits(&mut book, "b", now), "the report may be older than the push");
        book.report(&[wants(0, 1, &[])], now + CONFIRMATION);
        assert_eq!(granted(&mut book, "b", now), train(0, 0), "the learner lost it");
    }

    #[test]
    fn a_confirmed_task_stays_held() {
        let now = Instant::now();
        let mut book = book(1, now);
        granted(&mut book, "a", now);
        book.finish("a", train(0, 0), now);
        book.report(&[wants(0, 1, &[0])], now);
        book.report(&[wants(0, 1, &[0])], now + CONFIRMATION * 2);
        assert!(waits(&mut book, "a", now));
    }

    #[test]
    fn finishing_another_task_keeps_the_lease() {
        let now = Instant::now();
        let mut book = book(2, now);
        granted(&mut book, "a", now);
        assert!(book.finish("a", train(0, 1), now).is_none());
        assert_eq!(book.lease_of("a").expect("a lease").task, train(0, 0));
    }

    #[test]
    fn a_restarted_learner_gets_again_what_it_lost() {
        let now = Instant::now();
        let mut book = book(3, now);
        granted(&mut book, "a", now);
        granted(&mut book, "b", now);
        book.finish("a", train(0, 0), now);
        book.forget_learner();
        assert!(waits(&mut book, "c", now), "nobody is there to take it");
        book.report(&[wants(0, 3, &[2])], now);
        assert_eq!(granted(&mut book, "a", now), train(0, 0), "lost with the old learner");
        assert!(waits(&mut book, "c", now), "b still runs 1, and 2 is held");
    }

    #[test]
    fn a_restarted_coordinator_learns_leases_from_the_workers() {
        let now = Instant::now();
        let mut book = TaskBook::default();
        book.claim("a", Some(train(0, 1)), now);
        book.claim("b", None, now);
        book.report(&[wants(0, 3, &[0])], now);
        assert_eq!(granted(&mut book, "b", now), train(0, 2));
        assert!(waits(&mut book, "c", now));
        assert!(book.finish("a", train(0, 1), now).is_some());
    }

    #[test]
    fn a_worker_that_comes_back_empty_handed_frees_its_task() {
        let now = Instant::now();
        let mut book = book(1, now);
        granted(&mut book, "a", now);
        book.claim("a", Some(train(0, 0)), now + CONFIRMATION);
        assert_eq!(book.lease_of("a").expect("a lease").granted, now, "the same lease goes on");
        book.claim("a", None, now);
        assert_eq!(granted(&mut book, "b", now), train(0, 0));
    }

    #[test]
    fn a_worker_with_a_task_that_is_wanted_no_more_gets_another() {
        let now = Instant::now();
        let mut book = book(1, now);
        granted(&mut book, "a", now);
        book.report(&[wants(1, 1, &[])], now);
        assert_eq!(book.counts(), TaskCounts { waiting: 1, leased: 0, held: 0 });
        assert_eq!(granted(&mut book, "a", now), train(1, 0));
    }

    #[test]
    fn three_failures_of_its_own_give_a_task_up() {
        let now = Instant::now();
        let mut book = book(1, now);
        for attempt in 1..=3 {
            granted(&mut book, "a", now);
            let (lease, verdict) = book.fail("a", train(0, 0), true);
            assert!(lease.is_some());
            let expected = if attempt < 3 { Verdict::TryAgain } else { Verdict::GiveUp { failures: 3 } };
            assert_eq!(verdict, expected);
        }
    }

    #[test]
    fn failures_of_workers_count_less() {
        let now = Instant::now();
        let mut book = book(1, now);
        for _ in 0..9 {
            granted(&mut book, "a", now);
            assert_eq!(book.fail("a", train(0, 0), false).1, Verdict::TryAgain);
        }
        granted(&mut book, "a", now);
        assert_eq!(book.fail("a", train(0, 0), false).1, Verdict::GiveUp { failures: 10 });
    }

    #[test]
    fn a_failure_told_twice_counts_once() {
        let now = Instant::now();
        let mut book = book(1, now);
        granted(&mut book, "a", now);
        for _ in 0..5 {
            assert_eq!(book.fail("a", train(0, 0), true).1, Verdict::TryAgain);
        }
    }
}
