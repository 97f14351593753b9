//! Pauses of this process, unlike those of others.

use protocol::Backoff;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Pauses from `first` up to `cap`, with a seed that nobody else has.
pub fn backoff(first: Duration, cap: Duration) -> Backoff {
    // Keys of a hash map are the one source of randomness in the standard library; nothing here need be secret.
    Backoff::new(first, cap, RandomState::new().build_hasher().finish())
}
