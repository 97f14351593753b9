//! Which task goes to which worker: decisions only, without I/O and without a clock.
//!
//! The learner says what it wants and what it holds; workers ask, finish, fail or vanish. A task is a pure function of
//! its name, so running one twice costs time and nothing else: this book may forget, guess and start over.
//!
//! Invariants:
//! 1. Only a wanted task is granted, and only while there is a learner that said so.
//! 2. A worker has at most two tasks: one that it samples, and one that it finishes meanwhile. Asking again gives the one
//!    that it does not name as being finished.
//! 3. Held is what the learner says. A worker's word counts until a report has had the time to confirm it.
//! 4. Tasks are granted in the order of their names: earlier iterations first, evaluation before training. Of one set the ranks
//!    of the learner take turns, so that all of them have work from the start.
//! 5. A task that failed goes to a worker that has not failed at it, as long as there is one.
//! 6. A task that failed three times by its own fault, twice for want of memory, or ten times by whosever, ends the run, if
//!    three workers say so, or all where there are fewer. What counts are failures of workers that were granted the task: one
//!    that only says that it has it is not believed.
//! 7. What a message costs does not grow with the number of tasks or workers: free tasks are kept, not looked for, and late
//!    ones are looked for once in a while.
//! 8. A task has two workers at most, and the second only where nothing is free that it may have and the first takes too
//!    long. The first outcome counts; the other worker is told to give the task back, which is no failure.
//! 9. No task is granted whose outcome the learner has no room for.

mod leases;
mod rank_layout;
mod times;
mod wanted_set;

use config::TaskKind;
use leases::Leases;
use proto::Blame;
use protocol::TaskName;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use times::TaskTimes;
use wanted_set::WantedSet;

pub use rank_layout::RankLayout;
pub use times::Speed;

/// One to sample, and one to score and push meanwhile.
const MOST_LEASES: usize = 2;
/// How long a worker's "the learner holds it" is believed without the learner saying so.
const CONFIRMATION: Duration = Duration::from_secs(3);
/// Late tasks that are kept from one look to the next: every worker that waits is asked about each.
const MOST_LATE: usize = 8;
/// Failures by a task's own fault (a NaN, a bad prompt) after which it is given up.
const MAX_OWN_FAILURES: u32 = 3;
/// Failures for want of memory after which a task is given up: the same task takes the same memory the next time.
const MAX_MEMORY_FAILURES: u32 = 2;
/// Failures of any kind after which a task is given up.
const MAX_FAILURES: u32 = 10;
/// Workers that must have failed at a task before it is given up, where there are as many: cards of two may be short of memory.
const AGREEING_WORKERS: usize = 3;

/// A set of tasks that a rank of the learner wants, its own among those of a kind and iteration, and which of them it holds
/// already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedTasks {
    /// Iteration of all of them.
    pub iteration: u32,
    /// Kind of all of them.
    pub kind: TaskKind,
    /// How many of the kind and iteration there are, other ranks' included: their indices are `0 .. n_tasks`.
    pub n_tasks: u32,
    /// Indices of those that the rank holds.
    pub held: Vec<u32>,
    /// It has room for the outcomes of those below this index.
    pub open_below: u32,
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

/// A worker that failed at a task.
#[derive(Clone, Copy, Debug)]
pub struct Failed<'a> {
    /// Its member id.
    pub worker: &'a str,
    /// What it failed at.
    pub task: TaskName,
    /// Whose fault it is, in the worker's opinion.
    pub blame: Blame,
    /// Workers that may get tasks.
    pub n_workers: usize,
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
    layout: RankLayout,
    /// The ranks of the learner that have said what they want.
    told: BTreeSet<u32>,
    /// What they want, and hold.
    wanted: BTreeMap<SetName, WantedSet>,
    /// By the word of a worker that had it, and since when.
    delivered: BTreeMap<TaskName, Instant>,
    leases: Leases,
    failures: BTreeMap<TaskName, Failures>,
    /// Those that take their only worker too long, as of the last look, in the order in which they were granted.
    late: Vec<(Instant, TaskName)>,
    /// Whether all workers that wait were offered the late ones since then.
    is_late_offered: bool,
    times: TaskTimes,
}

