//! How long each piece of a member's work has stood still; what hangs is told from what takes long by this.

use super::link::Link;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// When each piece of work in hand last got anywhere.
#[derive(Default)]
pub(super) struct WorkClocks {
    progressed: BTreeMap<u64, Instant>,
    n_begun: u64,
}

/// A piece of work in hand, until it is dropped.
pub struct WorkInHand {
    link: Arc<Link>,
    number: u64,
}

impl WorkClocks {
    /// How long the piece that has stood still for longest has; nothing in hand stands still for no time.
    pub(super) fn idle(&self, now: Instant) -> Duration {
        let oldest = self.progressed.values().min();
        oldest.map_or(Duration::ZERO, |progressed| now.saturating_duration_since(*progressed))
    }

    fn begin(&mut self, now: Instant) -> u64 {
        self.n_begun += 1;
        self.progressed.insert(self.n_begun, now);
        self.n_begun
    }
}

impl WorkInHand {
    pub(super) fn begin(link: Arc<Link>) -> Self {
        let number = link.state().work.begin(Instant::now());
        Self { link, number }
    }

    /// Notes that the work got somewhere; a worker that does not call this for long is taken for hung.
    pub fn progressed(&self) {
        self.link.state().work.progressed.insert(self.number, Instant::now());
    }
}

impl Drop for WorkInHand {
    fn drop(&mut self) {
        self.link.state().work.progressed.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_piece_that_stands_still_for_longest_counts() {
        let (mut clocks, start) = (WorkClocks::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(clocks.idle(after(9)), Duration::ZERO, "nothing is in hand");
        let sampling = clocks.begin(after(0));
        let finishing = clocks.begin(after(1));
        clocks.progressed.insert(sampling, after(5));
        assert_eq!(clocks.idle(after(6)), Duration::from_secs(5), "sampling goes on, finishing hangs");
        clocks.progressed.remove(&finishing);
        assert_eq!(clocks.idle(after(6)), Duration::from_secs(1));
    }
}
