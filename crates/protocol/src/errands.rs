//! A worker's errands: its one hand samples a task, the other scores and delivers what was sampled before.
//!
//! ```text
//! sampling:   Free ──▶ Asking ──▶ Fetching ──▶ Drawing ──▶ Free, and what was drawn waits for the other hand
//!              ▲          └─ nothing ─┐ └─ failed ─┐ └─ failed ─▶ Telling ─┐      (likewise a task that makes no sense)
//!              └──────────────────────┴────────────┴─────────────────────┘
//!             what is fetched for, drawn, or drawn and waits may be given back: ─▶ Telling
//! finishing:  Free ──▶ Scoring ──▶ Pushing ──▶ Telling ──▶ Free
//! ```
//!
//! 1. While one task is scored and pushed the next is sampled, so that the device waits neither for a reward nor for a socket.
//! 2. A task is asked for only when there is room for its outcome: one is sampled, one finished, and nothing piles up.
//! 3. However a task ends, the coordinator is told, or the worker leaves.
//! 4. A worker that is to leave asks for nothing more and fetches nothing more; what it draws and finishes it delivers, unless
//!    that takes too long.
//! 5. What another worker was faster with is dropped, unless it is being delivered already.
//! 6. A worker that is killed at a known time gives back what it cannot finish before, at once, and is gone before then.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use config::TaskKind;
use proto::{Blame, TaskId};

use crate::{Delivered, PushError, RecentTimes, Task, TaskName, WeightsError, WeightsName, with_causes};

/// How long a worker that leaves tries to deliver what it drew before, where the coordinator does not say it.
pub const DELIVERY_PATIENCE: Duration = Duration::from_secs(60);
/// Of a notice, what is left for saying goodbye and for the process to end; half of a notice that is shorter than twice that.
const LAST_WORDS: Duration = Duration::from_secs(4);

/// One of the two things that a worker does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hand {
    /// Asks for tasks, fetches weights, draws.
    Sampling,
    /// Scores and pushes.
    Finishing,
}

/// Why a task has no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFailure {
    /// What happened.
    pub reason: String,
    /// Whose fault it is.
    pub blame: Blame,
}

/// How a task ended for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskEnd {
    /// The learner holds it, or wants it no more.
    Held,
    /// There is no outcome, by nobody's fault.
    GivenBack,
    /// There is none, and why.
    Failed(TaskFailure),
}

/// How a worker is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// How long it may try to deliver once it draws nothing any more.
    pub patience: Duration,
    /// After which time it is killed, if that is known.
    pub notice: Option<Duration>,
}

/// What a hand has come to, with weights `W`, images `S` and deliveries `D`.
#[derive(Debug)]
pub enum ErrandEvent<W, S, D> {
    /// The coordinator answered; nothing if no task became free for a while.
    Granted(Option<proto::Task>),
    /// Weights came, or will not.
    Fetched(Result<W, WeightsError>),
    /// The images of a task are drawn.
    Drawn(Result<S, TaskFailure>),
    /// Images are scored.
    Scored(Result<D, TaskFailure>),
    /// The learner answered.
    Pushed(Result<Delivered, PushError>),
    /// The coordinator heard how a task ended.
    Told(Hand),
    /// A hand can do nothing more in this process.
    Broken(Hand),
    /// Nobody needs the outcome of a task any more.
    NotNeeded(TaskName),
    /// The worker is to leave.
    Leave(Leaving),
}

/// What a hand is to do next.
#[derive(Debug, PartialEq)]
pub enum ErrandAction<W, S, D> {
    /// Sampling: ask for a task beside these, which are being finished.
    Ask(Vec<TaskName>),
    /// Sampling: fetch weights for the sake of a task.
    Fetch(TaskName, WeightsName),
    /// Sampling: draw a task's images.
    Draw(Task, W),
    /// Finishing: score images.
    Score(TaskName, S),
    /// Finishing: push a delivery.
    Push(TaskName, D),
    /// Tell the coordinator how a task ended.
    Tell(Hand, TaskId, TaskEnd),
    /// Sampling: drop what is waited for or drawn.
    Abandon,
}

