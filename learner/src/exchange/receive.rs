//! From the bytes of a push to what training takes: tensors split, embeddings kept, next latents rebuilt and checked.

use flow::next_latents_on_host;
use models::tensor_bytes::byte_length;
use noise::standard_normal;
use proto::{PushHeader, TensorInfo};
use protocol::push_tensors::{self, HASH_BYTES, embedding_part_of, extra_of, latent_hash};
use protocol::{Digest, PushFault, PushSchema};
use run_setup::training_key;

use config::{TaskKind, TaskSpec};

use crate::exchange::embeddings::{Arrived, EmbeddingError, Embeddings};
use crate::exchange::inbox::Outcome;
use crate::exchange::numbers::Allowed;
use crate::exchange::outcome::{EvaluatedImages, Trajectories};

/// What the numbers of a push are checked and completed with.
#[derive(Debug)]
pub struct OutcomeReader {
    /// What pushes hold.
    pub schema: PushSchema,
    /// Seed of the run, which keys the noise.
    pub run_seed: u64,
    /// Standard deviation of the move at every step of the schedule.
    pub stds: Vec<f32>,
}

/// Why a push whose bytes are intact cannot be held.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PushRefusal {
    /// The noise drawn here does not lead where the sampler went; the sampler must send where that was.
    #[error("next latents rebuilt from their noise have other hashes")]
    NextLatentsNeeded,
    /// A damaged embedding, or one that was expected to be here and is not: sending it is the remedy.
    #[error("{0}")]
    Incomplete(String),
    /// It is not what the config and the model imply.
    #[error(transparent)]
    Faulty(#[from] PushFault),
}

impl From<EmbeddingError> for PushRefusal {
    fn from(error: EmbeddingError) -> Self {
        match error {
            EmbeddingError::Damaged(problem) => Self::Incomplete(problem),
            EmbeddingError::Impossible(problem) => Self::Faulty(PushFault::Conditioning(problem)),
        }
    }
}

/// The announced tensors and their bytes.
struct Parts<'a> {
    parts: Vec<(&'a TensorInfo, &'a [u8])>,
}

impl OutcomeReader {
    /// Turns the bytes that `header` announced, which has been checked, into an outcome. Embeddings that come along are kept
    /// if everything else is right, too.
    ///
    /// # Errors
    /// If the push must be refused.
    pub fn outcome(
        &self,
        header: &PushHeader,
        bytes: &[u8],
        task: &TaskSpec,
        embeddings: &Embeddings,
    ) -> Result<Outcome, PushRefusal> {
        let parts = Parts::split(&header.tensors, bytes)?;
        match task.kind {
            TaskKind::Train => {
                let arrived = self.arrived_embeddings(header, &parts, embeddings)?;
                let trajectories = self.trajectories(header, &parts, task)?;
                arrived.into_iter().for_each(|embedding| embeddings.insert(embedding));
                Ok(Outcome::Train(Box::new(trajectories)))
            }
            TaskKind::Evaluate | TaskKind::Test => Ok(Outcome::Evaluate(Box::new(EvaluatedImages {
                pixels: parts.bytes(push_tensors::IMAGES)?.to_vec(),
                rewards: parts.floats(push_tensors::REWARDS, Allowed::Finite)?,
                scores: self.scores(&parts, task.kind)?,
                extras: extras(&parts)?,
                cost: header.cost.unwrap_or_default(),
            }))),
        }
    }

    /// The embeddings that come along; those that do not must be here.
    fn arrived_embeddings(
        &self,
        header: &PushHeader,
        parts: &Parts,
        embeddings: &Embeddings,
    ) -> Result<Vec<Arrived>, PushRefusal> {
        let negative = self.schema.is_guided.then_some(&header.negative_conditioning);
        let mut arrived = Vec::new();
        for digest in std::iter::once(&header.conditioning).chain(negative) {
            let digest = digest_of(digest)?;
            let (infos, bytes) = parts.embedding(&digest);
            if !infos.is_empty() {
                arrived.push(Arrived::new(digest, &infos, &bytes)?);
            } else if !embeddings.missing(&[digest]).is_empty() {
                let hex = blake3::Hash::from(digest).to_hex();
                return Err(PushRefusal::Incomplete(format!(
                    "embedding {hex} is not here; ask again what is missing"
                )));
            }
        }
        Ok(arrived)
    }

    fn trajectories(
        &self,
        header: &PushHeader,
        parts: &Parts,
        task: &TaskSpec,
    ) -> Result<Trajectories, PushRefusal> {
        let states = parts.floats(push_tensors::STATES, Allowed::Features)?;
        let means = parts.floats(push_tensors::MEANS, Allowed::Features)?;
        let log_probs = parts.floats(push_tensors::LOG_PROBS, Allowed::Finite)?;
        let rewards = parts.floats(push_tensors::REWARDS, Allowed::Finite)?;
        let scores = self.scores(parts, task.kind)?;
        let hashes = parts.bytes(push_tensors::NEXT_HASHES)?;
        let next_latents = match parts.has(push_tensors::NEXT_LATENTS) {
            true => parts.floats(push_tensors::NEXT_LATENTS, Allowed::Features)?,
            false => self.rebuild(task, &header.steps, &means),
        };
        let all_match = next_latents
            .chunks_exact(self.schema.latent_len())
            .zip(hashes.chunks_exact(HASH_BYTES))
            .all(|(latents, hash)| hash_of(latents) == hash);
        match (all_match, parts.has(push_tensors::NEXT_LATENTS)) {
            (false, false) => return Err(PushRefusal::NextLatentsNeeded),
            (false, true) => {
                return Err(PushFault::Hashes.into());
            }
            (true, _) => {}
        }
        Ok(Trajectories {
            states,
            means,
            next_latents,
            log_probs,
            rewards,
            scores,
            conditioning: digest_of(&header.conditioning)?,
            negative_conditioning: self
                .schema
                .is_guided
                .then(|| digest_of(&header.negative_conditioning))
                .transpose()?,
            cost: header.cost.unwrap_or_default(),
        })
    }

