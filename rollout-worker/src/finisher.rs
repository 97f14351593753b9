//! The second half of every task: score, push, tell the coordinator; the device samples the next one meanwhile.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::{Delivered, PushError, TaskName};
use service::{Membership, ServiceError, WorkInHand};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{Instrument, Span};

use crate::delivery::Delivery;
use crate::learner_link::LearnerLink;
use crate::push::push;
use crate::scoring::{Listener, Scorer, ScoringError};
use crate::task::Sampled;

/// How often a task that is being scored counts as getting on.
const PROGRESS: Duration = Duration::from_secs(5);
/// How long scorers may work on a task without a word before it no longer does: no device takes as long for its images.
const LONGEST_SILENCE: Duration = Duration::from_secs(3600);

/// Takes sampled tasks and finishes them one after another.
pub struct Finisher {
    tasks: mpsc::Sender<Accepted>,
    unfinished: watch::Sender<Vec<TaskName>>,
    work: JoinHandle<anyhow::Result<()>>,
}

/// Room for one more task.
pub struct Place<'a> {
    permit: mpsc::Permit<'a, Accepted>,
    unfinished: &'a watch::Sender<Vec<TaskName>>,
}

struct Accepted {
    sampled: Sampled,
    span: Span,
}

/// Tells the coordinator how scoring goes on.
struct ScoringReport {
    membership: Membership,
    last_word: Mutex<Instant>,
}

impl ScoringReport {
    fn new(membership: Membership) -> Self {
        Self { membership, last_word: Mutex::new(Instant::now()) }
    }

    fn hear(&self) {
        *self.last_word.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silence(&self) -> Duration {
        self.last_word.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl Listener for ScoringReport {
    fn held(&self, scorer: &str, problem: &str) {
        self.hear();
        self.membership
            .troubled(scorer, format!("tasks wait for reward `{scorer}`, which is asked again: {problem}"));
    }

    fn released(&self, scorer: &str) {
        self.hear();
        self.membership.relieved(scorer);
    }
}

/// What finishing needs.
struct Work {
    scorer: Scorer,
    link: LearnerLink,
    membership: Membership,
}

impl Finisher {
    /// Starts with nothing to do.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(scorer: Scorer, membership: Membership) -> Self {
        // Room for the task that is sampled while another is finished. There is a place again, and the worker asks for
        // another task, when that one is taken up: so one task is finished, and one sampled or waiting, never more.
        let (tasks, mut accepted) = mpsc::channel::<Accepted>(1);
        let unfinished = watch::Sender::new(Vec::new());
        let finished = unfinished.clone();
        let link = LearnerLink::new(membership.clone());
        let mut work = Work { scorer, link, membership };
        let work = tokio::spawn(async move {
            while let Some(Accepted { sampled, span }) = accepted.recv().await {
                let task = sampled.task.name;
                let outcome = work.finish(sampled).instrument(span).await;
                finished
                    .send_modify(|unfinished: &mut Vec<TaskName>| unfinished.retain(|other| *other != task));
                outcome?;
            }
            Ok(())
        });
        Self { tasks, unfinished, work }
    }

    /// Waits for room; `None` if finishing has failed, which [`Self::close`] explains.
    pub async fn place(&self) -> Option<Place<'_>> {
        let permit = self.tasks.reserve().await.ok()?;
        Some(Place { permit, unfinished: &self.unfinished })
    }

    /// Tasks that were accepted and are not finished yet.
    pub fn unfinished(&self) -> Vec<TaskName> {
        self.unfinished.borrow().clone()
    }

    /// Finishes everything that was accepted.
    ///
    /// # Errors
    /// If the coordinator is lost or a scorer has died.
    pub async fn close(self) -> anyhow::Result<()> {
        drop(self.tasks);
        self.work.await?
    }
}

impl Place<'_> {
    /// Hands over a sampled task.
    pub fn accept(self, sampled: Sampled) {
        self.unfinished.send_modify(|unfinished| unfinished.push(sampled.task.name));
        self.permit.send(Accepted { sampled, span: Span::current() });
    }
}

impl Work {
    async fn finish(&mut self, sampled: Sampled) -> anyhow::Result<()> {
        let id = sampled.task.name.into();
        let work = self.membership.begin_work();
        let delivery = match self.score(sampled, &work).await {
            Ok(delivery) => delivery,
            Err(ScoringError::Task(error)) => {
                tracing::error!("cannot score: {error}");
                let poisonous = error.is_the_tasks_fault();
                return Ok(self.membership.task_failed(id, &error.to_string(), poisonous).await?);
            }
            Err(error @ ScoringError::Died(_)) => return Err(error.into()),
        };
        let delivered = push(&mut self.link, &delivery, &work).await;
        Ok(self.tell(id, delivered, &delivery).await?)
    }

    /// Scores. Meanwhile the worker does not hang, unless nothing is heard of it for very long: a request to a server has a
    /// deadline of its own, and every attempt while a task is held for a server that is away is heard.
    async fn score(&self, sampled: Sampled, work: &WorkInHand) -> Result<Delivery, ScoringError> {
        let report = Arc::new(ScoringReport::new(self.membership.clone()));
        let mut scoring = std::pin::pin!(self.scorer.complete(sampled, report.clone()));
        let mut ticks = tokio::time::interval(PROGRESS);
        loop {
            tokio::select! {
                outcome = &mut scoring => return outcome,
                _ = ticks.tick(), if report.silence() < LONGEST_SILENCE => work.progressed(),
            }
        }
    }

    async fn tell(
        &self,
        id: proto::TaskId,
        delivered: Result<Delivered, PushError>,
        delivery: &Delivery,
    ) -> Result<(), ServiceError> {
        match delivered {
            Ok(Delivered::Held) => {
                let cost = delivery.header.cost.unwrap_or_default();
                tracing::info!(
                    images = cost.images,
                    sampling_seconds = cost.sampling_seconds,
                    reward_seconds = cost.reward_seconds,
                    "task done"
                );
                self.membership.task_held(id).await
            }
            Ok(Delivered::NotWanted) => {
                // To the coordinator this is as good as held: nobody need run the task again.
                tracing::info!("the learner does not want the task any more");
                self.membership.task_held(id).await
            }
            Err(error) => {
                tracing::error!("{error}");
                self.membership.task_failed(id, &error.to_string(), error.is_poisonous()).await
            }
        }
    }
}
