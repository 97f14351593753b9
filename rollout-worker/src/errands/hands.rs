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

use proto::{TaskId, Work};
use protocol::{
    DELIVERY_PATIENCE, Delivered, ErrandAction, ErrandEvent, Errands, Hand, Leaving, Task, TaskEnd,
    TaskFailure, TaskName, WeightsName, with_causes,
};
use service::{Membership, ServiceError};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::errands::device::{DeviceDied, DeviceThread};
use crate::errands::learner_link::LearnerLink;
use crate::errands::push::push;
use crate::errands::weights::{Sharing, TrainedWeights, WeightsCache};
use crate::metrics::{WorkerMetrics, kind_in_a_word};
use crate::sampling::delivery::Delivery;
use crate::sampling::task::Sampled;
use crate::scoring::scoring_report::score;
use crate::scoring::{Scorer, ScoringError};

/// How long one request for a task waits for one.
const TASK_WAIT: Duration = Duration::from_secs(10);
/// How long the device's thread may take to leave off: it computes to the end of a call of the network.
const DEVICE_PATIENCE: Duration = Duration::from_secs(1);

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
    metrics: WorkerMetrics,
}

/// What makes a worker leave.
#[derive(Clone, Debug)]
pub struct Departure {
    /// Cancelled once it is to leave, whoever says so.
    pub stop: CancellationToken,
    /// Cancelled once its process is asked to end.
    pub shutdown: CancellationToken,
    /// After which time the process is killed then, if that is known.
    pub notice: Option<Duration>,
}

impl Hands {
    /// Hands with nothing to do.
    pub fn new(
        (membership, sharing): (Membership, Sharing),
        device: DeviceThread,
        scorer: Scorer,
        metrics: WorkerMetrics,
    ) -> Self {
        let link = || LearnerLink::new(membership.clone());
        let weights = Mutex::new(WeightsCache::new(link(), metrics.clone(), sharing));
        let link = Mutex::new(link());
        Self { membership, device, scorer, weights, link, metrics }
    }

    /// Task after task until it is to leave, then what is still to be finished.
    ///
    /// # Errors
    /// If the coordinator is lost, or the device's or a scorer's thread has died.
    pub async fn work(self, departure: &Departure) -> anyhow::Result<()> {
        let outcome = self.run_errands(departure).await;
        // Whatever it still draws is of no use.
        let _ = tokio::time::timeout(DEVICE_PATIENCE, self.device.stop()).await;
        outcome
    }

    async fn run_errands(&self, departure: &Departure) -> anyhow::Result<()> {
        let mut errands = Errands::default();
        let (mut sampling, mut finishing): (Doing, Doing) = (None, None);
        let (mut actions, mut outcome) = (errands.begin(), Ok(()));
        let mut standing = self.membership.standing();
        let (mut not_needed, mut is_asked): (Vec<TaskName>, bool) = (Vec::new(), false);
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
            if let Some(task) = not_needed.pop() {
                actions = errands.on(Event::NotNeeded(task), Instant::now());
                continue;
            }
            let (hand, done) = tokio::select! {
                done = come_to_something(&mut sampling) => (Hand::Sampling, done),
                done = come_to_something(&mut finishing) => (Hand::Finishing, done),
                Ok(()) = standing.changed() => {
                    not_needed.clone_from(&standing.borrow_and_update().not_needed);
                    actions = Vec::new();
                    continue;
                }
                // Also where it is leaving already: now there may be less time.
                () = departure.shutdown.cancelled(), if !is_asked => {
                    is_asked = true;
                    (Hand::Sampling, Ok(Event::Leave(self.leaving(departure.notice))))
                }
                () = departure.stop.cancelled(), if !errands.is_leaving() => {
                    (Hand::Sampling, Ok(Event::Leave(self.leaving(None))))
                }
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

    /// How this worker is to leave, which is killed after a notice or not.
    fn leaving(&self, notice: Option<Duration>) -> Leaving {
        let patience = self.membership.standing().borrow().drain.unwrap_or(DELIVERY_PATIENCE);
        Leaving { patience, notice }
    }

    async fn perform(&self, action: Action) -> anyhow::Result<Event> {
        let (hand, doing, start) = (action.hand(), in_a_word(&action), Instant::now());
        let event = self.do_as_told(action).await;
        self.metrics.hand_did(hand, doing, start);
        event
    }

    async fn do_as_told(&self, action: Action) -> anyhow::Result<Event> {
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
            Action::Tell(hand, task, end) => {
                self.tell(task, end).await?;
                Event::Told(hand)
            }
            Action::Abandon => unreachable!("there is nothing to do; this is a bug"),
        })
    }

