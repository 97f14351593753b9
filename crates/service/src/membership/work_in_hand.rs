//! A piece of a member's work; what hangs is told from what takes long by how long it has stood still.

use super::link::Link;
use proto::Work;
use std::sync::Arc;
use std::time::Instant;

/// A piece of work in hand, until it is dropped.
pub struct WorkInHand {
    link: Arc<Link>,
    number: u64,
}

impl WorkInHand {
    pub(super) fn begin(link: Arc<Link>, work: Work) -> Self {
        let number = link.state().in_hand.begin(work, Instant::now());
        Self { link, number }
    }

    /// Notes that the work got somewhere; a member that does not call this for long is taken for hung.
    pub fn progressed(&self) {
        self.link.state().in_hand.progressed(self.number, Instant::now());
    }
}

impl Drop for WorkInHand {
    fn drop(&mut self) {
        self.link.state().in_hand.end(self.number);
    }
}
