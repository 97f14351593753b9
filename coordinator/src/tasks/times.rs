//! How long tasks take, learnt from those that were finished: decisions only, without a clock.
//!
//! Times are kept by worker and by kind of task, since a worker may be slower than others and an evaluation has other work
//! to do than training. What is not known of a worker is guessed from the others.

use super::leases::Runner;
use config::TaskKind;
use protocol::{RecentTimes, TaskName, lower_median};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A worker that computes must get on within so many times its usual time for a whole task. A task is many network calls,
/// each of which counts as getting on; what an honest worker does between two of them, such as to decode all images, is a
/// part of a task. Four whole tasks leave room for a card that throttles, or that another program has begun to use.
const STANDSTILL_TASKS: u32 = 4;
/// No standstill that is shorter than this counts: a host that swaps or was suspended does nothing for as long.
const SHORTEST_DEADLINE: Duration = Duration::from_secs(30);
/// A task that takes a worker longer than this share of its usual time for one is late: times of tasks of one kind on one
/// worker differ by less.
const LATE: f64 = 1.5;
/// A worker is slow below this share of the median worker's speed.
const SLOW: f64 = 0.5;
/// Tasks of a kind that a worker must have finished before its speed is told; so a slow start is not a slow worker.
const TOLD_AFTER: usize = 5;

/// What is known of the times of tasks.
#[derive(Clone, Debug, Default)]
pub(super) struct TaskTimes {
    workers: BTreeMap<String, BTreeMap<TaskKind, RecentTimes>>,
    /// The median over workers of what is usual for each, as of the last look.
    usual: BTreeMap<TaskKind, Duration>,
}

/// How fast a worker is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// As a share of the median worker's.
    pub of_median: f64,
    /// Whether it has long been slower than half the median worker.
    pub is_slow: bool,
}

impl TaskTimes {
    /// Takes note of how long a task took a worker.
    pub(super) fn note(&mut self, worker: &str, kind: TaskKind, took: Duration) {
        self.workers.entry(worker.to_owned()).or_default().entry(kind).or_default().note(took);
    }

    /// Finds anew what is usual; costs time with the number of workers.
    pub(super) fn look(&mut self) {
        let mut medians: BTreeMap<TaskKind, Vec<Duration>> = BTreeMap::new();
        for (kind, times) in self.workers.values().flatten() {
            medians.entry(*kind).or_default().extend(times.median());
        }
        let usual = medians.into_iter().filter_map(|(kind, of)| Some((kind, lower_median(of.into_iter())?)));
        self.usual = usual.collect();
    }

    /// Forgets a worker.
    pub(super) fn forget(&mut self, worker: &str) {
        self.workers.remove(worker);
    }

    /// The time that a worker usually takes for a task of a kind; `None` if nobody has finished one.
    pub(super) fn of(&self, worker: &str, kind: TaskKind) -> Option<Duration> {
        let own = self.workers.get(worker).and_then(|kinds| kinds.get(&kind)).and_then(RecentTimes::median);
        own.or_else(|| Some(self.usual.get(&kind)?.mul_f64(self.slowness(worker, 1).unwrap_or(1.0))))
    }

    /// How long a worker that has these tasks may stand still while it computes: at most `longest`, which is also the
    /// deadline as long as nothing is known.
    pub(super) fn deadline(&self, worker: &str, tasks: &[TaskName], longest: Duration) -> Duration {
        let usual = tasks.iter().map(|task| self.of(worker, task.kind)).collect::<Option<Vec<_>>>();
        match usual.and_then(|usual| usual.into_iter().max()) {
            Some(usual) => usual.saturating_mul(STANDSTILL_TASKS).max(SHORTEST_DEADLINE).min(longest),
            None => longest,
        }
    }

    /// Whether a task takes its worker so long that another one should try: it is late, or this worker is so slow that one
    /// of usual speed would be done sooner.
    pub(super) fn is_late(&self, task: TaskName, runner: &Runner, now: Instant) -> bool {
        self.usual.get(&task.kind).is_some_and(|usual| self.gains(task, runner, *usual, now))
    }

    /// Whether this worker would be done with such a task sooner than who has it.
    pub(super) fn would_gain(&self, worker: &str, task: TaskName, runner: &Runner, now: Instant) -> bool {
        self.of(worker, task.kind).is_some_and(|takes| self.gains(task, runner, takes, now))
    }

    fn gains(&self, task: TaskName, runner: &Runner, takes: Duration, now: Instant) -> bool {
        let Some(usual) = self.of(&runner.worker, task.kind) else { return false };
        let age = now.saturating_duration_since(runner.since);
        age > usual.mul_f64(LATE) || usual.saturating_sub(age) > takes
    }

    /// How fast a worker is; `None` before it and another have finished enough.
    pub(super) fn speed(&self, worker: &str) -> Option<Speed> {
        let of_median = 1.0 / self.slowness(worker, TOLD_AFTER).filter(|_| self.workers.len() > 1)?;
        Some(Speed { of_median, is_slow: of_median < SLOW })
    }

