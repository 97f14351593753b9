//! Versions of what is trained: fetched from the learner or from a worker that holds them, checked to the last bit, the newest few
//! kept and sent on to other workers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use models::{ModelError, tensor_bytes};
use proto::{WeightsStanding, WorkerSource};
use protocol::{
    Failure, FetchFailure, Fetching, SearchStep, SourceSearch, WeightsError, WeightsName, with_causes,
};
use service::weights::{self, HeldWeights, ReceiveError, WeightsCopy};
use service::{Membership, WorkInHand};
use tch::Tensor;
use tonic::{Code, Status};

use crate::errands::learner_link::{LearnerLink, failure};
use crate::metrics::WorkerMetrics;

/// The rank of the learner that hands out weights.
const WEIGHTS_RANK: u32 = 0;
/// How long one question for a source waits for one that has room.
const SOURCE_WAIT: Duration = Duration::from_secs(10);

/// One version of an adapter, or of the whole network, in one role.
#[derive(Debug)]
pub struct TrainedWeights {
    /// Version and role.
    pub name: WeightsName,
    copy: Arc<WeightsCopy>,
}

impl TrainedWeights {
    fn of(copy: Arc<WeightsCopy>) -> Arc<Self> {
        Arc::new(Self { name: copy.name, copy })
    }

    /// Weights of no tensors.
    #[cfg(test)]
    pub(super) fn nothing(name: WeightsName) -> Self {
        let (manifest, bytes) = (proto::WeightsManifest::default(), bytes::Bytes::new());
        Self { name, copy: Arc::new(WeightsCopy { name, manifest, bytes }) }
    }

    /// The tensors by name, on the CPU.
    ///
    /// # Errors
    /// If the manifest does not describe the bytes.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>, ModelError> {
        tensor_bytes::split(&self.copy.manifest.tensors, &self.copy.bytes)
    }
}

/// How a worker shares weights with others.
#[derive(Clone, Debug, Default)]
pub struct Sharing {
    /// What it has, and serves.
    pub held: HeldWeights,
    /// Where it serves that, `host:port`; empty where it does not.
    pub address: String,
    /// Whether weights may come from other workers.
    pub is_on: bool,
}

/// Fetches weights and keeps the last few versions.
pub struct WeightsCache {
    link: LearnerLink,
    metrics: WorkerMetrics,
    sharing: Sharing,
}

/// Why one attempt failed.
enum Failed {
    /// By the learner.
    Learner(FetchFailure),
    /// By the worker that was to send them: why, in a word that can be counted, and in words for people.
    Worker(WorkerSource, &'static str, String),
}

impl WeightsCache {
    /// A cache of what is held.
    pub fn new(link: LearnerLink, metrics: WorkerMetrics, sharing: Sharing) -> Self {
        Self { link, metrics, sharing }
    }

    /// A version in a role for the sake of `work`, fetched unless it is here; waits while the learner is away.
    ///
    /// # Errors
    /// If the learner refuses, has not offered the version for a while, or it arrives damaged again and again.
    pub async fn get(
        &mut self,
        name: WeightsName,
        work: &WorkInHand,
    ) -> Result<Arc<TrainedWeights>, WeightsError> {
        if let Some(copy) = self.sharing.held.take(name) {
            return Ok(TrainedWeights::of(copy));
        }
        let copy = Arc::new(self.fetch(name, work).await?);
        self.sharing.held.keep(copy.clone());
        tell(self.link.membership(), &self.sharing, None);
        Ok(TrainedWeights::of(copy))
    }

    async fn fetch(&mut self, name: WeightsName, work: &WorkInHand) -> Result<WeightsCopy, WeightsError> {
        let (mut fetching, mut search, start) =
            (Fetching::new(name), SourceSearch::default(), Instant::now());
        loop {
            let source = match self.sharing.is_on {
                true => find_source(self.link.membership().clone(), name, &mut search, work).await,
                false => None,
            };
            let from = if source.is_some() { "worker" } else { "learner" };
            match self.attempt(name, source, work).await {
                Ok(copy) => {
                    self.link.answered(work);
                    self.metrics.fetched(start, from, copy.bytes.len());
                    tracing::info!(from, bytes = copy.bytes.len(), "fetched {name} of the weights");
                    return Ok(copy);
                }
                Err(Failed::Worker(source, cause, reason)) => {
                    work.progressed();
                    self.metrics.fetches.count(["worker", cause]);
                    tracing::warn!(source = source.member_id, "{name} of the weights did not come: {reason}");
                    search.on_failure(&source, reason);
                }
                Err(Failed::Learner(failure)) => {
                    self.metrics.fetches.count(["learner", failure_in_a_word(&failure)]);
                    fetching.on(failure.clone())?;
                    tell_failure(name, &fetching, &failure);
                    self.link.pause(work).await;
                }
            }
        }
    }

