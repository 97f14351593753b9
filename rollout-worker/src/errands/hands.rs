//! Does what [`Errands`] decides, from task to task: asks, fetches, draws; scores, pushes, tells.
//!
//! ```text
//! coordinator ── task ──▶ weights ──▶ device thread ──▶ scorers ──▶ push ──▶ learner
//!      ▲                                                             │
//!      └──────────────────────────── held ───────────────────────────┘
//! ```

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use config::TaskKind;
use proto::TaskId;
use protocol::{
    DELIVERY_PATIENCE, Delivered, ErrandAction, ErrandEvent, Errands, Hand, Task, TaskFailure, TaskName,
    WeightsName,
};
use service::{Membership, ServiceError};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::errands::device::{DeviceDied, DeviceThread};
use crate::errands::learner_link::LearnerLink;
use crate::errands::push::push;
use crate::errands::weights::{TrainedWeights, WeightsCache};
use crate::sampling::delivery::Delivery;
use crate::sampling::task::Sampled;
use crate::scoring::scoring_report::score;
use crate::scoring::{Scorer, ScoringError};

/// How long one request for a task waits for one.
const TASK_WAIT: Duration = Duration::from_secs(10);

type Event = ErrandEvent<Arc<TrainedWeights>, Sampled, Delivery>;
type Action = ErrandAction<Arc<TrainedWeights>, Sampled, Delivery>;
/// What a hand does, until it comes to something.
type Doing<'a> = Option<Pin<Box<dyn Future<Output = anyhow::Result<Event>> + Send + 'a>>>;

/// Everything that a worker's hands need. What only one of them uses has a lock because both are parts of one future; nobody
/// ever waits for it.
pub struct Hands {
    membership: Membership,
    device: DeviceThread,
    scorer: Scorer,
    weights: Mutex<WeightsCache>,
    link: Mutex<LearnerLink>,
}

impl Hands {
    /// Hands with nothing to do.
    pub fn new(membership: Membership, device: DeviceThread, scorer: Scorer) -> Self {
        let link = || LearnerLink::new(membership.clone());
        let (weights, link) = (Mutex::new(WeightsCache::new(link())), Mutex::new(link()));
        Self { membership, device, scorer, weights, link }
    }

    /// Task after task until `stop`, then what is still to be finished.
    ///
    /// # Errors
    /// If the coordinator is lost, or the device's or a scorer's thread has died.
    pub async fn work(self, stop: &CancellationToken) -> anyhow::Result<()> {
        let outcome = self.run_errands(stop).await;
        self.device.stop().await;
        outcome
    }

    async fn run_errands(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut errands = Errands::default();
        let (mut sampling, mut finishing): (Doing, Doing) = (None, None);
        let (mut actions, mut outcome) = (errands.begin(), Ok(()));
        loop {
            for action in actions {
                match (action.hand(), action) {
                    (_, Action::Abandon) => sampling = None,
                    (Hand::Sampling, action) => sampling = Some(Box::pin(self.perform(action))),
                    (Hand::Finishing, action) => finishing = Some(Box::pin(self.perform(action))),
                }
            }
            if errands.is_over(Instant::now()) {
                return outcome;
            }
            let (hand, done) = tokio::select! {
                done = come_to_something(&mut sampling) => (Hand::Sampling, done),
                done = come_to_something(&mut finishing) => (Hand::Finishing, done),
                () = stop.cancelled(), if !errands.is_leaving() => (Hand::Sampling, Ok(Event::Leave(self.patience()))),
                () = passed(errands.ends_by()) => {
                    tracing::warn!("a reward or the learner was away too long; what was not delivered will be sampled again");
                    return outcome;
                }
            };
            let event = done.unwrap_or_else(|error| {
                // The first is the cause.
                outcome = std::mem::replace(&mut outcome, Ok(())).and(Err(error));
                Event::Broken(hand)
            });
            actions = errands.on(event, Instant::now());
        }
    }