    async fn fetch(&self, name: WeightsName) -> Event {
        let work = self.membership.begin_work(Work::Waiting);
        Event::Fetched(self.weights.lock().await.get(name, &work).await)
    }

    async fn draw(&self, task: Task, weights: Arc<TrainedWeights>) -> Result<Event, DeviceDied> {
        let work = self.membership.begin_work(Work::Computing);
        self.metrics.draws(&task, weights.name);
        let outcome = self.device.sample(task, weights, Box::new(move || work.progressed())).await?;
        outcome.iter().for_each(|sampled| self.metrics.drew(sampled));
        Ok(Event::Drawn(
            outcome.map_err(|error| TaskFailure { reason: with_causes(&error), blame: error.blame() }),
        ))
    }

    async fn score(&self, sampled: Sampled) -> anyhow::Result<Event> {
        Ok(Event::Scored(match score(&self.scorer, sampled, &self.membership).await {
            Ok(delivery) => Ok(delivery),
            Err(ScoringError::Task(error)) => {
                Err(TaskFailure { reason: with_causes(&error), blame: error.blame() })
            }
            Err(error @ ScoringError::Died(_)) => return Err(error.into()),
        }))
    }

    async fn push(&self, delivery: &Delivery) -> Event {
        let work = self.membership.begin_work(Work::Waiting);
        let delivered = push(&mut *self.link.lock().await, delivery, &work, &self.metrics).await;
        self.count_task(delivery.header.task.as_ref(), delivered.as_ref().ok());
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

    /// A task whose delivery failed is counted as failed when that is told.
    fn count_task(&self, task: Option<&TaskId>, delivered: Option<&Delivered>) {
        let name = task.and_then(|task| TaskName::try_from(task).ok());
        if let (Some(name), Some(delivered)) = (name, delivered) {
            self.metrics.task_ended(
                name,
                match delivered {
                    Delivered::Held => "held",
                    Delivered::NotWanted => "not_wanted",
                },
            );
        }
    }

    async fn tell(&self, task: TaskId, end: TaskEnd) -> Result<(), ServiceError> {
        match end {
            TaskEnd::Held => self.membership.task_held(task).await,
            TaskEnd::GivenBack => {
                tracing::info!("a task is given back: another worker was faster, or there is no time for it");
                if let Ok(name) = TaskName::try_from(&task) {
                    self.metrics.task_ended(name, "given_back");
                }
                self.membership.task_given_back(task).await
            }
            TaskEnd::Failed(TaskFailure { reason, blame }) => {
                match TaskName::try_from(&task) {
                    Ok(name) => {
                        self.metrics.task_ended(name, "failed");
                        tracing::error!("{name} failed: {reason}");
                    }
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

fn in_a_word(action: &Action) -> &'static str {
    match action {
        Action::Ask(_) => "ask",
        Action::Fetch(..) => "fetch",
        Action::Draw(..) => "draw",
        Action::Score(..) => "score",
        Action::Push(..) => "push",
        Action::Tell(..) | Action::Abandon => "tell",
    }
}

fn span(task: TaskName) -> Span {
    let kind = kind_in_a_word(task.kind);
    tracing::info_span!("task", kind, iteration = task.iteration, index = task.index)
}
