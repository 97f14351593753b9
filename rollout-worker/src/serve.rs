//! A worker's life: join the run, then task after task until the run ends or somebody says stop.
//!
//! What it does from task to task is decided by [`protocol::Errands`] and done by [`crate::errands::hands`].

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use config::{ComputeDevice, NetworkSection, PromptSplit, RunConfig};
use models::{LoadOptions, ModelError};
use proto::{JoinReply, Role, Work};
use rewards::RunIdentity;
use service::metrics::MemberMetrics;
use service::network::ListenAddress;
use service::weights::{RelayPlace, WeightsRelayService};
use service::{
    Hub, JoinDetails, Membership, PeerRole, PromptCopies, RecentLog, Security, ServiceError, WorkInHand,
    cuda, trust_by,
};
use tch::Device;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::bad_input::BadInput;
use crate::errands::device::DeviceThread;
use crate::errands::hands::{Departure, Hands};
use crate::errands::measured::Measured;
use crate::errands::weights::Sharing;
use crate::metrics::WorkerMetrics;
use crate::sampling::embedding_cache::{EmbeddingCache, EmbeddingSettings};
use crate::sampling::guided_model::GuidedModel;
use crate::sampling::task::Sampler;
use crate::sampling::truncated_prompts::TruncatedPrompts;
use crate::scoring::Scorer;

/// What a worker is told when it is started.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// `http://host:port` of the coordinator.
    pub coordinator: String,
    /// How this process shows who it is.
    pub credentials: Security,
    /// Name kept over restarts.
    pub member_id: String,
    /// In place of the run config's device.
    pub device: Option<ComputeDevice>,
    /// Where this process listens for other workers; if not given, at the address by which it speaks to the coordinator.
    pub listen: Option<ListenAddress>,
    /// What other workers are told to reach it by; empty follows `listen`.
    pub advertise: String,
    /// Where metrics are shown, if anywhere.
    pub metrics_listen: Option<ListenAddress>,
    /// How long an absent coordinator is waited for.
    pub grace: Duration,
    /// After which time it is killed once `shutdown` asks it to leave, if that is known.
    pub notice: Option<Duration>,
    /// What this process has logged last, for who asks.
    pub log: RecentLog,
    /// Where models are found by name.
    pub hub: Hub,
}

/// The coordinator's address, and where a worker listens and what others are told.
type RelayOptions = (String, Option<ListenAddress>, String);
/// What serves weights to other workers, for as long as it is not dropped.
type Serving = Option<AbortOnDropHandle<()>>;

/// Works for the run until `shutdown`, the coordinator's order to drain, or its loss.
///
/// # Errors
/// [`BadInput`] if model or rewards cannot be used, [`service::ServiceError`] if the coordinator refuses the worker or
/// is lost, anything else if this process is broken.
pub async fn run(options: ServeOptions, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut place = MemberMetrics::open(options.metrics_listen.as_ref(), "", &options.coordinator).await?;
    let metrics = WorkerMetrics::default();
    let _shown = place.serve(Arc::new(metrics.clone()));
    let details = JoinDetails {
        role: Role::RolloutWorker,
        member_id: options.member_id,
        rank: 0,
        address: String::new(),
        metrics_address: place.address.clone(),
        grace: options.grace,
        own_directory: None,
    };
    let relay = (options.coordinator.clone(), options.listen, options.advertise);
    let (coordinator, credentials, grace) = (options.coordinator, options.credentials, options.grace);
    let joined = async move {
        let trust = trust_by(credentials, PeerRole::Worker, grace).await?;
        let (membership, reply) = Membership::join(&coordinator, &trust, details).await?;
        Ok::<_, ServiceError>((membership, reply, RunIdentity::from(&trust)))
    };
    let joined = until(&shutdown, joined).await;
    let Some((membership, reply, run)) = joined.transpose()? else { return Ok(()) };
    place.tell_trouble(&membership);
    membership.shows_log(options.log);
    let stop = shutdown.child_token();
    tokio::spawn(stop_when_ordered(membership.clone(), stop.clone()));
    let departure = Departure { stop: stop.clone(), shutdown, notice: options.notice };
    // Opening a model and embedding its prompts may take long; nothing is lost if it is not waited for.
    let work = async {
        let place = (options.device, options.hub, relay, run);
        let started = start(&reply, place, membership.clone(), metrics);
        match until(&stop, started).await {
            Some(Ok((hands, _serving))) => hands.work(&departure).await,
            Some(Err(error)) => Err(error),
            None => Ok(()),
        }
    };
    // Who is not a member any more, such as one that was found to hang while it opened its model, waits for nothing.
    let outcome = tokio::select! {
        outcome = work => outcome,
        error = membership.lost() => Err(error.into()),
    };
    stop.cancel();
    membership.leave().await;
    outcome
}

