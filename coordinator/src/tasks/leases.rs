//! Which worker has which tasks, and for how long workers have had something to do: decisions only, without a clock.

use protocol::TaskName;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Tasks of every worker that ever had one.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    by_worker: BTreeMap<String, InHand>,
    /// How many workers have a task; after a restart of the coordinator it may be more than one.
    n_holders: HashMap<TaskName, u32>,
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
        self.n_holders.contains_key(task)
    }

    /// Time that a worker has had a task in hand, two at a time counted once.
    pub(super) fn busy(&self, worker: &str, now: Instant) -> Duration {
        self.by_worker.get(worker).map_or(Duration::ZERO, |in_hand| in_hand.earlier + in_hand.unbroken(now))
    }

    /// Gives a worker another task.
    pub(super) fn add(&mut self, worker: &str, task: TaskName, now: Instant) {
        self.change(worker, now, |tasks| tasks.push(task));
    }

    /// Makes a worker have exactly these tasks.
    pub(super) fn set(&mut self, worker: &str, tasks: &[TaskName], now: Instant) {
        self.change(worker, now, |leased| *leased = tasks.to_vec());
    }

    /// Takes a task from a worker; whether it had it.
    pub(super) fn remove(&mut self, worker: &str, task: TaskName, now: Instant) -> bool {
        let had_it = self.of(worker).contains(&task);
        self.change(worker, now, |tasks| tasks.retain(|other| *other != task));
        had_it
    }

    /// Forgets a worker that has nothing, and how long it was busy.
    pub(super) fn forget(&mut self, worker: &str) {
        if self.of(worker).is_empty() {
            self.by_worker.remove(worker);
        }
    }

    fn change(&mut self, worker: &str, now: Instant, change: impl FnOnce(&mut Vec<TaskName>)) {
        let nothing = InHand { tasks: Vec::new(), since: now, earlier: Duration::ZERO };
        let in_hand = self.by_worker.entry(worker.to_owned()).or_insert(nothing);
        in_hand.earlier += in_hand.unbroken(now);
        in_hand.since = now;
        for task in &in_hand.tasks {
            match self.n_holders.get_mut(task) {
                Some(n_holders @ 2..) => *n_holders -= 1,
                _ => drop(self.n_holders.remove(task)),
            }
        }
        change(&mut in_hand.tasks);
        for task in &in_hand.tasks {
            *self.n_holders.entry(*task).or_default() += 1;
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