impl<W, S, D> ErrandAction<W, S, D> {
    /// Whose action it is.
    pub fn hand(&self) -> Hand {
        match self {
            Self::Ask(_) | Self::Fetch(..) | Self::Draw(..) | Self::Abandon => Hand::Sampling,
            Self::Score(..) | Self::Push(..) => Hand::Finishing,
            Self::Tell(hand, ..) => *hand,
        }
    }
}

/// What the sampling hand does.
#[derive(Debug)]
enum Sampling {
    Free,
    Asking,
    Fetching(Box<Task>),
    Drawing(TaskName),
    Telling,
}

/// What a worker does, from task to task.
#[derive(Debug)]
pub struct Errands<S> {
    sampling: Sampling,
    drawn: Option<(TaskName, S)>,
    finishing: Option<TaskName>,
    is_leaving: bool,
    is_broken: bool,
    patience: Duration,
    ends_by: Option<Instant>,
    /// When each task in hand was granted.
    begun: BTreeMap<TaskName, Instant>,
    /// How long tasks took from then until they were delivered.
    times: BTreeMap<TaskKind, RecentTimes>,
}

impl<S> Default for Errands<S> {
    fn default() -> Self {
        let sampling = Sampling::Free;
        let patience = DELIVERY_PATIENCE;
        Self {
            sampling,
            drawn: None,
            finishing: None,
            is_leaving: false,
            is_broken: false,
            patience,
            ends_by: None,
            begun: BTreeMap::new(),
            times: BTreeMap::new(),
        }
    }
}

impl<S> Errands<S> {
    /// What to do first.
    pub fn begin<W, D>(&mut self) -> Vec<ErrandAction<W, S, D>> {
        self.go_on()
    }

    /// Decides what follows from an event.
    ///
    /// # Panics
    /// If a hand reports what it was not told to do.
    pub fn on<W, D>(&mut self, event: ErrandEvent<W, S, D>, now: Instant) -> Vec<ErrandAction<W, S, D>> {
        let mut actions = self.react(event, now);
        actions.extend(self.go_on());
        let in_hand = self.in_hand();
        self.begun.retain(|task, _| in_hand.contains(task));
        if self.is_leaving && matches!(self.sampling, Sampling::Free) {
            self.ends_by.get_or_insert(now + self.patience);
        }
        actions
    }

    fn react<W, D>(&mut self, event: ErrandEvent<W, S, D>, now: Instant) -> Vec<ErrandAction<W, S, D>> {
        let action = match event {
            ErrandEvent::Granted(task) => self.granted(task, now),
            ErrandEvent::Fetched(weights) => Some(self.fetched(weights)),
            ErrandEvent::Drawn(outcome) => self.drawn(outcome),
            ErrandEvent::Scored(outcome) => Some(match outcome {
                Ok(delivery) => ErrandAction::Push(self.finished(), delivery),
                Err(failure) => self.tell_finished(TaskEnd::Failed(failure)),
            }),
            ErrandEvent::Pushed(outcome) => Some(self.pushed(outcome, now)),
            ErrandEvent::Told(hand) => {
                match hand {
                    Hand::Sampling => self.sampling = Sampling::Free,
                    Hand::Finishing => self.finishing = None,
                }
                None
            }
            ErrandEvent::Broken(hand) => return self.broken(hand),
            ErrandEvent::NotNeeded(task) => return self.drop_task(task),
            ErrandEvent::Leave(leaving) => return self.leave_with(leaving, now),
        };
        Vec::from_iter(action)
    }

    /// Whether the worker was told to leave, or cannot go on.
    pub fn is_leaving(&self) -> bool {
        self.is_leaving
    }

    /// Until when a worker that leaves may try to deliver; where it is not killed at a known time, nothing as long as it draws
    /// or tells how a task ended.
    pub fn ends_by(&self) -> Option<Instant> {
        self.ends_by
    }

