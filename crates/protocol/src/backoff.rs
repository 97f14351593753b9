//! Growing pauses between attempts.

use std::time::Duration;

/// Pauses that double up to a cap, each shortened by a part that the seed decides, so that many callers with seeds of their
/// own do not return at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    cap: Duration,
    seed: u64,
}

impl Backoff {
    /// The first pause is at most `first`, none is longer than `cap`.
    pub fn new(first: Duration, cap: Duration, seed: u64) -> Self {
        Self { next: first.min(cap), cap, seed }
    }

    /// The pause before the next attempt: between half and all of the current length.
    pub fn next_pause(&mut self) -> Duration {
        let length = self.next;
        self.next = (length * 2).min(self.cap);
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let share = (mixed(self.seed) % 1024) as f64 / 1024.0;
        length.mul_f64(0.5 + 0.5 * share)
    }
}

/// The output function of SplitMix64: neighbouring states give unrelated numbers.
fn mixed(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(seed: u64) -> Vec<Duration> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350), seed);
        (0..4).map(|_| backoff.next_pause()).collect()
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        for seed in 0..100 {
            for (pause, longest) in pauses(seed).into_iter().zip([100, 200, 350, 350]) {
                assert!(pause <= Duration::from_millis(longest), "{pause:?} > {longest} ms");
                assert!(pause >= Duration::from_millis(longest / 2), "{pause:?} < {longest}/2 ms");
            }
        }
    }

    #[test]
    fn the_seed_decides_the_pauses() {
        assert_eq!(pauses(7), pauses(7));
        assert_ne!(pauses(7), pauses(8));
    }
}
