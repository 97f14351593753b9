//! Prompt embeddings by digest, so that each crosses the wire once.
//!
//! The store forgets what has not been asked for longest, and nothing that was asked for during the current or the
//! previous iteration: a task in flight can rely on what its worker was told is here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use models::{Conditioning, ModelError, tensor_bytes};
use proto::TensorInfo;
use protocol::push_tensors::embedding_part_of;
use protocol::{Digest, with_causes};
use tch::{Kind, Tensor};

use crate::exchange::numbers::LARGEST_FEATURE;

/// Bytes above which old embeddings are dropped.
const BUDGET: usize = 256 * 1024 * 1024;

/// The embeddings that are here.
#[derive(Default)]
pub struct Embeddings {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<Digest, Entry>,
    iteration: u32,
}

struct Entry {
    conditioning: Conditioning,
    bytes: usize,
    used: u32,
}

/// An embedding that was checked and is not kept yet.
pub struct Arrived {
    digest: Digest,
    conditioning: Conditioning,
    bytes: usize,
}

/// Why the bytes of an embedding are not kept.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbeddingError {
    /// They are not what their digest says; sending them again may help.
    #[error("{0}")]
    Damaged(String),
    /// They are what was sent, and cannot be an embedding.
    #[error("{0}")]
    Impossible(String),
}

impl From<ModelError> for EmbeddingError {
    fn from(error: ModelError) -> Self {
        Self::Damaged(with_causes(&error))
    }
}

impl Arrived {
    /// Checks the embedding whose tensors are announced in `infos`.
    ///
    /// # Errors
    /// If the tensors are none of an embedding's, have another digest, or hold numbers that no text has.
    pub fn new(digest: Digest, infos: &[TensorInfo], bytes: &[u8]) -> Result<Self, EmbeddingError> {
        let named = tensor_bytes::split(infos, bytes)?;
        let tensors = named.into_iter().map(|(name, tensor): (String, Tensor)| {
            let own_name = embedding_part_of(&name).map(|(_, own_name)| own_name.to_owned());
            (own_name.unwrap_or(name), tensor)
        });
        let conditioning = Conditioning::from_tensors(tensors)?;
        let hex = || blake3::Hash::from(digest).to_hex();
        if conditioning.rows() != 1 {
            let n_rows = conditioning.rows();
            return Err(EmbeddingError::Impossible(format!("an embedding has one row, not {n_rows}")));
        }
        if conditioning.digest() != digest {
            return Err(EmbeddingError::Damaged(format!("embedding {} arrived with another digest", hex())));
        }
        check_numbers(&conditioning)
            .map_err(|problem| EmbeddingError::Impossible(format!("embedding {} {problem}", hex())))?;
        Ok(Self { digest, conditioning, bytes: bytes.len() })
    }
}

/// The network would answer with numbers that are none.
fn check_numbers(conditioning: &Conditioning) -> Result<(), &'static str> {
    let is_bounded = |tensor: &Tensor| {
        // A NaN is the largest of any numbers, and below nothing.
        let largest = tensor.to_kind(Kind::Float).abs().max().double_value(&[]);
        largest <= f64::from(LARGEST_FEATURE)
    };
    if !is_bounded(&conditioning.text) || !conditioning.pooled.iter().all(is_bounded) {
        return Err("holds NaN, infinite or absurdly large features");
    }
    let mask = conditioning.mask();
    let is_mask = mask.min().int64_value(&[]) >= 0 && mask.max().int64_value(&[]) == 1;
    if is_mask {
        Ok(())
    } else {
        Err("has a mask that leaves no token, or holds something else than 0 and 1")
    }
}

impl Embeddings {
    /// Which of `digests` are not here; those that are will stay for a while.
    pub fn missing(&self, digests: &[Digest]) -> Vec<Digest> {
        let mut state = self.state();
        let iteration = state.iteration;
        let mut is_missing = |digest: &Digest| match state.entries.get_mut(digest) {
            Some(entry) => {
                entry.used = iteration;
                false
            }
            None => true,
        };
        digests.iter().filter(|digest| is_missing(digest)).copied().collect()
    }

    /// Keeps an embedding.
    pub fn insert(&self, arrived: Arrived) {
        let Arrived { digest, conditioning, bytes } = arrived;
        let mut state = self.state();
        let used = state.iteration;
        state.entries.insert(digest, Entry { conditioning, bytes, used });
    }

    /// The embedding of a digest; its tensors share their memory with the store's.
    pub fn get(&self, digest: &Digest) -> Option<Conditioning> {
        self.state().entries.get(digest).map(|entry| entry.conditioning.expand(1))
    }