/// Iteration, kind and rank of a wanted set.
type SetName = (u32, TaskKind, u32);

#[derive(Clone, Debug, Default)]
struct Failures {
    own: u32,
    memory: u32,
    all: u32,
    /// Workers that failed.
    by: BTreeSet<String>,
}

impl TaskBook {
    /// The book of a run whose tasks go to ranks of the learner like that.
    pub fn new(layout: RankLayout) -> Self {
        Self { layout, ..Self::default() }
    }

    /// Forgets what a rank of the learner said: it is gone, or another process has its place. Workers keep their tasks.
    pub fn forget_learner(&mut self, rank: u32) {
        self.told.remove(&rank);
        self.wanted.retain(|&(.., of), _| of != rank);
        let layout = &self.layout;
        self.delivered.retain(|task, _| layout.rank_of(task) != rank);
        self.late.retain(|(_, task)| layout.rank_of(task) != rank);
    }

    /// Takes a rank's full account of what it wants and holds.
    pub fn report(&mut self, rank: u32, wanted: &[WantedTasks], now: Instant) {
        self.told.insert(rank);
        let mut earlier: BTreeMap<SetName, WantedSet> =
            self.wanted.extract_if(.., |&(.., of), _| of == rank).collect();
        let mut changed = Vec::new();
        for WantedTasks { iteration, kind, n_tasks, held, open_below } in wanted {
            let name = (*iteration, *kind, rank);
            let n_own = self.layout.n_own(*kind, *n_tasks, rank);
            let mut set = WantedSet::new((*n_tasks, n_own), held, *open_below);
            let indices = set.replace(earlier.remove(&name)).into_iter();
            changed.extend(indices.map(|index| TaskName { iteration: *iteration, kind: *kind, index }));
            self.wanted.insert(name, set);
        }
        let (layout, sets) = (&self.layout, &self.wanted);
        let set_of = |task: &TaskName| sets.get(&(task.iteration, task.kind, layout.rank_of(task)));
        self.late.retain(|(_, task)| set_of(task).is_some());
        self.failures.retain(|task, _| set_of(task).is_some());
        self.delivered.retain(|task, since| {
            if layout.rank_of(task) != rank {
                return true;
            }
            let is_held = set_of(task).is_some_and(|set| set.is_held(task.index));
            let stays = !is_held && now.duration_since(*since) < CONFIRMATION;
            if !stays {
                changed.push(*task);
            }
            stays
        });
        // Others have nothing to do with what this rank says.
        changed.retain(|task| self.layout.rank_of(task) == rank);
        changed.into_iter().for_each(|task| self.refresh(task));
    }

    /// Whether there is a task that some worker may be given which waits for one.
    pub fn has_grantable(&self) -> bool {
        self.grantable().next().is_some() || (!self.late.is_empty() && !self.is_late_offered)
    }

    /// All workers that wait have been offered what there is: until the next look none of them need be asked about what is late.
    pub fn note_offered(&mut self) {
        self.is_late_offered = true;
    }

    /// Tasks that nobody has and that there is room for: set by set in order, of each set the ranks in turns.
    fn grantable(&self) -> impl Iterator<Item = TaskName> {
        let sets: Vec<(&SetName, &WantedSet)> = self.wanted.iter().collect();
        let of_all_ranks = |one: &(&SetName, &WantedSet), other: &(&SetName, &WantedSet)| {
            (one.0.0, one.0.1) == (other.0.0, other.0.1)
        };
        let groups: Vec<Vec<_>> = sets.chunk_by(of_all_ranks).map(<[_]>::to_vec).collect();
        groups.into_iter().flat_map(|ranks| self.in_turns(ranks))
    }

    fn in_turns<'a>(
        &self,
        ranks: Vec<(&SetName, &'a WantedSet)>,
    ) -> impl Iterator<Item = TaskName> + use<'a, '_> {
        let of_rank = |(&(iteration, kind, _), set): (&SetName, &'a WantedSet)| {
            set.grantable().map(move |index| TaskName { iteration, kind, index }).peekable()
        };
        let mut ranks: Vec<_> = ranks.into_iter().map(of_rank).collect();
        std::iter::from_fn(move || {
            let turns = ranks.iter_mut().map(|rank| rank.peek().map(|task| self.layout.turn_of(task)));
            let turns = turns.enumerate().filter_map(|(rank, turn)| Some((turn?, rank)));
            let (_, rank) = turns.min()?;
            ranks[rank].next()
        })
    }

