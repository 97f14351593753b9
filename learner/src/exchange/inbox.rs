//! The place between the network and the training thread: an intake that threads wait at.

use std::sync::{Condvar, Mutex, MutexGuard};

use config::TaskKind;
use proto::Wanted;
use protocol::{HoldLimit, Intake, IntakeCounts, Taken, TaskName, TaskSet, TaskStanding};
use tokio::sync::watch;

use crate::exchange::outcome::{EvaluatedImages, Trajectories};

/// What a worker brings.
#[derive(Debug)]
pub enum Outcome {
    /// Of a training task.
    Train(Box<Trajectories>),
    /// Of an evaluation task.
    Evaluate(Box<EvaluatedImages>),
}

/// The learner is told to leave, and what it waits for is not here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped before all tasks of the iteration arrived")]
pub struct Stopped;

/// What is wanted and what has arrived, shared between the service and the training thread.
pub struct Inbox {
    intake: Mutex<Intake<Outcome>>,
    arrived: Condvar,
    changes: watch::Sender<u64>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new(HoldLimit::NONE)
    }
}

impl Inbox {
    /// A place with room for so much, of the first rank.
    pub fn new(limit: HoldLimit) -> Self {
        Self::of_rank(0, limit)
    }

    /// A place with room for so much.
    pub fn of_rank(rank: u32, limit: HoldLimit) -> Self {
        let intake = Mutex::new(Intake::of_rank(rank, limit));
        Self { intake, arrived: Condvar::new(), changes: watch::Sender::new(0) }
    }

    /// Starts wanting the tasks of a set, unless they are wanted already.
    pub fn want(&self, kind: TaskKind, iteration: u32, set: TaskSet) {
        self.intake().want(kind, iteration, set);
        self.changed();
    }

    /// Stops wanting the tasks of one kind and iteration, and drops what is left of them.
    pub fn forget(&self, kind: TaskKind, iteration: u32) {
        self.intake().forget(kind, iteration);
        self.changed();
    }

    /// How a task stands.
    pub fn standing(&self, task: TaskName) -> TaskStanding {
        self.intake().standing(task)
    }

    /// Keeps the outcome of a task if it is still wanted and nobody was faster; returns how the task stands then.
    pub fn hold(&self, task: TaskName, outcome: Outcome) -> TaskStanding {
        let standing = self.intake().hold(task, outcome);
        if standing == TaskStanding::Held {
            self.changed();
        }
        standing
    }

    /// Waits for the outcome of a task and takes it.
    ///
    /// # Errors
    /// If the learner is told to leave and the outcome is not here.
    ///
    /// # Panics
    /// If the task is not wanted or was taken before.
    pub fn take(&self, kind: TaskKind, iteration: u32, index: usize) -> Result<Outcome, Stopped> {
        let task = TaskName { iteration, kind, index: index as u32 };
        let mut intake = self.intake();
        loop {
            match intake.take(task) {
                Taken::Here(outcome) => {
                    // There is room for another, which workers hear of at once.
                    let is_short_of_room = intake.is_short_of_room();
                    drop(intake);
                    if is_short_of_room {
                        self.changed();
                    }
                    return Ok(outcome);
                }
                Taken::Stopped => return Err(Stopped),
                Taken::NotYet => {}
            }
            intake = self.arrived.wait(intake).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// What the coordinator is told: everything wanted, and which of it is here.
    pub fn wanted(&self) -> Vec<Wanted> {
        self.intake().wanted()
    }

    /// How many wanted tasks are where.
    pub fn counts(&self) -> IntakeCounts {
        self.intake().counts()
    }

    /// Makes [`Self::take`] return without waiting from now on.
    pub fn stop(&self) {
        self.intake().stop();
        self.changed();
    }

    /// Whether [`Self::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.intake().is_stopping()
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
    fn intake(&self) -> MutexGuard<'_, Intake<Outcome>> {
        self.intake.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use config::TaskSpec;

    use super::*;

    fn name(index: u32) -> TaskName {
        TaskName { iteration: 4, kind: TaskKind::Evaluate, index }
    }

    fn outcome(reward: f32) -> Outcome {
        Outcome::Evaluate(Box::new(EvaluatedImages { rewards: vec![reward], ..EvaluatedImages::default() }))
    }

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

    fn inbox() -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::default());
        inbox.want(
            TaskKind::Evaluate,
            4,
            TaskSet { tasks: vec![task(0), task(1)], steps: vec![], outcome_bytes: 0 },
        );
        inbox
    }

    /// Takes the first task on a thread of its own.
    fn taken_elsewhere(inbox: &Arc<Inbox>) -> std::thread::JoinHandle<Result<Outcome, Stopped>> {
        let inbox = inbox.clone();
        std::thread::spawn(move || inbox.take(TaskKind::Evaluate, 4, 0))
    }

    #[test]
    fn taking_waits_for_the_outcome() {
        let inbox = inbox();
        let taker = taken_elsewhere(&inbox);
        inbox.hold(name(1), outcome(1.0));
        inbox.hold(name(0), outcome(5.0));
        let Ok(Outcome::Evaluate(images)) = taker.join().unwrap() else { panic!("an evaluation was held") };
        assert_eq!(images.rewards, [5.0]);
    }

    #[test]
    fn what_is_taken_where_room_is_short_is_a_change() {
        for (outcomes, is_change) in [(1, true), (2, false)] {
            let inbox = Inbox::new(HoldLimit { outcomes, bytes: u64::MAX });
            let tasks = vec![task(0), task(1), task(2)];
            inbox.want(TaskKind::Evaluate, 4, TaskSet { tasks, steps: vec![], outcome_bytes: 1 });
            inbox.hold(name(0), outcome(1.0));
            let changes = inbox.changes();
            inbox.take(TaskKind::Evaluate, 4, 0).unwrap();
            assert_eq!(changes.has_changed().unwrap(), is_change, "room for {outcomes}");
        }
    }

    #[test]
    fn a_stop_ends_the_waiting() {
        let inbox = inbox();
        let taker = taken_elsewhere(&inbox);
        inbox.stop();
        assert_eq!(taker.join().unwrap().unwrap_err(), Stopped);
    }
}
