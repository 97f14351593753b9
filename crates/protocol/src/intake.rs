//! What the learner wants from workers, what of it has arrived, and what training has taken.
//!
//! 1. A task's outcome is held at most once; whoever brings it again is told so and nothing changes.
//! 2. Outcomes wait here in any order of arrival and are taken in the order of training.
//! 3. Nothing is kept that is not wanted.
//! 4. Tasks are opened to workers in the order of training, as far as there is room for their outcomes: a slow learner slows
//!    workers and does not fill memory. The task that training waits for is always open, so nothing waits for ever. What was
//!    granted beyond that, by an earlier learner of the run, is kept, too; that is two tasks of a worker at most.

use crate::{TaskName, kind_to_wire};
use config::{TaskKind, TaskSpec};
use proto::Wanted;
use std::collections::BTreeMap;

/// Tasks of one kind and iteration.
#[derive(Debug)]
pub struct TaskSet {
    /// Those that are this rank's own, in the order of their indices.
    pub tasks: Vec<TaskSpec>,
    /// Training only: the trained steps, in rising order.
    pub steps: Vec<u32>,
    /// Memory that one outcome takes at most.
    pub outcome_bytes: u64,
}

/// How much there is room for, of outcomes that training has not taken yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldLimit {
    /// Number of outcomes.
    pub outcomes: u64,
    /// Memory of all of them.
    pub bytes: u64,
}

impl HoldLimit {
    /// Room for everything that is wanted.
    pub const NONE: Self = Self { outcomes: u64::MAX, bytes: u64::MAX };
}

/// How a task stands with the learner.
#[derive(Debug, PartialEq)]
pub enum TaskStanding {
    /// Wanted and not here yet; with the trained steps.
    Wanted(TaskSpec, Vec<u32>),
    /// Here, or taken already.
    Held,
    /// Not of this time, or not of this run's config.
    NotWanted,
}

/// What comes of taking an outcome.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<T> {
    /// Here it is.
    Here(T),
    /// It has not arrived.
    NotYet,
    /// It has not arrived, and is waited for no more.
    Stopped,
}

/// How many of the wanted tasks are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntakeCounts {
    /// Not here yet.
    pub missing: usize,
    /// Here, and not taken.
    pub waiting: usize,
    /// Taken by training.
    pub taken: usize,
}

/// The place where outcomes `T` wait for training.
#[derive(Debug)]
pub struct Intake<T> {
    sets: BTreeMap<SetName, Shelf<T>>,
    rank: u32,
    limit: HoldLimit,
    is_stopping: bool,
}

type SetName = (u32, TaskKind);

#[derive(Debug)]
struct Shelf<T> {
    set: TaskSet,
    slots: Vec<Slot<T>>,
}

#[derive(Debug)]
enum Slot<T> {
    Empty,
    Held(T),
    Taken,
}

impl<T> Default for Intake<T> {
    fn default() -> Self {
        Self::new(HoldLimit::NONE)
    }
}

impl<T> Shelf<T> {
    /// Where a task is among those of the set.
    fn position(&self, index: u32) -> Option<usize> {
        self.set.tasks.binary_search_by_key(&index, |task| task.index).ok()
    }

    /// The index below which the first `n_open` tasks are all that there are.
    fn index_after(&self, n_open: usize) -> u32 {
        let tasks = &self.set.tasks;
        tasks.get(n_open).map_or_else(|| tasks.last().map_or(0, |last| last.index + 1), |next| next.index)
    }

    /// Tasks that training has taken, which it does in the order of their indices.
    fn n_taken(&self) -> usize {
        self.slots.iter().take_while(|slot| matches!(slot, Slot::Taken)).count()
    }
}

impl<T> Intake<T> {
    /// A place with room for so much, of the first rank of the learner.
    pub fn new(limit: HoldLimit) -> Self {
        Self::of_rank(0, limit)
    }

    /// A place with room for so much.
    pub fn of_rank(rank: u32, limit: HoldLimit) -> Self {
        Self { sets: BTreeMap::new(), rank, limit, is_stopping: false }
    }

    /// Starts wanting the tasks of a set, unless they are wanted already.
    pub fn want(&mut self, kind: TaskKind, iteration: u32, set: TaskSet) {
        let slots = set.tasks.iter().map(|_| Slot::Empty).collect();
        self.sets.entry((iteration, kind)).or_insert(Shelf { set, slots });
    }

    /// Stops wanting the tasks of one kind and iteration, and drops what is left of them.
    pub fn forget(&mut self, kind: TaskKind, iteration: u32) {
        self.sets.remove(&(iteration, kind));
    }

