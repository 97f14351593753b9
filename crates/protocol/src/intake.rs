//! What the learner wants from workers, what of it has arrived, and what training has taken.
//!
//! 1. A task's outcome is held at most once; whoever brings it again is told so and nothing changes.
//! 2. Outcomes wait here in any order of arrival and are taken in the order of training.
//! 3. Nothing is kept that is not wanted, so what is wanted bounds the memory.

use crate::{TaskName, kind_to_wire};
use config::{TaskKind, TaskSpec};
use proto::Wanted;
use std::collections::BTreeMap;

/// Tasks of one kind and iteration.
#[derive(Debug)]
pub struct TaskSet {
    /// All of them, by index.
    pub tasks: Vec<TaskSpec>,
    /// Training only: the trained steps, in rising order.
    pub steps: Vec<u32>,
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

/// The place where outcomes `T` wait for training.
#[derive(Debug)]
pub struct Intake<T> {
    sets: BTreeMap<SetName, Shelf<T>>,
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
        Self { sets: BTreeMap::new(), is_stopping: false }
    }
}

impl<T> Intake<T> {
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
        let index = task.index as usize;
        match shelf.slots.get(index) {
            Some(Slot::Empty) => {
                TaskStanding::Wanted(shelf.set.tasks[index].clone(), shelf.set.steps.clone())
            }
            Some(Slot::Held(_) | Slot::Taken) => TaskStanding::Held,
            None => TaskStanding::NotWanted,
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

    /// What the coordinator is told: everything wanted, and which of it is here.
    pub fn wanted(&self) -> Vec<Wanted> {
        let wanted = |((iteration, kind), shelf): (&SetName, &Shelf<T>)| Wanted {
            kind: kind_to_wire(*kind).into(),
            iteration: *iteration,
            version: shelf.set.tasks.first().map_or(0, |task| task.version),
            rank: 0,
            held: (0..)
                .zip(&shelf.slots)
                .filter(|(_, slot)| !matches!(slot, Slot::Empty))
                .map(|(index, _)| index)
                .collect(),
        };
        self.sets.iter().map(wanted).collect()
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
        self.sets.get_mut(&(task.iteration, task.kind))?.slots.get_mut(task.index as usize)
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

    fn intake() -> Intake<u32> {
        let mut intake = Intake::default();
        intake.want(TaskKind::Evaluate, 4, TaskSet { tasks: vec![task(0), task(1)], steps: vec![] });
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
        intake.want(TaskKind::Evaluate, 4, TaskSet { tasks: vec![task(0), task(1)], steps: vec![] });
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
}
