//! From what a tensor of noise is for to the key that it is drawn by.
//!
//! Two runs of a task give the same bytes because whoever runs it derives the same keys, and the learner rebuilds where a
//! worker's moves went from them. A key of a branch is that of its seed by [`NoiseKey::transition`].

use noise::{NoiseKey, Purpose};

/// Key of the initial noise of a seed of a training prompt, `prompt_slot` being the prompt's place in the iteration.
pub fn training_key(run_seed: u64, iteration: u32, prompt_slot: u32, seed: u32) -> NoiseKey {
    NoiseKey::initial(run_seed, Purpose::Rollout, iteration, prompt_slot, seed)
}

/// Key of the initial noise of an image of a held-out prompt, the same at every version.
pub fn evaluation_key(run_seed: u64, prompt: u32, image: u32) -> NoiseKey {
    NoiseKey::initial(run_seed, Purpose::Evaluation, 0, prompt, image)
}

/// Key of the first values of an adapter's tensor: of its name alone, so that targets may come and go beside it.
pub fn adapter_key(run_seed: u64, name: &str) -> NoiseKey {
    let digest = blake3::hash(name.as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *digest.as_bytes();
    let (slot, seed) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    NoiseKey::initial(run_seed, Purpose::AdapterInit, 0, slot, seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn whatever_differs_in_a_name_differs_in_the_key() {
        let names = [(1, 2, 3, 4), (0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)];
        let mut keys: Vec<NoiseKey> = names
            .iter()
            .map(|&(run, iteration, slot, seed)| training_key(run, iteration, slot, seed))
            .collect();
        keys.extend([evaluation_key(1, 3, 4), evaluation_key(1, 4, 3), evaluation_key(0, 3, 4)]);
        keys.extend([adapter_key(1, "a"), adapter_key(1, "b"), adapter_key(0, "a")]);
        let distinct: HashSet<NoiseKey> = keys.iter().copied().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