/// Opens model and rewards, each on threads of its own.
async fn start(
    reply: &JoinReply,
    (device, hub, relay, run): (Option<ComputeDevice>, Hub, RelayOptions, RunIdentity),
    membership: Membership,
    metrics: WorkerMetrics,
) -> anyhow::Result<(Hands, Serving)> {
    let mut config = RunConfig::from_toml(&reply.config).map_err(BadInput::from_error)?;
    if let Some(device) = device {
        config.resources.device = device;
    }
    run_setup::check_determinism(config.run.determinism).map_err(BadInput::from_error)?;
    let opened = run_setup::open_device(config.resources.device).map_err(cuda::explained);
    let reward_device = opened.map_err(BadInput::from_error)?;
    membership.computes_on(config.resources.device);
    let opening = membership.begin_work(Work::Opening);
    let scorer = Scorer::start(&config, reward_device, &hub, run).await?;
    let scorer = scorer.measured_by(metrics.rewards.clone());
    opening.progressed();
    let n_threads = config.resources.worker_threads;
    let (sharing, serving) = share_weights(&config.network, relay, &membership, &metrics).await;
    let (told, prompts) = (membership.clone(), PromptCopies::of(reply));
    let measured_by = metrics.clone();
    let open = move || {
        let model = config.model.path.display().to_string();
        let opened = open_sampler(config, &hub, &prompts, (&told, &opening));
        let sampler = opened.with_context(|| unusable_model(&model)).map_err(BadInput::from_error)?;
        Ok::<_, anyhow::Error>(Measured::new(sampler, measured_by))
    };
    let device = DeviceThread::start(n_threads, open).await?;
    tracing::info!("ready");
    metrics.has_model();
    Ok((Hands::new((membership, sharing), device, scorer, metrics), serving))
}

/// Serves weights to other workers where the run wishes that. A worker that cannot listen goes on without, and says so.
async fn share_weights(
    network: &NetworkSection,
    (coordinator, listen, advertise): RelayOptions,
    membership: &Membership,
    metrics: &WorkerMetrics,
) -> (Sharing, Serving) {
    if !network.weights_relay {
        return (Sharing::default(), None);
    }
    let sharing = Sharing { is_on: true, ..Sharing::default() };
    let place = RelayPlace { listen, advertise, ports: network.port };
    let (listener, address) = match place.listen(&coordinator, membership.trust()).await {
        Ok(listening) => listening,
        Err(error) => {
            let trouble = error.to_string();
            tracing::warn!("{trouble}");
            membership.troubled("weights relay", trouble);
            return (sharing, None);
        }
    };
    tracing::info!("weights for other workers at {address}");
    let run_id = membership.caller().run_id;
    let service = WeightsRelayService::new(run_id, sharing.held.clone(), metrics.relayed_bytes.clone());
    let serving = service.serve(listener, membership.trust().clone());
    let serving = tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::warn!("no weights are sent on to other workers any more: {error}");
        }
    });
    (Sharing { address, ..sharing }, Some(AbortOnDropHandle::new(serving)))
}

/// Members run on many hosts, and what one has another may lack.
fn unusable_model(model: &str) -> String {
    format!(
        "this worker cannot open the model {model} on {}; paths are looked up on each host: put the model there, or set \
         `model.path` to where all hosts have it",
        service::host_name()
    )
}

fn open_sampler(
    config: RunConfig,
    hub: &Hub,
    prompts: &PromptCopies,
    (membership, opening): (&Membership, &WorkInHand),
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
    let (weights, length) = (run_setup::weight_options(&config, device), config.model.max_sequence_length);
    // All prompts are embedded before the network is opened: the text encoders' memory is the network's afterwards.
    let (cache, truncated) = match cache {
        Some(cache) => {
            let mut for_prompts = GuidedModel::open_for_prompts(&folder, weights.clone(), length, cache)?;
            let scales = [config.sampling.guidance_scale, config.evaluation.guidance_scale];
            opening.progressed();
            cache_prompts(prompts, scales, &mut for_prompts, &|| opening.progressed())?;
            for_prompts.into_embedded()
        }
        None => (None, TruncatedPrompts::default()),
    };
    let decoder = Some(run_setup::decoder_options(&config));
    let options = LoadOptions { weights, text_encoders: cache.is_none(), decoder };
    let mut model = GuidedModel::open_with(&folder, options, length, cache)?;
    opening.progressed();
    model.remember_truncated(truncated);
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
    progressed: &dyn Fn(),
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
    let embedded = model.cache_prompts(&prompts, &guidance_scales, progressed)?;
    tracing::info!(prompts = prompts.len(), embedded, "embedded, text encoders are dropped");
    Ok(())
}

async fn stop_when_ordered(membership: Membership, stop: CancellationToken) {
    let mut standing = membership.standing();
    let ordered = standing.wait_for(|standing| standing.drain.is_some());
    if until(&stop, ordered).await.is_some_and(|ordered| ordered.is_ok()) {
        tracing::info!("told to leave, finishing what is in flight");
        stop.cancel();
    }
}

/// What `work` comes to, or `None` if told to stop before.
async fn until<T>(stop: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    stop.run_until_cancelled(work).await
}
