//! A worker's life: join the run, then task after task until the run ends or somebody says stop.
//!
//! ```text
//! coordinator ── task ──▶ weights ──▶ device thread ──▶ finisher: score, push ──▶ learner
//!      ▲                                                    │
//!      └───────────────────────── held ─────────────────────┘
//! ```
//!
//! 1. While one task is scored and pushed the device samples the next, so that it waits neither for a reward nor for a
//!    socket. A reward that does not answer holds its task, and with it, when the next is sampled, the worker.
//! 2. A task is asked for only when there is room for its outcome: one is sampled, one finished, and nothing piles up.
//! 3. However a task ends, the coordinator hears of it, or of this worker's end.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use config::{ComputeDevice, PromptSplit, RunConfig, TaskKind};
use models::{LoadOptions, ModelError};
use proto::heartbeat_reply::Order;
use proto::{JoinReply, Role};
use protocol::Task;
use service::{Hub, JoinDetails, Membership, PromptCopies, WorkInHand};
use tch::Device;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::bad_input::BadInput;
use crate::device::DeviceThread;
use crate::embedding_cache::{EmbeddingCache, EmbeddingSettings};
use crate::finisher::Finisher;
use crate::guided_model::GuidedModel;
use crate::learner_link::LearnerLink;
use crate::scoring::Scorer;
use crate::task::{Sampled, Sampler, TaskError};
use crate::weights::WeightsCache;

/// How long one request for a task waits for one.
const TASK_WAIT: Duration = Duration::from_secs(10);
/// How long a worker that was told to leave goes on trying to deliver.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// What a worker is told when it is started.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// `http://host:port` of the coordinator.
    pub coordinator: String,
    /// Name kept over restarts.
    pub member_id: String,
    /// In place of the run config's device.
    pub device: Option<ComputeDevice>,
    /// How long an absent coordinator is waited for.
    pub grace: Duration,
    /// Where models are found by name.
    pub hub: Hub,
}

/// Works for the run until `shutdown`, the coordinator's order to drain, or its loss.
///
/// # Errors
/// [`BadInput`] if model or rewards cannot be used, [`service::ServiceError`] if the coordinator refuses the worker or
/// is lost, anything else if this process is broken.
pub async fn run(options: ServeOptions, shutdown: CancellationToken) -> anyhow::Result<()> {
    let details = JoinDetails {
        role: Role::RolloutWorker,
        member_id: options.member_id,
        address: String::new(),
        grace: options.grace,
    };
    let joined = until(&shutdown, Membership::join(&options.coordinator, details)).await;
    let Some((membership, reply)) = joined.transpose()? else { return Ok(()) };
    let started = Worker::start(&reply, options.device, options.hub, membership.clone());
    // Opening a model and embedding its prompts may take long; nothing is lost if it is not waited for.
    let outcome = match until(&shutdown, started).await {
        Some(Ok(worker)) => tokio::select! {
            outcome = worker.work(shutdown) => outcome,
            error = membership.lost() => Err(error.into()),
        },
        Some(Err(error)) => Err(error),
        None => Ok(()),
    };
    membership.leave().await;
    outcome
}

/// Everything that lasts from task to task.
struct Worker {
    membership: Membership,
    weights: WeightsCache,
    device: DeviceThread,
    finisher: Finisher,
}

impl Worker {
    async fn start(
        reply: &JoinReply,
        device: Option<ComputeDevice>,
        hub: Hub,
        membership: Membership,
    ) -> anyhow::Result<Self> {
        let mut config = RunConfig::from_toml(&reply.config).map_err(BadInput::from_error)?;
        if let Some(device) = device {
            config.resources.device = device;
        }
        let reward_device = run_setup::open_device(config.resources.device).map_err(BadInput::from_error)?;
        let scorer = Scorer::start(&config, reward_device, &hub).await?;
        let n_threads = config.resources.worker_threads;
        let (told, prompts) = (membership.clone(), PromptCopies::of(reply));
        let open = move || open_sampler(config, &hub, &prompts, &told).map_err(BadInput::from_error);
        let device = DeviceThread::start(n_threads, open).await?;
        tracing::info!("ready");
        Ok(Self {
            weights: WeightsCache::new(LearnerLink::new(membership.clone())),
            finisher: Finisher::start(scorer, membership.clone()),
            device,
            membership,
        })
    }

    /// Task after task, then what is still to be finished.
    async fn work(mut self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let stop = shutdown.child_token();
        tokio::spawn(stop_when_ordered(self.membership.clone(), stop.clone()));
        let outcome = self.take_tasks(&stop).await;
        stop.cancel();
        self.device.stop().await;
        let finished = tokio::time::timeout(DRAIN_DEADLINE, self.finisher.close()).await;
        let finished = finished.unwrap_or_else(|_| {
            tracing::warn!(
                "a reward or the learner was away too long; what was not delivered will be sampled again"
            );
            Ok(())
        });
        outcome.and(finished)
    }

