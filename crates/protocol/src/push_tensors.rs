//! The tensors of a push by name, and the hash that stands for a latent: what a worker writes and the learner reads.
//!
//! Which of them a push holds, and their shapes, stand in [`PushSchema`](crate::PushSchema) and with `PushHeader` in
//! `learner.proto`.

/// Trunk states at the trained steps.
pub const STATES: &str = "states";
/// Means of the random moves.
pub const MEANS: &str = "means";
/// Log-probabilities of the random moves.
pub const LOG_PROBS: &str = "log_probs";
/// Hashes of where the random moves went.
pub const NEXT_HASHES: &str = "next_hashes";
/// Where the random moves went; sent only when asked for.
pub const NEXT_LATENTS: &str = "next_latents";
/// Pixels of evaluation images.
pub const IMAGES: &str = "images";
/// Weighted sums of the scores.
pub const REWARDS: &str = "rewards";

const SCORE_PREFIX: &str = "reward.";
const EXTRA_PREFIX: &str = "extra.";
const EMBEDDING_PREFIX: &str = "conditioning.";

/// Bytes of a latent's hash.
pub const HASH_BYTES: usize = 8;

/// The hash by which rebuilt latents are compared: the first bytes of the BLAKE3 of a latent's bytes, little-endian.
pub fn latent_hash(bytes: &[u8]) -> [u8; HASH_BYTES] {
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(&blake3::hash(bytes).as_bytes()[..HASH_BYTES]);
    hash
}

/// Name of the raw scores of a scorer.
pub fn score_name(scorer: &str) -> String {
    format!("{SCORE_PREFIX}{scorer}")
}

/// The most that one reward may tell of images besides their scores.
pub const MOST_EXTRAS: usize = 64;
/// The longest name of it, in bytes.
pub const LONGEST_EXTRA_KEY: usize = 100;

/// Name of what a reward tells of images besides their scores: `[images]`, NaN where `key` does not apply.
pub fn extra_name(reward: &str, key: &str) -> String {
    format!("{EXTRA_PREFIX}{reward}/{key}")
}

/// The reward and the key of such a tensor; names of rewards have no slash, keys may.
pub fn extra_of(tensor: &str) -> Option<(&str, &str)> {
    tensor.strip_prefix(EXTRA_PREFIX)?.split_once('/')
}

/// Name of a tensor of the embedding with that digest.
pub fn embedding_part_name(digest: &[u8; 32], part: &str) -> String {
    format!("{EMBEDDING_PREFIX}{}.{part}", blake3::Hash::from(*digest).to_hex())
}

/// The digest of the embedding that a tensor is of, and which of its tensors it is.
pub fn embedding_part_of(tensor: &str) -> Option<([u8; 32], &str)> {
    let (hex, part) = tensor.strip_prefix(EMBEDDING_PREFIX)?.split_once('.')?;
    Some((blake3::Hash::from_hex(hex).ok()?.into(), part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composed_names_are_taken_apart_again() {
        assert_eq!(extra_of(&extra_name("hpsv2.1", "color/red")), Some(("hpsv2.1", "color/red")));
        let digest = [7; 32];
        assert_eq!(embedding_part_of(&embedding_part_name(&digest, "text")), Some((digest, "text")));
        for other in [REWARDS, "conditioning.text", "conditioning.zz.text"] {
            assert!(extra_of(other).is_none() && embedding_part_of(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_hash_is_the_start_of_blake3() {
        assert_eq!(latent_hash(b""), [0xaf, 0x13, 0x49, 0xb9, 0xf5, 0xf9, 0xa1, 0xa6]);
    }
}