    /// How a task stands.
    pub fn standing(&self, task: TaskName) -> TaskStanding {
        let Some(shelf) = self.sets.get(&(task.iteration, task.kind)) else { return TaskStanding::NotWanted };
        let Some(position) = shelf.position(task.index) else { return TaskStanding::NotWanted };
        match shelf.slots[position] {
            Slot::Empty => TaskStanding::Wanted(shelf.set.tasks[position].clone(), shelf.set.steps.clone()),
            Slot::Held(_) | Slot::Taken => TaskStanding::Held,
        }
    }

    /// Keeps the outcome of a task if it is still wanted and nobody was faster; returns how the task stands then.
    pub fn hold(&mut self, task: TaskName, outcome: T) -> TaskStanding {
        match self.slot(task) {
            Some(slot @ Slot::Empty) => *slot = Slot::Held(outcome),
            Some(Slot::Held(_) | Slot::Taken) => {}
            None => return TaskStanding::NotWanted,
        }
        TaskStanding::Held
    }

    /// Takes the outcome of a task if it is here.
    ///
    /// # Panics
    /// If the task is not wanted or was taken before.
    pub fn take(&mut self, task: TaskName) -> Taken<T> {
        let is_stopping = self.is_stopping;
        let slot = self.slot(task).expect("only wanted tasks are taken; else this is a bug");
        match std::mem::replace(slot, Slot::Taken) {
            Slot::Held(outcome) => return Taken::Here(outcome),
            Slot::Taken => panic!("{task} is taken twice, this is a bug"),
            Slot::Empty => *slot = Slot::Empty,
        }
        if is_stopping { Taken::Stopped } else { Taken::NotYet }
    }

    /// What the coordinator is told: everything wanted, which of it is here, and for how much of it there is room.
    pub fn wanted(&self) -> Vec<Wanted> {
        let open = self.open();
        let wanted = |(name, shelf): (&SetName, &Shelf<T>)| Wanted {
            kind: kind_to_wire(name.1).into(),
            iteration: name.0,
            version: shelf.set.tasks.first().map_or(0, |task| task.version),
            rank: self.rank,
            held: shelf
                .set
                .tasks
                .iter()
                .zip(&shelf.slots)
                .filter(|(_, slot)| !matches!(slot, Slot::Empty))
                .map(|(task, _)| task.index)
                .collect(),
            open_below: open.get(name).map(|n_open| shelf.index_after(*n_open)),
        };
        self.sets.iter().map(wanted).collect()
    }

    /// Whether some of what is wanted is not open to workers yet, so that taking an outcome opens more.
    pub fn is_short_of_room(&self) -> bool {
        let open = self.open();
        let is_closed = |(name, shelf): (&SetName, &Shelf<T>)| {
            open.get(name).is_some_and(|n_open| *n_open < shelf.slots.len())
        };
        self.sets.iter().any(is_closed)
    }

    /// For each set, how many of its tasks are open, from the first on: walks through all that is not taken yet in the order in which
    /// training takes it, until there is no more room.
    fn open(&self) -> BTreeMap<SetName, usize> {
        let mut order: Vec<(&SetName, &Shelf<T>)> = self.sets.iter().collect();
        // The images of a version are looked at once its iteration is trained.
        order.sort_by_key(|((iteration, kind), _)| (*iteration, *kind != TaskKind::Train, *kind));
        let HoldLimit { mut outcomes, mut bytes } = self.limit;
        let mut is_first = true;
        let mut open = BTreeMap::new();
        for (name, shelf) in order {
            let (n_taken, each) = (shelf.n_taken(), shelf.set.outcome_bytes);
            let n_wanted = (shelf.slots.len() - n_taken) as u64;
            let fitting = outcomes.min(bytes.checked_div(each).unwrap_or(u64::MAX));
            let n_open = fitting.max(u64::from(is_first)).min(n_wanted);
            open.insert(*name, n_taken + n_open as usize);
            // What comes later in training waits for room until all of this has it.
            (outcomes, bytes) = match n_open < n_wanted {
                true => (0, 0),
                false => (outcomes.saturating_sub(n_open), bytes.saturating_sub(n_open * each)),
            };
            is_first &= n_wanted == 0;
        }
        open
    }

    /// Outcomes that are here and were not taken yet, and the memory that they take at most.
    pub fn holds(&self) -> HoldLimit {
        let mut holds = HoldLimit { outcomes: 0, bytes: 0 };
        for shelf in self.sets.values() {
            let n_held = shelf.slots.iter().filter(|slot| matches!(slot, Slot::Held(_))).count() as u64;
            holds.outcomes += n_held;
            holds.bytes += n_held * shelf.set.outcome_bytes;
        }
        holds
    }