    async fn attempt(
        &mut self,
        name: WeightsName,
        source: Option<WorkerSource>,
        work: &WorkInHand,
    ) -> Result<WeightsCopy, Failed> {
        let of_learner = |error| Failed::Learner(fetch_failure(error));
        let mut client = self.link.client(WEIGHTS_RANK, work).await;
        // Not before: who only looks for the learner must not count as one that it serves.
        let _told = TellsFetching::begin(self.link.membership().clone(), self.sharing.clone(), name);
        let caller = self.link.membership().caller();
        let Some(source) = source else {
            return weights::fetch(&mut client, caller, name, || work.progressed()).await.map_err(of_learner);
        };
        let manifest =
            weights::fetch_manifest(&mut client, caller.clone(), name).await.map_err(of_learner)?;
        let way = (&*source.address, self.link.membership().trust());
        let copy = weights::fetch_from_worker(way, caller, (name, manifest), || work.progressed()).await;
        copy.map_err(|error| Failed::Worker(source, cause_of(&error), with_causes(&error)))
    }
}

/// The worker to fetch from, or `None` for the learner.
async fn find_source(
    membership: Membership,
    name: WeightsName,
    search: &mut SourceSearch,
    work: &WorkInHand,
) -> Option<WorkerSource> {
    let mut step = search.next();
    loop {
        // Waiting for others is no sign of a hanging worker.
        work.progressed();
        match step {
            SearchStep::FromLearner => return None,
            SearchStep::FromWorker(source) => return Some(source),
            SearchStep::Seek => {
                let reply = membership.seek_weights(name, search.failed(), SOURCE_WAIT).await;
                step = search.on_reply(reply);
            }
        }
    }
}

/// Lets the coordinator know that weights are being fetched, until it is dropped.
struct TellsFetching {
    membership: Membership,
    sharing: Sharing,
}

impl TellsFetching {
    fn begin(membership: Membership, sharing: Sharing, name: WeightsName) -> Self {
        tell(&membership, &sharing, Some(name));
        Self { membership, sharing }
    }
}

impl Drop for TellsFetching {
    fn drop(&mut self) {
        tell(&self.membership, &self.sharing, None);
    }
}

fn tell(membership: &Membership, sharing: &Sharing, fetching: Option<WeightsName>) {
    if sharing.is_on {
        let held = sharing.held.names().into_iter().map(Into::into).collect();
        let (address, fetching) = (sharing.address.clone(), fetching.map(Into::into));
        membership.has_weights(WeightsStanding { address, held, fetching });
    }
}

fn tell_failure(name: WeightsName, fetching: &Fetching, failure: &FetchFailure) {
    match failure {
        FetchFailure::Call(Failure::Damaged(problem)) => {
            let n_damaged = fetching.n_damaged();
            tracing::warn!(n_damaged, "{name} of the weights arrived damaged, asking again: {problem}");
        }
        FetchFailure::Call(failure) => tracing::debug!("{name} of the weights is not here yet: {failure:?}"),
        FetchFailure::Unavailable(_) => {}
    }
}

/// What a failed attempt at the learner means.
fn fetch_failure(error: ReceiveError) -> FetchFailure {
    match error {
        ReceiveError::Call(status) => status_failure(&status),
        ReceiveError::Connect(error) => FetchFailure::Call(Failure::Passing(error.to_string())),
        ReceiveError::Damaged(problem) => FetchFailure::Call(Failure::Damaged(problem)),
    }
}

fn status_failure(status: &Status) -> FetchFailure {
    match status.code() {
        Code::NotFound => FetchFailure::Unavailable(status.message().to_owned()),
        _ => FetchFailure::Call(failure(status)),
    }
}

fn failure_in_a_word(failure: &FetchFailure) -> &'static str {
    match failure {
        FetchFailure::Unavailable(_) => "unavailable",
        FetchFailure::Call(failure) => failure.cause(),
    }
}

/// What befell at a worker, in a word that can be counted.
fn cause_of(error: &ReceiveError) -> &'static str {
    match error {
        ReceiveError::Call(status) => failure_in_a_word(&status_failure(status)),
        ReceiveError::Connect(_) => "away",
        ReceiveError::Damaged(_) => "damaged",
    }
}