    /// Looks for tasks that take their worker too long; to be called once in a while, since it costs time with the number of
    /// tasks and workers.
    pub fn look_for_late(&mut self, now: Instant) {
        self.times.look();
        let running = self.leases.with_one_runner();
        let late =
            running.filter(|(task, runner)| self.is_open(task) && self.times.is_late(*task, runner, now));
        let mut late: Vec<(Instant, TaskName)> = late.map(|(task, runner)| (runner.since, task)).collect();
        late.sort_unstable();
        late.truncate(MOST_LATE);
        (self.late, self.is_late_offered) = (late, false);
    }

    /// Decides what a worker that asks is to do.
    pub fn grant(&mut self, asking: Asking<'_>, now: Instant) -> Grant {
        let Asking { worker, finishing, .. } = asking;
        if self.told.is_empty() {
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
        match self.next_free(&asking).or_else(|| self.next_late(&asking, now)) {
            Some(task) => {
                self.leases.add(worker, task, now);
                self.refresh(task);
                Grant::Task(task)
            }
            None if self.n_free() == 0 => Grant::Wait("every wanted task is held or with a worker"),
            None => {
                Grant::Wait("the learner has no room for more outcomes, or others are to try what is left")
            }
        }
    }

    fn next_free(&self, asking: &Asking<'_>) -> Option<TaskName> {
        let may_be_given = |task: &TaskName| !asking.finishing.contains(task) && self.may_try(task, asking);
        self.grantable().find(may_be_given)
    }

    fn n_free(&self) -> usize {
        self.wanted.values().map(WantedSet::n_free).sum()
    }

    /// The task that has been with its only worker for longest, of those that take it too long and this one less.
    fn next_late(&self, asking: &Asking<'_>, now: Instant) -> Option<TaskName> {
        let is_for = |task: &TaskName| {
            let runner = self.leases.only_runner(task).filter(|runner| runner.worker != asking.worker);
            runner.is_some_and(|runner| self.times.would_gain(asking.worker, *task, runner, now))
                && !asking.finishing.contains(task)
                && self.may_try(task, asking)
        };
        self.late.iter().map(|(_, task)| *task).find(is_for)
    }

    /// Notes what a worker that joins says it has in hand, of which no more is believed than a worker can have: after a
    /// restart of the coordinator, this is how leases come back. What it does not name is free again.
    pub fn claim(&mut self, worker: &str, in_hand: &[TaskName], now: Instant) {
        self.set_leases(worker, &in_hand[..in_hand.len().min(MOST_LEASES)], now);
    }

    fn set_leases(&mut self, worker: &str, in_hand: &[TaskName], now: Instant) {
        let earlier = self.leases.of(worker).to_vec();
        self.leases.set(worker, in_hand, now);
        earlier.iter().chain(in_hand).for_each(|task| self.refresh(*task));
    }

    /// Takes a worker's word that the learner has a task, or wants it no more; whether the worker had the task. Hearing it
    /// twice does no harm.
    pub fn finish(&mut self, worker: &str, task: TaskName, now: Instant) -> bool {
        if let Some(took) = self.leases.took(worker, &task, now) {
            self.times.note(worker, task.kind, took);
        }
        let had_it = self.leases.remove(worker, task, now);
        if had_it && !self.is_held(&task) {
            self.delivered.insert(task, now);
        }
        self.refresh(task);
        had_it
    }

    /// Takes a task from a worker that has no outcome of it by nobody's fault.
    pub fn give_back(&mut self, worker: &str, task: TaskName, now: Instant) {
        self.leases.remove(worker, task, now);
        self.refresh(task);
    }

    /// Of the tasks that a worker has in hand, those whose outcome nobody needs: another worker was faster, or their time is
    /// over. What is not wanted for other reasons may be wanted again, such as by a learner that has only just begun.
    pub fn not_needed(&self, in_hand: &[TaskName]) -> Vec<TaskName> {
        let earliest = |rank| self.wanted.keys().find(|&&(.., of)| of == rank);
        let is_past = |task: &TaskName| {
            earliest(self.layout.rank_of(task)).is_some_and(|(iteration, ..)| task.iteration < *iteration)
        };
        let is_here = |task: &TaskName| self.is_held(task) || self.delivered.contains_key(task);
        in_hand.iter().filter(|task| is_here(task) || is_past(task)).copied().collect()
    }

    /// How long a worker may stand still while it computes; `longest` as long as nothing is known of its tasks, and at most.
    pub fn standstill_deadline(&self, worker: &str, longest: Duration) -> Duration {
        self.times.deadline(worker, self.leases.of(worker), longest)
    }

    /// How fast a worker is; `None` while nobody can tell.
    pub fn speed(&self, worker: &str) -> Option<Speed> {
        self.times.speed(worker)
    }

    /// Notes that a worker failed at a task.
    pub fn fail(&mut self, failed: Failed<'_>, now: Instant) -> Verdict {
        let Failed { worker, task, blame, n_workers } = failed;
        let was_granted = self.leases.took(worker, &task, now).is_some();
        self.leases.remove(worker, task, now);
        self.refresh(task);
        if !was_granted || !self.is_wanted(&task) {
            // Heard before, never granted by this book, another worker's by now, or of no use to anybody.
            return Verdict::TryAgain;
        }
        let failures = self.failures.entry(task).or_default();
        failures.all += 1;
        failures.own += u32::from(blame == Blame::Task);
        failures.memory += u32::from(blame == Blame::Memory);
        failures.by.insert(worker.to_owned());
        let are_enough = failures.own >= MAX_OWN_FAILURES
            || failures.memory >= MAX_MEMORY_FAILURES
            || failures.all >= MAX_FAILURES;
        let are_agreed = failures.by.len() >= n_workers.clamp(1, AGREEING_WORKERS);
        match are_enough && are_agreed {
            true => Verdict::GiveUp { failures: failures.all },
            false => Verdict::TryAgain,
        }
    }

    /// Takes the tasks of a worker that is gone, so that they are granted anew; `until` is its last sign of life.
    pub fn release(&mut self, worker: &str, until: Instant) {
        self.set_leases(worker, &[], until);
    }

    /// Forgets a worker that has been gone for long and has no tasks.
    pub fn forget_worker(&mut self, worker: &str) {
        self.leases.forget(worker);
        self.times.forget(worker);
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
        let (n_tasks, n_held) = self
            .wanted
            .values()
            .fold((0, 0), |(n_tasks, n_held), set| (n_tasks + set.n_own(), n_held + set.n_held()));
        let is_wanted = |task: &&TaskName| self.is_wanted(task);
        let held = n_held + self.delivered.keys().filter(is_wanted).count() as u32;
        let waiting = self.n_free() as u32;
        TaskCounts { waiting, leased: n_tasks - held - waiting, held }
    }

    fn set_of(&self, task: &TaskName) -> Option<&WantedSet> {
        self.wanted.get(&(task.iteration, task.kind, self.layout.rank_of(task)))
    }

    /// Whether the learner says that it holds a task.
    fn is_held(&self, task: &TaskName) -> bool {
        self.set_of(task).is_some_and(|set| set.is_held(task.index))
    }

    /// Whether a task is wanted and the learner does not say that it holds it.
    fn is_wanted(&self, task: &TaskName) -> bool {
        self.set_of(task).is_some_and(|set| set.has(task.index) && !set.is_held(task.index))
    }

    /// Whether a task is wanted and neither the learner nor a worker says that it is held.
    fn is_open(&self, task: &TaskName) -> bool {
        self.is_wanted(task) && !self.delivered.contains_key(task)
    }

    /// Follows a change of what is wanted, held, delivered or leased.
    fn refresh(&mut self, task: TaskName) {
        let is_free = self.is_open(&task) && !self.leases.is_leased(&task);
        let name = (task.iteration, task.kind, self.layout.rank_of(&task));
        if let Some(set) = self.wanted.get_mut(&name) {
            set.set_free(task.index, is_free);
        }
        if !self.is_open(&task) || self.leases.only_runner(&task).is_none() {
            self.late.retain(|(_, late)| *late != task);
        }
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