    /// How long delivering may take when this worker is to leave.
    fn patience(&self) -> Duration {
        self.membership.standing().borrow().drain.unwrap_or(DELIVERY_PATIENCE)
    }

    async fn perform(&self, action: Action) -> anyhow::Result<Event> {
        Ok(match action {
            Action::Ask(finishing) => {
                let finishing: Vec<TaskId> = finishing.into_iter().map(TaskId::from).collect();
                Event::Granted(self.membership.next_task(&finishing, TASK_WAIT).await?)
            }
            Action::Fetch(task, weights) => self.fetch(weights).instrument(span(task)).await,
            Action::Draw(task, weights) => {
                let span = span(task.name);
                self.draw(task, weights).instrument(span).await?
            }
            Action::Score(task, sampled) => self.score(sampled).instrument(span(task)).await?,
            Action::Push(task, delivery) => self.push(&delivery).instrument(span(task)).await,
            Action::Tell(hand, task, outcome) => {
                self.tell(task, outcome).await?;
                Event::Told(hand)
            }
            Action::Abandon => unreachable!("there is nothing to do; this is a bug"),
        })
    }

    async fn fetch(&self, name: WeightsName) -> Event {
        let work = self.membership.begin_work();
        Event::Fetched(self.weights.lock().await.get(name, &work).await)
    }

    async fn draw(&self, task: Task, weights: Arc<TrainedWeights>) -> Result<Event, DeviceDied> {
        let work = self.membership.begin_work();
        let outcome = self.device.sample(task, weights, Box::new(move || work.progressed())).await?;
        Ok(Event::Drawn(
            outcome.map_err(|error| TaskFailure { reason: error.to_string(), blame: error.blame() }),
        ))
    }

    async fn score(&self, sampled: Sampled) -> anyhow::Result<Event> {
        Ok(Event::Scored(match score(&self.scorer, sampled, &self.membership).await {
            Ok(delivery) => Ok(delivery),
            Err(ScoringError::Task(error)) => {
                Err(TaskFailure { reason: error.to_string(), blame: error.blame() })
            }
            Err(error @ ScoringError::Died(_)) => return Err(error.into()),
        }))
    }

    async fn push(&self, delivery: &Delivery) -> Event {
        let work = self.membership.begin_work();
        let delivered = push(&mut *self.link.lock().await, delivery, &work).await;
        match &delivered {
            Ok(Delivered::Held) => {
                let cost = delivery.header.cost.unwrap_or_default();
                tracing::info!(
                    images = cost.images,
                    sampling_seconds = cost.sampling_seconds,
                    reward_seconds = cost.reward_seconds,
                    "task done"
                );
            }
            Ok(Delivered::NotWanted) => tracing::info!("the learner does not want the task any more"),
            Err(_) => {}
        }
        Event::Pushed(delivered)
    }

    async fn tell(&self, task: TaskId, outcome: Result<(), TaskFailure>) -> Result<(), ServiceError> {
        match outcome {
            Ok(()) => self.membership.task_held(task).await,
            Err(TaskFailure { reason, blame }) => {
                match TaskName::try_from(&task) {
                    Ok(name) => tracing::error!("{name} failed: {reason}"),
                    Err(fault) => tracing::error!("a task failed: {reason} ({fault})"),
                }
                self.membership.task_failed(task, &reason, blame).await
            }
        }
    }
}

/// What a hand comes to, which then is free; a free hand comes to nothing.
async fn come_to_something(doing: &mut Doing<'_>) -> anyhow::Result<Event> {
    match doing {
        Some(work) => {
            let event = work.await;
            *doing = None;
            event
        }
        None => pending().await,
    }
}

async fn passed(end: Option<Instant>) {
    match end {
        Some(end) => tokio::time::sleep_until(end.into()).await,
        None => pending().await,
    }
}

fn span(task: TaskName) -> Span {
    let kind = match task.kind {
        TaskKind::Train => "train",
        TaskKind::Evaluate => "evaluate",
        TaskKind::Test => "test",
    };
    tracing::info_span!("task", kind, iteration = task.iteration, index = task.index)
}