    /// How many wanted tasks are not here yet, are here, and were taken.
    pub fn counts(&self) -> IntakeCounts {
        let mut counts = IntakeCounts::default();
        for slot in self.sets.values().flat_map(|shelf| &shelf.slots) {
            match slot {
                Slot::Empty => counts.missing += 1,
                Slot::Held(_) => counts.waiting += 1,
                Slot::Taken => counts.taken += 1,
            }
        }
        counts
    }

    /// From now on what is not here is not waited for.
    pub fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// Whether [`Self::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    fn slot(&mut self, task: TaskName) -> Option<&mut Slot<T>> {
        let shelf = self.sets.get_mut(&(task.iteration, task.kind))?;
        let position = shelf.position(task.index)?;
        shelf.slots.get_mut(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(index: u32) -> TaskSpec {
        TaskSpec {
            kind: TaskKind::Evaluate,
            iteration: 4,
            index,
            version: 4,
            prompts: vec![index],
            prompt_slot: 0,
            first_seed: 0,
            n_seeds: 1,
        }
    }

    fn name(iteration: u32, index: u32) -> TaskName {
        TaskName { iteration, kind: TaskKind::Evaluate, index }
    }

    #[test]
    fn tasks_are_missing_until_they_wait_and_wait_until_they_are_taken() {
        let mut intake = intake();
        let counts = |missing, waiting, taken| IntakeCounts { missing, waiting, taken };
        assert_eq!(intake.counts(), counts(2, 0, 0));
        intake.hold(name(4, 1), 7);
        assert_eq!(intake.counts(), counts(1, 1, 0));
        let _ = intake.take(name(4, 1));
        assert_eq!(intake.counts(), counts(1, 0, 1));
        intake.forget(TaskKind::Evaluate, 4);
        assert_eq!(intake.counts(), counts(0, 0, 0));
    }

    fn intake() -> Intake<u32> {
        let mut intake = Intake::default();
        intake.want(
            TaskKind::Evaluate,
            4,
            TaskSet { tasks: vec![task(0), task(1)], steps: vec![], outcome_bytes: 10 },
        );
        intake
    }

    #[test]
    fn the_first_outcome_of_a_task_wins() {
        let mut intake = intake();
        assert_eq!(intake.standing(name(4, 1)), TaskStanding::Wanted(task(1), vec![]));
        assert_eq!(intake.take(name(4, 1)), Taken::NotYet);
        assert_eq!(intake.hold(name(4, 1), 1), TaskStanding::Held);
        assert_eq!(intake.hold(name(4, 1), 2), TaskStanding::Held);
        assert_eq!(intake.take(name(4, 1)), Taken::Here(1));
        assert_eq!(intake.hold(name(4, 1), 3), TaskStanding::Held, "taken counts as held");
        assert_eq!(intake.wanted()[0].held, [1]);
    }

    #[test]
    fn wanting_again_keeps_what_is_here() {
        let mut intake = intake();
        intake.hold(name(4, 0), 1);
        intake.want(
            TaskKind::Evaluate,
            4,
            TaskSet { tasks: vec![task(0), task(1)], steps: vec![], outcome_bytes: 10 },
        );
        assert_eq!(intake.take(name(4, 0)), Taken::Here(1));
    }

    #[test]
    fn tasks_of_another_time_or_kind_are_not_wanted() {
        let mut intake = intake();
        let train = TaskName { kind: TaskKind::Train, ..name(4, 0) };
        for other in [name(3, 0), name(4, 2), train] {
            assert_eq!(intake.standing(other), TaskStanding::NotWanted);
            assert_eq!(intake.hold(other, 1), TaskStanding::NotWanted);
        }
        intake.forget(TaskKind::Evaluate, 4);
        assert_eq!(intake.standing(name(4, 0)), TaskStanding::NotWanted);
        assert_eq!(
            intake.hold(name(4, 0), 1),
            TaskStanding::NotWanted,
            "a push that was under way comes too late"
        );
        assert!(intake.wanted().is_empty());
    }

    #[test]
    fn a_stop_ends_the_waiting_but_what_is_here_or_still_comes_can_be_taken() {
        let mut intake = intake();
        intake.hold(name(4, 1), 1);
        intake.stop();
        assert_eq!(intake.take(name(4, 0)), Taken::Stopped);
        assert_eq!(intake.take(name(4, 1)), Taken::Here(1));
        assert_eq!(intake.hold(name(4, 0), 2), TaskStanding::Held);
        assert_eq!(intake.take(name(4, 0)), Taken::Here(2));
    }

    /// The sets that are wanted by their iterations and kinds, and below which index each is open.
    fn open(intake: &Intake<u32>) -> Vec<(u32, TaskKind, u32)> {
        let told = |wanted: &Wanted| {
            let kind = crate::kind_from_wire(wanted.kind()).expect("a kind");
            (wanted.iteration, kind, wanted.open_below.expect("told"))
        };
        intake.wanted().iter().map(told).collect()
    }

    #[test]
    fn tasks_are_opened_in_the_order_of_training_as_far_as_there_is_room() {
        use TaskKind::{Evaluate, Train};
        let sized = |n_tasks: u32, outcome_bytes| {
            let tasks = (0..n_tasks).map(task).collect();
            TaskSet { tasks, steps: vec![], outcome_bytes }
        };
        // Four training tasks of 100 bytes each, then two evaluations of 10, then the next iteration.
        for (outcomes, bytes, expected) in [
            (u64::MAX, u64::MAX, [4, 2, 4]),
            (2, u64::MAX, [2, 0, 0]),
            (u64::MAX, 250, [2, 0, 0]),
            (u64::MAX, 415, [4, 1, 0]),
            (7, u64::MAX, [4, 2, 1]),
            (6, 519, [4, 2, 0]),
            (0, 0, [1, 0, 0]),
        ] {
            let mut intake = Intake::new(HoldLimit { outcomes, bytes });
            intake.want(Train, 4, sized(4, 100));
            intake.want(Evaluate, 4, sized(2, 10));
            intake.want(Train, 5, sized(4, 100));
            let [train, evaluate, next] = expected;
            let sets = [(4, Evaluate, evaluate), (4, Train, train), (5, Train, next)];
            assert_eq!(open(&intake), sets, "{outcomes} outcomes, {bytes} bytes");
            assert_eq!(intake.is_short_of_room(), outcomes < 10 || bytes < 820);
        }
    }

    #[test]
    fn a_rank_wants_its_own_tasks_alone() {
        let mut intake = Intake::of_rank(1, HoldLimit { outcomes: 1, bytes: u64::MAX });
        let set = TaskSet { tasks: vec![task(2), task(3), task(7)], steps: vec![], outcome_bytes: 10 };
        intake.want(TaskKind::Evaluate, 4, set);
        assert_eq!(intake.standing(name(4, 0)), TaskStanding::NotWanted);
        assert_eq!(intake.standing(name(4, 7)), TaskStanding::Wanted(task(7), vec![]));
        let told = |intake: &Intake<u32>| {
            let wanted = &intake.wanted()[0];
            (wanted.rank, wanted.held.clone(), wanted.open_below)
        };
        assert_eq!(told(&intake), (1, vec![], Some(3)));
        intake.hold(name(4, 2), 1);
        assert_eq!(intake.take(name(4, 2)), Taken::Here(1));
        assert_eq!(told(&intake), (1, vec![2], Some(7)));
        intake.hold(name(4, 3), 1);
        intake.take(name(4, 3));
        assert_eq!(told(&intake), (1, vec![2, 3], Some(8)));
    }

    #[test]
    fn what_training_takes_makes_room_and_what_is_here_does_not_count_twice() {
        let mut intake = Intake::new(HoldLimit { outcomes: 1, bytes: u64::MAX });
        let set = TaskSet { tasks: vec![task(0), task(1), task(2)], steps: vec![], outcome_bytes: 10 };
        intake.want(TaskKind::Evaluate, 4, set);
        assert_eq!(open(&intake), [(4, TaskKind::Evaluate, 1)]);
        // Granted by an earlier learner.
        assert_eq!(intake.hold(name(4, 2), 7), TaskStanding::Held);
        assert_eq!(intake.hold(name(4, 0), 7), TaskStanding::Held);
        assert_eq!(intake.holds(), HoldLimit { outcomes: 2, bytes: 20 });
        assert_eq!(open(&intake), [(4, TaskKind::Evaluate, 1)], "nothing is taken");
        intake.take(name(4, 0));
        assert_eq!(open(&intake), [(4, TaskKind::Evaluate, 2)]);
        assert_eq!(intake.holds(), HoldLimit { outcomes: 1, bytes: 10 });
        intake.hold(name(4, 1), 7);
        intake.take(name(4, 1));
        intake.take(name(4, 2));
        assert_eq!(open(&intake), [(4, TaskKind::Evaluate, 3)]);
        assert!(!intake.is_short_of_room());
    }
}
