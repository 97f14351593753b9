//! Which worker has which tasks, and for how long workers have had something to do: decisions only, without a clock.

use protocol::TaskName;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Tasks of every worker that ever had one.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    by_worker: BTreeMap<String, InHand>,
    /// Who has each task that somebody has.
    runners: HashMap<TaskName, Vec<Runner>>,
}

/// A worker that has a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Runner {
    pub(super) worker: String,
    /// When it got the task, or said after a restart of the coordinator that it has it.
    pub(super) since: Instant,
    /// Whether that is when it got it.
    pub(super) is_timed: bool,
}

#[derive(Clone, Debug)]
struct InHand {
    tasks: Vec<TaskName>,
    /// Since when there has been a task without a break, if there is one.
    since: Instant,
    /// Time with a task before that.
    earlier: Duration,
}

impl Leases {
    /// What a worker has, in the order in which it got it.
    pub(super) fn of(&self, worker: &str) -> &[TaskName] {
        self.by_worker.get(worker).map_or(&[], |in_hand| &in_hand.tasks)
    }

    /// Whether any worker has a task.
    pub(super) fn is_leased(&self, task: &TaskName) -> bool {
        self.runners.contains_key(task)
    }

    /// The one worker that has a task; `None` if there are others, or nobody.
    pub(super) fn only_runner(&self, task: &TaskName) -> Option<&Runner> {
        let [runner] = self.runners.get(task)?.as_slice() else { return None };
        Some(runner)
    }

    /// Tasks that one worker has, with it.
    pub(super) fn with_one_runner(&self) -> impl Iterator<Item = (TaskName, &Runner)> {
        self.runners.iter().filter_map(|(task, runners)| match runners.as_slice() {
            [runner] => Some((*task, runner)),
            _ => None,
        })
    }

    /// How long a worker has had a task; `None` where nobody knows.
    pub(super) fn took(&self, worker: &str, task: &TaskName, now: Instant) -> Option<Duration> {
        let runner = self.runners.get(task)?.iter().find(|runner| runner.worker == worker)?;
        runner.is_timed.then(|| now.saturating_duration_since(runner.since))
    }

    /// Time that a worker has had a task in hand, two at a time counted once.
    pub(super) fn busy(&self, worker: &str, now: Instant) -> Duration {
        self.by_worker.get(worker).map_or(Duration::ZERO, |in_hand| in_hand.earlier + in_hand.unbroken(now))
    }

    /// Gives a worker another task.
    pub(super) fn add(&mut self, worker: &str, task: TaskName, now: Instant) {
        self.change(worker, (now, true), |tasks| tasks.push(task));
    }

    /// Makes a worker have exactly these tasks, since it says so.
    pub(super) fn set(&mut self, worker: &str, tasks: &[TaskName], now: Instant) {
        self.change(worker, (now, false), |leased| *leased = tasks.to_vec());
    }

    /// Takes a task from a worker; whether it had it.
    pub(super) fn remove(&mut self, worker: &str, task: TaskName, now: Instant) -> bool {
        let had_it = self.of(worker).contains(&task);
        self.change(worker, (now, true), |tasks| tasks.retain(|other| *other != task));
        had_it
    }

    /// Forgets a worker that has nothing, and how long it was busy.
    pub(super) fn forget(&mut self, worker: &str) {
        if self.of(worker).is_empty() {
            self.by_worker.remove(worker);
        }
    }

    fn change(
        &mut self,
        worker: &str,
        (now, is_timed): (Instant, bool),
        change: impl FnOnce(&mut Vec<TaskName>),
    ) {
        let nothing = InHand { tasks: Vec::new(), since: now, earlier: Duration::ZERO };
        let in_hand = self.by_worker.entry(worker.to_owned()).or_insert(nothing);
        in_hand.earlier += in_hand.unbroken(now);
        in_hand.since = now;
        let before = in_hand.tasks.clone();
        change(&mut in_hand.tasks);
        for task in before.iter().filter(|task| !in_hand.tasks.contains(task)) {
            if let Some(runners) = self.runners.get_mut(task) {
                runners.retain(|runner| runner.worker != worker);
                if runners.is_empty() {
                    self.runners.remove(task);
                }
            }
        }
        for task in in_hand.tasks.iter().filter(|task| !before.contains(task)) {
            let runners = self.runners.entry(*task).or_default();
            if !runners.iter().any(|runner| runner.worker == worker) {
                runners.push(Runner { worker: worker.to_owned(), since: now, is_timed });
            }
        }
    }
}

impl InHand {
    fn unbroken(&self, now: Instant) -> Duration {
        match self.tasks.is_empty() {
            true => Duration::ZERO,
            false => now.saturating_duration_since(self.since),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::TaskKind;

    const SECOND: Duration = Duration::from_secs(1);

    fn task(index: u32) -> TaskName {
        TaskName { iteration: 0, kind: TaskKind::Train, index }
    }

    #[test]
    fn a_task_is_leased_until_the_last_of_its_workers_gives_it_back() {
        let (mut leases, now) = (Leases::default(), Instant::now());
        leases.set("a", &[task(0), task(1), task(1)], now);
        leases.set("b", &[task(0)], now);
        leases.set("a", &[], now);
        assert!(leases.is_leased(&task(0)) && !leases.is_leased(&task(1)));
        assert!(leases.remove("b", task(0), now));
        assert!(!leases.is_leased(&task(0)));
    }

    #[test]
    fn a_lease_that_a_worker_confirms_keeps_its_time_and_one_that_it_claims_has_none() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.add("a", task(0), start);
        leases.set("a", &[task(0), task(1)], start + SECOND * 5);
        assert_eq!(leases.took("a", &task(0), start + SECOND * 8), Some(SECOND * 8));
        assert_eq!(leases.took("a", &task(1), start + SECOND * 8), None, "nobody knows when it was granted");
        assert_eq!(leases.took("b", &task(0), start + SECOND * 8), None);
        leases.add("b", task(0), start + SECOND * 6);
        assert_eq!(leases.only_runner(&task(0)), None);
        let alone: Vec<_> =
            leases.with_one_runner().map(|(task, runner)| (task, runner.worker.as_str())).collect();
        assert_eq!(alone, [(task(1), "a")]);
    }

    #[test]
    fn two_tasks_at_a_time_are_one_time_busy() {
        let (mut leases, start) = (Leases::default(), Instant::now());
        leases.add("a", task(0), start);
        leases.add("a", task(1), start + SECOND);
        assert!(leases.remove("a", task(0), start + SECOND * 3));
        assert_eq!(leases.busy("a", start + SECOND * 4), SECOND * 4);
        assert!(leases.remove("a", task(1), start + SECOND * 4));
        assert!(!leases.remove("a", task(1), start + SECOND * 4));
        assert_eq!(leases.busy("a", start + SECOND * 9), SECOND * 4, "nothing in hand since");
        leases.add("a", task(2), start + SECOND * 10);
        assert_eq!(leases.busy("a", start + SECOND * 11), SECOND * 5);
    }
}
