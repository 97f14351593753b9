//! Growing pauses between attempts.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Pauses that double up to a cap, each shortened by a random part so that many callers do not return at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    cap: Duration,
}

impl Backoff {
    /// The first pause is at most `first`, none is longer than `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { next: first.min(cap), cap }
    }

    /// The pause before the next attempt: between half and all of the current length.
    pub fn next_pause(&mut self) -> Duration {
        let length = self.next;
        self.next = (length * 2).min(self.cap);
        // Keys of a hash map are the one source of randomness in the standard library; nothing here need be secret.
        let random = RandomState::new().build_hasher().finish();
        let share = (random % 1024) as f64 / 1024.0;
        length.mul_f64(0.5 + 0.5 * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        for longest in [100, 200, 350, 350] {
            let pause = backoff.next_pause();
            assert!(pause <= Duration::from_millis(longest), "{pause:?} > {longest} ms");
            assert!(pause >= Duration::from_millis(longest / 2), "{pause:?} < {longest}/2 ms");
        }
    }
}
