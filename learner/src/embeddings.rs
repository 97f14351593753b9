//! Prompt embeddings by digest, so that each crosses the wire once.
//!
//! The store forgets what has not been asked for longest, and nothing that was asked for during the current or the
//! previous iteration: a task in flight can rely on what its worker was told is here.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use models::push_tensors::embedding_part_of;
use models::{Conditioning, tensor_bytes};
use proto::TensorInfo;
use tch::Tensor;

use crate::outcome::Digest;

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

    /// Keeps the embedding whose tensors are announced in `infos`, if its digest is what they claim.
    ///
    /// # Errors
    /// If the tensors are none of an embedding's, or have another digest.
    pub fn insert(&self, digest: Digest, infos: &[TensorInfo], bytes: &[u8]) -> Result<(), String> {
        let named = tensor_bytes::split(infos, bytes).map_err(|e| e.to_string())?;
        let tensors = named.into_iter().map(|(name, tensor): (String, Tensor)| {
            let own_name = embedding_part_of(&name).map(|(_, own_name)| own_name.to_owned());
            (own_name.unwrap_or(name), tensor)
        });
        let conditioning = Conditioning::from_tensors(tensors).map_err(|e| e.to_string())?;
        if conditioning.rows() != 1 {
            return Err(format!("an embedding has one row, not {}", conditioning.rows()));
        }
        if conditioning.digest() != digest {
            return Err(format!(
                "embedding {} arrived with another digest",
                blake3::Hash::from(digest).to_hex()
            ));
        }
        let mut state = self.state();
        let used = state.iteration;
        state.entries.insert(digest, Entry { conditioning, bytes: bytes.len(), used });
        Ok(())
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
    use tch::{Device, Kind};

    use super::*;

    /// An embedding as it arrives: digest, announcement, bytes.
    fn arrival(value: f64, len: i64) -> (Digest, Vec<TensorInfo>, Vec<u8>) {
        let text = Tensor::full([1, len], value, (Kind::Float, Device::Cpu));
        let bytes = tensor_bytes::to_bytes(&text);
        let embedding = Conditioning { text, pooled: None, text_mask: None };
        let name = models::push_tensors::embedding_part_name(&embedding.digest(), "text");
        (embedding.digest(), vec![tensor_bytes::tensor_info(name, &embedding.text).unwrap()], bytes)
    }

    #[test]
    fn an_embedding_is_asked_for_once() {
        let embeddings = Embeddings::default();
        let (digest, infos, bytes) = arrival(1.0, 4);
        assert_eq!(embeddings.missing(&[digest]), [digest]);
        embeddings.insert(digest, &infos, &bytes).unwrap();
        assert!(embeddings.missing(&[digest]).is_empty());
        assert_eq!(embeddings.get(&digest).unwrap().digest(), digest);
    }

    #[test]
    fn an_embedding_with_another_digest_is_refused() {
        let embeddings = Embeddings::default();
        let (digest, infos, mut bytes) = arrival(1.0, 4);
        bytes[0] ^= 1;
        assert!(embeddings.insert(digest, &infos, &bytes).unwrap_err().contains("another digest"));
        assert!(embeddings.get(&digest).is_none());
    }

    #[test]
    fn only_old_embeddings_are_dropped_and_only_when_there_are_too_many() {
        let embeddings = Embeddings::default();
        let arrivals = [1.0, 2.0, 3.0].map(|value| arrival(value, BUDGET as i64 / 4 / 2));
        for (iteration, (digest, infos, bytes)) in arrivals.iter().enumerate() {
            embeddings.begin_iteration(iteration as u32);
            embeddings.insert(*digest, infos, bytes).unwrap();
        }
        embeddings.begin_iteration(2);
        let [first, second, third] = arrivals.map(|(digest, ..)| digest);
        assert_eq!(embeddings.missing(&[first, second, third]), [first]);
        embeddings.begin_iteration(9);
        assert!(embeddings.missing(&[second, third]).is_empty(), "two fit");
    }
}