    /// The scores in the config's order, whatever order they came in.
    fn scores(&self, parts: &Parts, kind: TaskKind) -> Result<Vec<(String, Vec<f32>)>, PushRefusal> {
        let of_scorer = |name: &String| {
            Ok((name.clone(), parts.floats(&push_tensors::score_name(name), Allowed::Finite)?))
        };
        self.schema.rewards(kind).iter().map(of_scorer).collect()
    }

    /// Next latents of every (seed, step, branch) from the means and the noise of their keys.
    fn rebuild(&self, task: &TaskSpec, steps: &[u32], means: &[f32]) -> Vec<f32> {
        let latent_len = self.schema.latent_len();
        let mut cells = means.chunks_exact(latent_len);
        let mut rebuilt = Vec::with_capacity(means.len() * self.schema.n_branches);
        for seed_index in task.first_seed..task.first_seed + task.n_seeds {
            let key = training_key(self.run_seed, task.iteration, task.prompt_slot, seed_index);
            for step in steps {
                let mean = cells.next().expect("the header's shapes were checked; else this is a bug");
                for branch in 0..self.schema.n_branches as u32 {
                    let noise = standard_normal(&key.transition(*step, branch), latent_len);
                    rebuilt.extend(next_latents_on_host(mean, self.stds[*step as usize], &noise));
                }
            }
        }
        rebuilt
    }
}

/// What rewards tell besides scores, as `REWARD/KEY`.
fn extras(parts: &Parts) -> Result<Vec<(String, Vec<f32>)>, PushRefusal> {
    let named = parts.parts.iter().filter_map(|(info, _)| Some((&info.name, extra_of(&info.name)?)));
    named
        .map(|(tensor, (reward, key))| {
            Ok((format!("{reward}/{key}"), parts.floats(tensor, Allowed::FiniteOrNan)?))
        })
        .collect()
}

/// How many bytes a header announces.
///
/// # Errors
/// If a tensor's shape or element type is impossible.
pub fn announced_bytes(tensors: &[TensorInfo]) -> Result<usize, PushFault> {
    tensors.iter().try_fold(0_usize, |total, info| {
        let length = byte_length(info).map_err(|_| PushFault::Size(info.name.clone()))?;
        total.checked_add(length).ok_or(PushFault::TooLarge)
    })
}

/// The hash of a latent as the wire has it.
pub fn hash_of(latent: &[f32]) -> [u8; HASH_BYTES] {
    latent_hash(&latent.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

fn digest_of(bytes: &[u8]) -> Result<Digest, PushRefusal> {
    bytes.try_into().map_err(|_| PushFault::Digest.into())
}

impl<'a> Parts<'a> {
    fn split(infos: &'a [TensorInfo], mut bytes: &'a [u8]) -> Result<Self, PushRefusal> {
        let mut parts = Vec::with_capacity(infos.len());
        for info in infos {
            let length = announced_bytes(std::slice::from_ref(info))?;
            let (own, rest) =
                bytes.split_at_checked(length).ok_or_else(|| PushFault::EndsInside(info.name.clone()))?;
            parts.push((info, own));
            bytes = rest;
        }
        Ok(Self { parts })
    }

    fn has(&self, name: &str) -> bool {
        self.parts.iter().any(|(info, _)| info.name == name)
    }

    fn find(&self, name: &str) -> Result<(&'a TensorInfo, &'a [u8]), PushRefusal> {
        let found = self.parts.iter().find(|(info, _)| info.name == name);
        found.copied().ok_or_else(|| PushFault::Missing(name.to_owned()).into())
    }

    fn bytes(&self, name: &str) -> Result<&'a [u8], PushRefusal> {
        self.find(name).map(|(_, bytes)| bytes)
    }

    /// The numbers of a tensor, if they are what is allowed.
    fn floats(&self, name: &str, allowed: Allowed) -> Result<Vec<f32>, PushRefusal> {
        let (info, bytes) = self.find(name)?;
        let (floats, _) = bytes.as_chunks();
        let floats: Vec<f32> = floats.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        allowed.check(name, &info.shape, &floats)?;
        Ok(floats)
    }

    /// The tensors of one embedding, if they came along.
    fn embedding(&self, digest: &Digest) -> (Vec<TensorInfo>, Vec<u8>) {
        let own = self
            .parts
            .iter()
            .filter(|(info, _)| embedding_part_of(&info.name).is_some_and(|(owner, _)| owner == *digest));
        let (infos, bytes): (Vec<TensorInfo>, Vec<&[u8]>) =
            own.map(|(info, bytes)| ((*info).clone(), *bytes)).unzip();
        (infos, bytes.concat())
    }
}