    /// How many times as long as the median worker a worker takes, by the kinds of which it has finished so many.
    fn slowness(&self, worker: &str, n_finished: usize) -> Option<f64> {
        let known = self.workers.get(worker)?.iter().filter(|(_, times)| times.n_noted() >= n_finished);
        let ratio = |(kind, times): (&TaskKind, &RecentTimes)| {
            let usual = self.usual.get(kind)?.as_secs_f64();
            Some(times.median()?.as_secs_f64() / usual.max(f64::MIN_POSITIVE))
        };
        let ratios: Vec<f64> = known.filter_map(ratio).collect();
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        (mean > 0.0).then_some(mean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TaskKind::{Evaluate, Train};

    const SECOND: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(600);

    fn task(kind: TaskKind) -> TaskName {
        TaskName { iteration: 0, kind, index: 0 }
    }

    /// Workers, kinds, seconds, and how often they took that long.
    fn times(noted: &[(&str, TaskKind, u32, usize)]) -> TaskTimes {
        let mut times = TaskTimes::default();
        for (worker, kind, seconds, n_times) in noted {
            (0..*n_times).for_each(|_| times.note(worker, *kind, SECOND * *seconds));
        }
        times.look();
        times
    }

    #[test]
    fn a_standstill_is_measured_by_the_tasks_of_the_worker_or_of_others_like_it() {
        let two_kinds =
            [("a", Train, 20, 3), ("b", Train, 40, 3), ("c", Train, 60, 3), ("a", Evaluate, 15, 1)];
        for (noted, worker, tasks, expected) in [
            (&[][..], "a", &[Train][..], 600),
            (&two_kinds, "a", &[Train], 80),
            (&two_kinds, "c", &[Train], 240),
            (&two_kinds, "new", &[Train], 160),
            // Three halves of the median in training, so in evaluations, too.
            (&two_kinds, "c", &[Evaluate], 90),
            (&two_kinds, "a", &[Train, Evaluate], 80),
            (&two_kinds, "a", &[], 600),
            (&[("a", Train, 2, 1)], "a", &[Train], 30),
            (&[("a", Train, 500, 1)], "a", &[Train], 600),
            (&[("a", Train, 20, 1)], "a", &[Train, Evaluate], 600),
        ] {
            let tasks: Vec<TaskName> = tasks.iter().map(|kind| task(*kind)).collect();
            let deadline = times(noted).deadline(worker, &tasks, LONGEST);
            assert_eq!(deadline, SECOND * expected, "{worker} with {tasks:?} of {noted:?}");
        }
        assert_eq!(times(&two_kinds).deadline("c", &[task(Train)], SECOND * 50), SECOND * 50);
        assert_eq!(times(&two_kinds).deadline("c", &[task(Train)], SECOND), SECOND, "as the option says");
    }

    #[test]
    fn a_task_is_late_once_it_takes_its_worker_or_would_take_another_long() {
        let known = [("a", Train, 10, 3), ("b", Train, 10, 3), ("slow", Train, 60, 3)];
        let now = Instant::now() + LONGEST;
        for (noted, worker, age, is_late) in [
            (&[][..], "a", 599, false),
            (&known, "a", 15, false),
            (&known, "a", 16, true),
            (&known, "new", 15, false),
            (&known, "new", 16, true),
            (&known, "slow", 0, true),
            (&known, "slow", 49, true),
            // It will be done with it first.
            (&known, "slow", 50, false),
            (&known, "slow", 90, false),
            (&known, "slow", 91, true),
        ] {
            let runner = Runner { worker: worker.to_owned(), since: now - SECOND * age, is_timed: true };
            let late = times(noted).is_late(task(Train), &runner, now);
            assert_eq!(late, is_late, "{worker} has had it for {age} s");
        }
        let runner = |worker: &str| Runner { worker: worker.to_owned(), since: now, is_timed: true };
        assert!(times(&known).would_gain("a", task(Train), &runner("slow"), now));
        assert!(!times(&known).would_gain("slow", task(Train), &runner("a"), now));
        assert!(!times(&known).would_gain("slow", task(Train), &runner("slow"), now));
        assert!(!times(&[]).would_gain("a", task(Train), &runner("slow"), now), "nobody knows");
    }

    #[test]
    fn a_worker_is_slow_below_half_the_median_speed_for_long_enough() {
        let speed =
            |noted: &[_], worker: &str| times(noted).speed(worker).map(|told| (told.of_median, told.is_slow));
        let three =
            |seconds, n_times| [("a", Train, 10, 7), ("b", Train, 10, 7), ("c", Train, seconds, n_times)];
        for (noted, worker, expected) in [
            (three(40, 7), "c", Some((0.25, true))),
            (three(20, 7), "c", Some((0.5, false))),
            (three(40, TOLD_AFTER - 1), "c", None),
            (three(5, 7), "c", Some((2.0, false))),
            (three(40, 7), "a", Some((1.0, false))),
            (three(40, 7), "new", None),
        ] {
            assert_eq!(speed(&noted, worker), expected, "{worker} of {noted:?}");
        }
        assert_eq!(speed(&[("a", Train, 10, 7)], "a"), None, "it is the only one");
        let two = [("a", Train, 10, 7), ("b", Train, 50, 7)];
        assert_eq!(speed(&two, "b"), Some((0.2, true)), "of two the faster one is the measure");
    }

    #[test]
    fn who_is_forgotten_is_no_measure_any_more() {
        let mut times = times(&[("a", Train, 10, 1), ("b", Train, 40, 1)]);
        times.forget("a");
        times.look();
        assert_eq!(times.of("new", Train), Some(SECOND * 40));
    }
}
