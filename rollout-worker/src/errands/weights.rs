//! Versions of what is trained: fetched from the learner, checked to the last bit, the newest few kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use models::{ModelError, tensor_bytes};
use proto::{TensorInfo, WeightsManifest, WeightsRequest, weights_reply};
use protocol::{Failure, FetchFailure, Fetching, WeightsError, WeightsName};
use service::{Assembly, Timely, WorkInHand};
use tch::Tensor;
use tonic::{Code, Status};

use crate::errands::learner_link::{LearnerLink, failure};
use crate::metrics::WorkerMetrics;

/// With lag 1, two policies take turns with one average.
const KEPT_VERSIONS: usize = 3;
/// No network is larger than this, in bytes.
const SIZE_LIMIT: usize = 256 << 30;
/// The rank of the learner that hands out weights.
const WEIGHTS_RANK: u32 = 0;
const DEADLINE: Duration = Duration::from_secs(300);

/// One version of an adapter, or of the whole network, in one role.
#[derive(Debug)]
pub struct TrainedWeights {
    /// Version and role.
    pub name: WeightsName,
    tensors: Vec<TensorInfo>,
    bytes: Vec<u8>,
}

impl TrainedWeights {
    /// Weights of no tensors.
    #[cfg(test)]
    pub(super) fn nothing(name: WeightsName) -> Self {
        Self { name, tensors: Vec::new(), bytes: Vec::new() }
    }

    /// The tensors by name, on the CPU.
    ///
    /// # Errors
    /// If the manifest does not describe the bytes.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor)>, ModelError> {
        tensor_bytes::split(&self.tensors, &self.bytes)
    }
}

/// Fetches weights and keeps the last few versions.
pub struct WeightsCache {
    link: LearnerLink,
    metrics: WorkerMetrics,
    /// Least recently used first.
    kept: VecDeque<Arc<TrainedWeights>>,
}

impl WeightsCache {
    /// An empty cache.
    pub fn new(link: LearnerLink, metrics: WorkerMetrics) -> Self {
        Self { link, metrics, kept: VecDeque::new() }
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
        let position = self.kept.iter().position(|weights| weights.name == name);
        let weights = match position.and_then(|position| self.kept.remove(position)) {
            Some(kept) => kept,
            None => Arc::new(self.fetch(name, work).await?),
        };
        self.kept.push_back(weights.clone());
        if self.kept.len() > KEPT_VERSIONS {
            self.kept.pop_front();
        }
        Ok(weights)
    }

    async fn fetch(&mut self, name: WeightsName, work: &WorkInHand) -> Result<TrainedWeights, WeightsError> {
        let (version, mut fetching, start) = (name.version, Fetching::new(name), Instant::now());
        loop {
            let failure = match self.attempt(name, work).await {
                Ok(weights) => {
                    self.link.answered(work);
                    self.metrics.fetched(start, weights.bytes.len());
                    let role = proto::WeightsRole::from(name.role).as_str_name();
                    tracing::info!(version, role, bytes = weights.bytes.len(), "fetched weights");
                    return Ok(weights);
                }
                Err(failure) => failure,
            };
            self.metrics.fetches.count([match &failure {
                FetchFailure::Unavailable(_) => "unavailable",
                FetchFailure::Call(failure) => failure.cause(),
            }]);
            fetching.on(failure.clone())?;
            match failure {
                FetchFailure::Call(Failure::Damaged(problem)) => {
                    let n_damaged = fetching.n_damaged();
                    tracing::warn!(version, n_damaged, "weights arrived damaged, asking again: {problem}");
                }
                FetchFailure::Call(failure) => tracing::debug!(version, "no weights yet: {failure:?}"),
                FetchFailure::Unavailable(_) => {}
            }
            self.link.pause(work).await;
        }
    }

    async fn attempt(
        &mut self,
        name: WeightsName,
        work: &WorkInHand,
    ) -> Result<TrainedWeights, FetchFailure> {
        let mut client = self.link.client(WEIGHTS_RANK, work).await;
        let caller = Some(self.link.membership().caller());
        let (version, role) = (name.version, proto::WeightsRole::from(name.role));
        let message = WeightsRequest { caller, version, role: role.into() };
        let mut stream = Timely::new(
            client.weights(service::request(message, DEADLINE)).await.map_err(fetch_failure)?.into_inner(),
        );
        let Some(weights_reply::Part::Manifest(manifest)) =
            stream.next().await.map_err(fetch_failure)?.and_then(|reply| reply.part)
        else {
            return Err(damaged("the stream does not begin with a manifest"));
        };
        let mut assembly = Assembly::new(announced_bytes(&manifest)?);
        while let Some(reply) = stream.next().await.map_err(fetch_failure)? {
            let Some(weights_reply::Part::Chunk(chunk)) = reply.part else {
                return Err(damaged("the stream holds something else than chunks"));
            };
            assembly.accept(&chunk).map_err(damaged)?;
            work.progressed();
        }
        let bytes = assembly.finish(&manifest.digest).map_err(damaged)?;
        if WeightsName::from_wire(manifest.version, manifest.role()) != Ok(name) {
            return Err(damaged(format!("version {} came instead", manifest.version)));
        }
        Ok(TrainedWeights { name, tensors: manifest.tensors, bytes })
    }
}

fn announced_bytes(manifest: &WeightsManifest) -> Result<usize, FetchFailure> {
    let too_large = || damaged(format!("the manifest announces more than {SIZE_LIMIT} bytes"));
    manifest.tensors.iter().try_fold(0_usize, |total, info| {
        let length = tensor_bytes::byte_length(info).map_err(damaged)?;
        total.checked_add(length).filter(|total| *total <= SIZE_LIMIT).ok_or_else(too_large)
    })
}

/// What the status of a failed attempt means.
fn fetch_failure(status: Status) -> FetchFailure {
    match status.code() {
        Code::NotFound => FetchFailure::Unavailable(status.message().to_owned()),
        _ => FetchFailure::Call(failure(&status)),
    }
}

fn damaged(problem: impl ToString) -> FetchFailure {
    FetchFailure::Call(Failure::Damaged(problem.to_string()))
}