    /// Notes that an iteration begins, and drops old embeddings if there are too many.
    pub fn begin_iteration(&self, iteration: u32) {
        let mut state = self.state();
        state.iteration = iteration;
        let mut total: usize = state.entries.values().map(|entry| entry.bytes).sum();
        let mut old: Vec<(u32, Digest)> = state
            .entries
            .iter()
            .filter(|(_, entry)| entry.used + 1 < iteration)
            .map(|(digest, entry)| (entry.used, *digest))
            .collect();
        old.sort_unstable();
        for (_, digest) in old {
            if total <= BUDGET {
                return;
            }
            total -= state.entries.remove(&digest).map_or(0, |entry| entry.bytes);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// An embedding as it arrives: digest, announcement, bytes.
    fn arrival(value: f64, len: i64) -> (Digest, Vec<TensorInfo>, Vec<u8>) {
        sent(&Conditioning { text: filled(value, &[1, len, 1]), pooled: None, text_mask: None })
    }

    fn filled(value: f64, shape: &[i64]) -> Tensor {
        Tensor::full(shape, value, (Kind::Float, Device::Cpu))
    }

    fn sent(embedding: &Conditioning) -> (Digest, Vec<TensorInfo>, Vec<u8>) {
        let digest = embedding.digest();
        let name = |part| protocol::push_tensors::embedding_part_name(&digest, part);
        let tensors = embedding.tensors();
        let infos =
            tensors.iter().map(|(part, tensor)| tensor_bytes::tensor_info(name(part), tensor).unwrap());
        let bytes = tensors.iter().flat_map(|(_, tensor)| tensor_bytes::to_bytes(tensor)).collect();
        (digest, infos.collect(), bytes)
    }

    fn insert(embeddings: &Embeddings, (digest, infos, bytes): &(Digest, Vec<TensorInfo>, Vec<u8>)) {
        embeddings.insert(Arrived::new(*digest, infos, bytes).unwrap());
    }

    #[test]
    fn an_embedding_is_asked_for_once() {
        let embeddings = Embeddings::default();
        let arrival = arrival(1.0, 4);
        let digest = arrival.0;
        assert_eq!(embeddings.missing(&[digest]), [digest]);
        insert(&embeddings, &arrival);
        assert!(embeddings.missing(&[digest]).is_empty());
        assert_eq!(embeddings.get(&digest).unwrap().digest(), digest);
    }

    #[test]
    fn an_embedding_with_another_digest_is_refused() {
        let (digest, infos, mut bytes) = arrival(1.0, 4);
        bytes[0] ^= 1;
        let damaged = Arrived::new(digest, &infos, &bytes).err().unwrap();
        assert!(matches!(&damaged, EmbeddingError::Damaged(_)), "{damaged}");
        assert!(damaged.to_string().contains("another digest"), "{damaged}");
    }

    #[test]
    fn an_embedding_of_numbers_that_no_text_has_is_refused() {
        let refusal = |text: f64, pooled: f64, mask: &[i64]| {
            let text_mask = Some(Tensor::from_slice(mask).unsqueeze(0));
            let pooled = Some(filled(pooled, &[1, 3]));
            let embedding = Conditioning { text: filled(text, &[1, 2, 4]), pooled, text_mask };
            let (digest, infos, bytes) = sent(&embedding);
            Arrived::new(digest, &infos, &bytes).err()
        };
        assert_eq!(refusal(1.0, -2.0, &[1, 0]), None);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e30] {
            for refused in [refusal(bad, 1.0, &[1, 1]), refusal(1.0, bad, &[1, 1])] {
                let Some(EmbeddingError::Impossible(problem)) = refused else { panic!("{bad}: {refused:?}") };
                assert!(problem.contains("holds NaN, infinite"), "{problem}");
            }
        }
        for mask in [[0, 0], [1, 2], [1, -1]] {
            assert!(matches!(refusal(1.0, 1.0, &mask), Some(EmbeddingError::Impossible(_))), "{mask:?}");
        }
    }

    #[test]
    fn only_old_embeddings_are_dropped_and_only_when_there_are_too_many() {
        let embeddings = Embeddings::default();
        let arrivals = [1.0, 2.0, 3.0].map(|value| arrival(value, BUDGET as i64 / 4 / 2));
        for (iteration, arrival) in arrivals.iter().enumerate() {
            embeddings.begin_iteration(iteration as u32);
            insert(&embeddings, arrival);
        }
        embeddings.begin_iteration(2);
        let [first, second, third] = arrivals.map(|(digest, ..)| digest);
        assert_eq!(embeddings.missing(&[first, second, third]), [first]);
        embeddings.begin_iteration(9);
        assert!(embeddings.missing(&[second, third]).is_empty(), "two fit");
    }
}
