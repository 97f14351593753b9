//! Versions of what is trained: fetched from the learner, checked to the last bit, the newest few kept.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use models::{ModelError, tensor_bytes};
use proto::{TensorInfo, WeightsManifest, WeightsRequest, weights_reply};
use protocol::WeightsName;
use service::{Assembly, ChunkError, Timely, WorkInHand};
use tch::Tensor;
use tonic::{Code, Status};

use crate::learner_link::{Failure, LearnerLink};

/// With lag 1, two policies take turns with one average.
const KEPT_VERSIONS: usize = 3;
/// No network is larger than this, in bytes.
const SIZE_LIMIT: usize = 256 << 30;
const DEADLINE: Duration = Duration::from_secs(300);
/// How often a version may be unavailable, and how often arrive damaged, before the task is given back.
const MAX_FAILURES: u32 = 10;

/// One version of an adapter, or of the whole network, in one role.
#[derive(Debug)]
pub struct TrainedWeights {
    /// Version and role.
    pub name: WeightsName,
    tensors: Vec<TensorInfo>,
    bytes: Vec<u8>,
}

impl TrainedWeights {
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
    /// Least recently used first.
    kept: VecDeque<Arc<TrainedWeights>>,
}

/// Why a version cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The learner does not offer it, and has not for a while.
    #[error("the learner does not offer version {version} of the weights: {}", source.message())]
    Unavailable {
        /// The version asked for.
        version: u32,
        /// The learner's answer.
        source: Box<Status>,
    },
    /// It never arrives whole.
    #[error("version {version} of the weights arrived damaged {attempts} times, last: {problem}")]
    Damaged {
        /// The version asked for.
        version: u32,
        /// How often it came.
        attempts: u32,
        /// What was wrong with it last.
        problem: String,
    },
    /// The learner is of another run, or refuses for good.
    #[error("the learner refuses to send version {version} of the weights: {}", source.message())]
    Refused {
        /// The version asked for.
        version: u32,
        /// The learner's answer.
        source: Box<Status>,
    },
}

/// Why one attempt failed.
enum AttemptError {
    Status(Status),
    Damaged(String),
}

impl WeightsCache {
    /// An empty cache.
    pub fn new(link: LearnerLink) -> Self {
        Self { link, kept: VecDeque::new() }
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
        let (version, role) = (name.version, proto::WeightsRole::from(name.role));
        let (mut n_unavailable, mut n_damaged) = (0, 0);
        loop {
            match self.attempt(name, work).await {
                Ok(weights) => {
                    self.link.answered(work);
                    let bytes = weights.bytes.len();
                    tracing::info!(version, role = role.as_str_name(), bytes, "fetched weights");
                    return Ok(weights);
                }
                Err(AttemptError::Damaged(problem)) => {
                    n_damaged += 1;
                    if n_damaged == MAX_FAILURES {
                        return Err(WeightsError::Damaged { version, attempts: n_damaged, problem });
                    }
                    tracing::warn!(version, n_damaged, "weights arrived damaged, asking again: {problem}");
                }
                Err(AttemptError::Status(status)) if status.code() == Code::NotFound => {
                    n_unavailable += 1;
                    if n_unavailable == MAX_FAILURES {
                        return Err(WeightsError::Unavailable { version, source: Box::new(status) });
                    }
                }
                Err(AttemptError::Status(status)) => match Failure::from(status) {
                    Failure::Passing(status) => {
                        tracing::debug!(version, "no weights yet: {}", status.message());
                    }
                    Failure::Damaged(status) | Failure::Fenced(status) | Failure::Final(status) => {
                        return Err(WeightsError::Refused { version, source: Box::new(status) });
                    }
                },
            }
            self.link.pause(work).await;
        }
    }

    async fn attempt(
        &mut self,
        name: WeightsName,
        work: &WorkInHand,
    ) -> Result<TrainedWeights, AttemptError> {
        let mut client = self.link.client(work).await;
        let caller = Some(self.link.membership().caller());
        let (version, role) = (name.version, proto::WeightsRole::from(name.role));
        let message = WeightsRequest { caller, version, role: role.into() };
        let mut stream = Timely::new(client.weights(service::request(message, DEADLINE)).await?.into_inner());
        let Some(weights_reply::Part::Manifest(manifest)) = stream.next().await?.and_then(|reply| reply.part)
        else {
            return Err(AttemptError::Damaged("the stream does not begin with a manifest".to_owned()));
        };
        let mut assembly = Assembly::new(announced_bytes(&manifest)?);
        while let Some(reply) = stream.next().await? {
            let Some(weights_reply::Part::Chunk(chunk)) = reply.part else {
                return Err(AttemptError::Damaged("the stream holds something else than chunks".to_owned()));
            };
            assembly.accept(&chunk)?;
            work.progressed();
        }
        let bytes = assembly.finish(&manifest.digest)?;
        if WeightsName::from_wire(manifest.version, manifest.role()) != Ok(name) {
            return Err(AttemptError::Damaged(format!("version {} came instead", manifest.version)));
        }
        Ok(TrainedWeights { name, tensors: manifest.tensors, bytes })
    }
}

fn announced_bytes(manifest: &WeightsManifest) -> Result<usize, AttemptError> {
    let too_large = || AttemptError::Damaged(format!("the manifest announces more than {SIZE_LIMIT} bytes"));
    manifest.tensors.iter().try_fold(0_usize, |total, info| {
        let length = tensor_bytes::byte_length(info).map_err(|e| AttemptError::Damaged(e.to_string()))?;
        total.checked_add(length).filter(|total| *total <= SIZE_LIMIT).ok_or_else(too_large)
    })
}

impl From<Status> for AttemptError {
    fn from(status: Status) -> Self {
        match Failure::from(status) {
            Failure::Damaged(status) => Self::Damaged(status.message().to_owned()),
            Failure::Passing(status) | Failure::Fenced(status) | Failure::Final(status) => {
                Self::Status(status)
            }
        }
    }
}

impl From<ChunkError> for AttemptError {
    fn from(error: ChunkError) -> Self {
        Self::Damaged(error.to_string())
    }
}
