//! What the learner wants from workers, what of it has arrived, and what training has taken.
//!
//! 1. A task's outcome is held at most once; whoever brings it again is told so and nothing changes.
//! 2. Outcomes wait here in any order of arrival and are taken in the order of training.
//! 3. Nothing is kept that is not wanted, so what is wanted bounds the memory.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};

use config::{TaskKind, TaskSpec};
use proto::{TaskId, Wanted};
use tokio::sync::watch;

use crate::outcome::{EvaluatedImages, Trajectories};

/// Tasks of one kind and iteration.
#[derive(Debug)]
pub struct Order {
    /// All of them, by index.
    pub tasks: Vec<TaskSpec>,
    /// Training only: the trained steps, in rising order.
    pub steps: Vec<u32>,
}

/// What a worker brings.
#[derive(Debug)]
pub enum Outcome {
    /// Of a training task.
    Train(Box<Trajectories>),
    /// Of an evaluation task.
    Evaluate(Box<EvaluatedImages>),
}

/// How a task stands with the learner.
#[derive(Debug, PartialEq)]
pub enum Standing {
    /// Wanted and not here yet; with the trained steps.
    Wanted(TaskSpec, Vec<u32>),
    /// Here, or taken already.
    Held,
    /// Not of this time, or not of this run's config.
    NotWanted,
}

/// The learner is told to leave, and what it waits for is not here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped before all tasks of the iteration arrived")]
pub struct Stopped;

/// The place between the network and the training thread.
pub struct Inbox {
    state: Mutex<State>,
    arrived: Condvar,
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    orders: BTreeMap<OrderKey, Shelf>,
    stopping: bool,
}

type OrderKey = (u32, TaskKind);

struct Shelf {
    order: Order,
    slots: Vec<Slot>,
}

enum Slot {
    Empty,
    Held(Outcome),
    Taken,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { state: Mutex::default(), arrived: Condvar::new(), changes: watch::Sender::new(0) }
    }
}

impl Inbox {
    /// Starts wanting the tasks of an order, unless they are wanted already.
    pub fn want(&self, kind: TaskKind, iteration: u32, order: Order) {
        let slots = order.tasks.iter().map(|_| Slot::Empty).collect();
        self.state().orders.entry((iteration, kind)).or_insert(Shelf { order, slots });
        self.changed();
    }

    /// Stops wanting the tasks of one kind and iteration, and drops what is left of them.
    pub fn forget(&self, kind: TaskKind, iteration: u32) {
        self.state().orders.remove(&(iteration, kind));
        self.changed();
    }

    /// How a task stands.
    pub fn standing(&self, id: &TaskId) -> Standing {
        let state = self.state();
        let Some((shelf, index)) = find(&state.orders, id) else { return Standing::NotWanted };
        match &shelf.slots[index] {
            Slot::Empty => Standing::Wanted(shelf.order.tasks[index].clone(), shelf.order.steps.clone()),
            Slot::Held(_) | Slot::Taken => Standing::Held,
        }
    }

    /// Keeps the outcome of a task if it is still wanted and nobody was faster; returns how the task stands then.
    pub fn hold(&self, id: &TaskId, outcome: Outcome) -> Standing {
        let mut state = self.state();
        let Some(key) = order_key(id) else { return Standing::NotWanted };
        let slot = state.orders.get_mut(&key).and_then(|shelf| shelf.slots.get_mut(id.index as usize));
        let Some(slot) = slot else { return Standing::NotWanted };
        if matches!(slot, Slot::Empty) {
            *slot = Slot::Held(outcome);
            drop(state);
            self.changed();
        }
        Standing::Held
    }

    /// Waits for the outcome of a task and takes it.
    ///
    /// # Errors
    /// If the learner is told to leave and the outcome is not here.
    ///
    /// # Panics
    /// If the task is not wanted or was taken before.
    pub fn take(&self, kind: TaskKind, iteration: u32, index: usize) -> Result<Outcome, Stopped> {
        let mut state = self.state();
        loop {
            let shelf = state.orders.get_mut(&(iteration, kind));
            let slot = &mut shelf.expect("only wanted tasks are taken; else this is a bug").slots[index];
            match std::mem::replace(slot, Slot::Taken) {
                Slot::Held(outcome) => return Ok(outcome),
                Slot::Taken => panic!("task {index} of iteration {iteration} is taken twice, this is a bug"),
                Slot::Empty => *slot = Slot::Empty,
            }
            if state.stopping {
                return Err(Stopped);
            }
            state = self.arrived.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// What the coordinator is told: everything wanted, and which of it is here.
    pub fn wanted(&self) -> Vec<Wanted> {
        let state = self.state();
        let wanted = |((iteration, kind), shelf): (&OrderKey, &Shelf)| Wanted {
            kind: wire_kind(*kind).into(),
            iteration: *iteration,
            version: shelf.order.tasks.first().map_or(0, |task| task.version),
            held: (0..)
                .zip(&shelf.slots)
                .filter(|(_, slot)| !matches!(slot, Slot::Empty))
                .map(|(i, _)| i)
                .collect(),
        };
        state.orders.iter().map(wanted).collect()
    }

    /// Makes [`Self::take`] return without waiting from now on.
    pub fn stop(&self) {
        self.state().stopping = true;
        self.changed();
    }

    /// Whether [`Self::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.state().stopping
    }

    /// Changes whenever something is wanted, arrives or is forgotten.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.arrived.notify_all();
        self.changes.send_modify(|count| *count += 1);
    }