    /// Whether there is nothing more to do: all is delivered, or cannot be, or it takes too long.
    pub fn is_over(&self, now: Instant) -> bool {
        let is_delivered =
            matches!(self.sampling, Sampling::Free) && self.drawn.is_none() && self.finishing.is_none();
        self.is_leaving && (is_delivered || self.is_broken || self.ends_by.is_some_and(|end| now >= end))
    }

    /// What hands that are free do next.
    fn go_on<W, D>(&mut self) -> Vec<ErrandAction<W, S, D>> {
        let mut actions = Vec::new();
        if self.finishing.is_none()
            && let Some((task, images)) = self.drawn.take()
        {
            self.finishing = Some(task);
            actions.push(ErrandAction::Score(task, images));
        }
        if matches!(self.sampling, Sampling::Free) && self.drawn.is_none() && !self.is_leaving {
            self.sampling = Sampling::Asking;
            actions.push(ErrandAction::Ask(self.finishing.into_iter().collect()));
        }
        actions
    }

    fn granted<W, D>(&mut self, task: Option<proto::Task>, now: Instant) -> Option<ErrandAction<W, S, D>> {
        assert!(matches!(self.sampling, Sampling::Asking), "granted unasked; this is a bug");
        self.sampling = Sampling::Free;
        let task = task?;
        let id = task.id?;
        match Task::try_from(task) {
            Ok(task) => {
                let fetch = ErrandAction::Fetch(task.name, task.weights());
                self.begun.insert(task.name, now);
                self.sampling = Sampling::Fetching(Box::new(task));
                Some(fetch)
            }
            Err(fault) => {
                let failure = TaskFailure { reason: format!("malformed task: {fault}"), blame: Blame::Task };
                Some(self.tell_sampled(id, failure))
            }
        }
    }

    fn fetched<W, D>(&mut self, weights: Result<W, WeightsError>) -> ErrandAction<W, S, D> {
        let Sampling::Fetching(task) = std::mem::replace(&mut self.sampling, Sampling::Free) else {
            panic!("weights came unasked; this is a bug")
        };
        match weights {
            Ok(weights) => {
                self.sampling = Sampling::Drawing(task.name);
                ErrandAction::Draw(*task, weights)
            }
            Err(error) => {
                let failure = TaskFailure { reason: with_causes(&error), blame: Blame::Worker };
                self.tell_sampled(task.name.into(), failure)
            }
        }
    }

    fn drawn<W, D>(&mut self, outcome: Result<S, TaskFailure>) -> Option<ErrandAction<W, S, D>> {
        let Sampling::Drawing(task) = self.sampling else { panic!("images came unasked; this is a bug") };
        self.sampling = Sampling::Free;
        match outcome {
            Ok(images) => {
                self.drawn = Some((task, images));
                None
            }
            Err(failure) => Some(self.tell_sampled(task.into(), failure)),
        }
    }

    fn pushed<W, D>(&mut self, outcome: Result<Delivered, PushError>, now: Instant) -> ErrandAction<W, S, D> {
        let task = self.finished();
        let end = match outcome {
            // To the coordinator the one is as good as the other: nobody need run the task again.
            Ok(Delivered::Held | Delivered::NotWanted) => {
                if let Some(begun) = self.begun.get(&task) {
                    let took = now.saturating_duration_since(*begun);
                    self.times.entry(task.kind).or_default().note(took);
                }
                TaskEnd::Held
            }
            Err(error) => TaskEnd::Failed(TaskFailure { reason: with_causes(&error), blame: error.blame() }),
        };
        self.tell_finished(end)
    }

    fn broken<W, D>(&mut self, hand: Hand) -> Vec<ErrandAction<W, S, D>> {
        match hand {
            Hand::Sampling => self.sampling = Sampling::Free,
            // Whatever is drawn could not be delivered.
            Hand::Finishing => (self.drawn, self.finishing, self.is_broken) = (None, None, true),
        }
        self.leave()
    }