    async fn take_tasks(&mut self, stop: &CancellationToken) -> anyhow::Result<()> {
        loop {
            // Without a place, finishing has failed, and says so when it is closed.
            let Some(Some(place)) = until(stop, self.finisher.place()).await else { return Ok(()) };
            let finishing: Vec<_> = self.finisher.unfinished().into_iter().map(Into::into).collect();
            let task = until(stop, self.membership.next_task(&finishing, TASK_WAIT)).await.transpose()?;
            let Some(task) = task else { return Ok(()) };
            let Some((task, id)) = task.and_then(|task| task.id.map(|id| (task, id))) else { continue };
            let task = match Task::try_from(task) {
                Ok(task) => task,
                Err(fault) => {
                    let error = TaskError::from(fault);
                    tracing::error!("cannot sample: {error}");
                    self.membership.task_failed(id, &error.to_string(), error.is_the_tasks_fault()).await?;
                    continue;
                }
            };
            let name = task.name;
            let (kind, iteration, index) = (kind_name(name.kind), name.iteration, name.index);
            let span = tracing::info_span!("task", kind, iteration, index);
            let (weights, device, membership) = (&mut self.weights, &self.device, &self.membership);
            let work = Arc::new(membership.begin_work());
            let sample = sample(weights, device, task, work, stop).instrument(span.clone());
            match sample.await? {
                Some(Ok(sampled)) => span.in_scope(|| place.accept(sampled)),
                Some(Err(failure)) => membership.task_failed(id, &failure.reason, failure.poisonous).await?,
                None => return Ok(()),
            }
        }
    }
}

/// A task that ends without an outcome.
struct Failure {
    reason: String,
    poisonous: bool,
}

/// Gets the weights and samples; `None` if told to stop before sampling began.
async fn sample(
    weights: &mut WeightsCache,
    device: &DeviceThread,
    task: Task,
    work: Arc<WorkInHand>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Result<Sampled, Failure>>> {
    let weights = match until(stop, weights.get(task.weights(), &work)).await {
        Some(Ok(weights)) => weights,
        Some(Err(error)) => {
            tracing::error!("{error}");
            return Ok(Some(Err(Failure { reason: error.to_string(), poisonous: false })));
        }
        None => return Ok(None),
    };
    let outcome = device.sample(task, weights, work).await?;
    Ok(Some(outcome.map_err(|error| {
        tracing::error!("cannot sample: {error}");
        Failure { reason: error.to_string(), poisonous: true }
    })))
}

fn kind_name(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Train => "train",
        TaskKind::Evaluate => "evaluate",
        TaskKind::Test => "test",
    }
}

fn open_sampler(
    config: RunConfig,
    hub: &Hub,
    prompts: &PromptCopies,
    membership: &Membership,
) -> anyhow::Result<Sampler> {
    let device = run_setup::open_device(config.resources.device)?;
    let folder = hub.resolve(&config.model.path)?;
    if config.model.random_weights {
        let absent = models::pipeline::absent_tokenizers(&folder)?;
        tracing::warn!(
            ?absent,
            "the weights are random: images mean nothing; bytes stand in for absent tokenizers"
        );
    }
    let cache = open_embedding_cache(&config, &folder, device).unwrap_or_else(|error| {
        let trouble = format!("embeddings are not cached, text encoders stay: {error}");
        tracing::warn!("{trouble}");
        membership.troubled("embedding cache", trouble);
        None
    });
    let options = LoadOptions {
        weights: run_setup::weight_options(&config, device),
        text_encoders: cache.is_none(),
        decoder: Some(run_setup::decoder_options(&config)),
    };
    let is_caching = cache.is_some();
    let mut model = GuidedModel::open_with(&folder, options, config.model.max_sequence_length, cache)?;
    if is_caching {
        let scales = [config.sampling.guidance_scale, config.evaluation.guidance_scale];
        cache_prompts(prompts, scales, &mut model)?;
    }
    Ok(Sampler::new(config, model)?)
}

/// The cache that the config asks for; a worker that cannot use it keeps its text encoders instead, and says so.
fn open_embedding_cache(
    config: &RunConfig,
    folder: &Path,
    device: Device,
) -> Result<Option<EmbeddingCache>, ModelError> {
    if config.model.embedding_cache.as_os_str().is_empty() {
        return Ok(None);
    }
    let root = config.run.directory.join(&config.model.embedding_cache);
    let embedding_settings = EmbeddingSettings {
        weights: run_setup::weight_options(config, device),
        max_sequence_length: config.model.max_sequence_length,
    };
    EmbeddingCache::open(&root, folder, &embedding_settings).map(Some)
}

/// Embeds all prompts of the run that nobody has embedded yet.
fn cache_prompts(
    copies: &PromptCopies,
    guidance_scales: [f64; 2],
    model: &mut GuidedModel,
) -> Result<(), ModelError> {
    let mut prompts = Vec::new();
    for split in PromptSplit::ALL.into_iter().filter(|split| copies.has(*split)) {
        match copies.read(split) {
            Ok(records) => prompts.extend(records.into_iter().map(|record| record.text)),
            Err(error) => {
                tracing::warn!("prompts that cannot be read here are embedded as tasks bring them: {error}")
            }
        }
    }
    // Workers that start together, whose ids are neighbours, begin far from each other.
    let start = std::process::id().wrapping_mul(0x9e37_79b9) as usize;
    let n_prompts = prompts.len().max(1);
    prompts.rotate_left(start % n_prompts);
    let embedded = model.cache_prompts(&prompts, &guidance_scales)?;
    tracing::info!(prompts = prompts.len(), embedded, "embedded, text encoders are dropped");
    Ok(())
}

async fn stop_when_ordered(membership: Membership, stop: CancellationToken) {
    let mut standing = membership.standing();
    let ordered = standing.wait_for(|standing| standing.order == Order::Drain);
    if until(&stop, ordered).await.is_some_and(|ordered| ordered.is_ok()) {
        tracing::info!("told to leave, finishing what is in flight");
        stop.cancel();
    }
}

/// What `work` comes to, or `None` if told to stop before.
async fn until<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    stop.run_until_cancelled(work).await
}