    // A std mutex: it is held for look-ups only, never across an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The wire's name of a task kind.
pub fn wire_kind(kind: TaskKind) -> proto::TaskKind {
    match kind {
        TaskKind::Train => proto::TaskKind::Train,
        TaskKind::Evaluate => proto::TaskKind::Evaluate,
        TaskKind::Test => proto::TaskKind::Test,
    }
}

fn order_key(id: &TaskId) -> Option<OrderKey> {
    match id.kind() {
        proto::TaskKind::Train => Some((id.iteration, TaskKind::Train)),
        proto::TaskKind::Evaluate => Some((id.iteration, TaskKind::Evaluate)),
        proto::TaskKind::Test => Some((id.iteration, TaskKind::Test)),
        proto::TaskKind::Unspecified => None,
    }
}

fn find<'a>(orders: &'a BTreeMap<OrderKey, Shelf>, id: &TaskId) -> Option<(&'a Shelf, usize)> {
    let shelf = orders.get(&order_key(id)?)?;
    let index = id.index as usize;
    (index < shelf.slots.len()).then_some((shelf, index))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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

    fn id(iteration: u32, index: u32) -> TaskId {
        TaskId { kind: proto::TaskKind::Evaluate.into(), iteration, index }
    }

    fn outcome(reward: f32) -> Outcome {
        Outcome::Evaluate(Box::new(EvaluatedImages { rewards: vec![reward], ..EvaluatedImages::default() }))
    }

    fn reward(outcome: Outcome) -> f32 {
        let Outcome::Evaluate(images) = outcome else { panic!("an evaluation was held") };
        images.rewards[0]
    }

    fn inbox() -> Inbox {
        let inbox = Inbox::default();
        inbox.want(TaskKind::Evaluate, 4, Order { tasks: vec![task(0), task(1)], steps: vec![] });
        inbox
    }

    #[test]
    fn the_first_outcome_of_a_task_wins() {
        let inbox = inbox();
        assert_eq!(inbox.standing(&id(4, 1)), Standing::Wanted(task(1), vec![]));
        assert_eq!(inbox.hold(&id(4, 1), outcome(1.0)), Standing::Held);
        assert_eq!(inbox.hold(&id(4, 1), outcome(2.0)), Standing::Held);
        assert_eq!(reward(inbox.take(TaskKind::Evaluate, 4, 1).unwrap()), 1.0);
        assert_eq!(inbox.hold(&id(4, 1), outcome(3.0)), Standing::Held, "taken counts as held");
        assert_eq!(inbox.wanted()[0].held, [1]);
    }

    #[test]
    fn tasks_of_another_time_or_kind_are_not_wanted() {
        let inbox = inbox();
        let train = TaskId { kind: proto::TaskKind::Train.into(), ..id(4, 0) };
        for id in [id(3, 0), id(4, 2), train, TaskId::default()] {
            assert_eq!(inbox.standing(&id), Standing::NotWanted);
            assert_eq!(inbox.hold(&id, outcome(1.0)), Standing::NotWanted);
        }
        inbox.forget(TaskKind::Evaluate, 4);
        assert_eq!(inbox.standing(&id(4, 0)), Standing::NotWanted);
        assert!(inbox.wanted().is_empty());
    }

    #[test]
    fn taking_waits_for_the_outcome() {
        let inbox = Arc::new(inbox());
        let taker = std::thread::spawn({
            let inbox = inbox.clone();
            move || inbox.take(TaskKind::Evaluate, 4, 0).map(reward)
        });
        inbox.hold(&id(4, 1), outcome(1.0));
        inbox.hold(&id(4, 0), outcome(5.0));
        assert_eq!(taker.join().unwrap(), Ok(5.0));
    }

    #[test]
    fn a_stop_ends_the_waiting_but_what_is_here_can_be_taken() {
        let inbox = inbox();
        inbox.hold(&id(4, 1), outcome(1.0));
        inbox.stop();
        assert!(inbox.take(TaskKind::Evaluate, 4, 0).is_err());
        assert!(inbox.take(TaskKind::Evaluate, 4, 1).is_ok());
    }
}