    fn leave<W, D>(&mut self) -> Vec<ErrandAction<W, S, D>> {
        self.is_leaving = true;
        match &self.sampling {
            // Its goodbye gives the task back as soon, unless there is something else to be finished before.
            Sampling::Fetching(task) if self.drawn.is_some() || self.finishing.is_some() => {
                let task = task.name;
                self.give_back_sampled(task)
            }
            Sampling::Asking | Sampling::Fetching(_) => {
                self.sampling = Sampling::Free;
                vec![ErrandAction::Abandon]
            }
            Sampling::Free | Sampling::Drawing(_) | Sampling::Telling => Vec::new(),
        }
    }

    fn leave_with<W, D>(
        &mut self,
        Leaving { patience, notice }: Leaving,
        now: Instant,
    ) -> Vec<ErrandAction<W, S, D>> {
        self.patience = patience;
        if let Some(notice) = notice {
            self.ends_by = Some(now + notice - LAST_WORDS.min(notice / 2));
        }
        let mut actions = self.leave();
        if let Sampling::Drawing(task) = self.sampling
            && self.comes_too_late(task)
        {
            actions.extend(self.give_back_sampled(task));
        }
        actions
    }

    /// Whether a task that is drawn would, as tasks of its kind have gone lately, not be delivered before the worker is
    /// killed. The longest of them counts, since what is begun in vain could run elsewhere meanwhile.
    fn comes_too_late(&self, task: TaskName) -> bool {
        let longest = self.times.get(&task.kind).and_then(RecentTimes::longest);
        let (Some(end), Some(longest), Some(begun)) = (self.ends_by, longest, self.begun.get(&task)) else {
            return false;
        };
        *begun + longest > end
    }

    fn drop_task<W, D>(&mut self, task: TaskName) -> Vec<ErrandAction<W, S, D>> {
        match &self.sampling {
            Sampling::Fetching(own) if own.name == task => self.give_back_sampled(task),
            Sampling::Drawing(own) if *own == task => self.give_back_sampled(task),
            // What waits for the other hand keeps this one from asking.
            Sampling::Free if self.drawn.as_ref().is_some_and(|(own, _)| *own == task) => {
                self.drawn = None;
                self.sampling = Sampling::Telling;
                vec![ErrandAction::Tell(Hand::Sampling, task.into(), TaskEnd::GivenBack)]
            }
            _ => Vec::new(),
        }
    }

    fn give_back_sampled<W, D>(&mut self, task: TaskName) -> Vec<ErrandAction<W, S, D>> {
        self.sampling = Sampling::Telling;
        vec![ErrandAction::Abandon, ErrandAction::Tell(Hand::Sampling, task.into(), TaskEnd::GivenBack)]
    }

    /// Tasks that are not told of yet.
    fn in_hand(&self) -> Vec<TaskName> {
        let sampled = match &self.sampling {
            Sampling::Fetching(task) => Some(task.name),
            Sampling::Drawing(task) => Some(*task),
            Sampling::Free | Sampling::Asking | Sampling::Telling => None,
        };
        let drawn = self.drawn.as_ref().map(|(task, _)| *task);
        [sampled, drawn, self.finishing].into_iter().flatten().collect()
    }

    fn tell_sampled<W, D>(&mut self, task: TaskId, failure: TaskFailure) -> ErrandAction<W, S, D> {
        self.sampling = Sampling::Telling;
        ErrandAction::Tell(Hand::Sampling, task, TaskEnd::Failed(failure))
    }

    fn tell_finished<W, D>(&self, end: TaskEnd) -> ErrandAction<W, S, D> {
        ErrandAction::Tell(Hand::Finishing, self.finished().into(), end)
    }

    fn finished(&self) -> TaskName {
        self.finishing.expect("only what is being finished is scored and pushed; else this is a bug")
    }
}

#[cfg(test)]
mod tests;
