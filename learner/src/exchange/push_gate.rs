//! How many pushes there may be at a time, so that the memory for them is bounded.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tonic::Status;

/// Pushes whose bytes are received and checked at a time.
const RECEIVED_AT_ONCE: usize = 8;
/// Pushes that are received or wait for that; the network keeps a few MiB of each.
const ADMITTED_AT_ONCE: usize = 128;

/// Lets pushes in: first those that have something wanted to bring, then those whose bytes flow.
#[derive(Debug)]
pub struct PushGate {
    admitted: Semaphore,
    received: Arc<Semaphore>,
    /// How many of each there may be.
    limits: (usize, usize),
}

impl Default for PushGate {
    fn default() -> Self {
        Self::new(ADMITTED_AT_ONCE, RECEIVED_AT_ONCE)
    }
}

impl PushGate {
    /// A gate for so many pushes at a time, and among them so many whose bytes are received.
    pub fn new(n_admitted: usize, n_received: usize) -> Self {
        let (admitted, received) = (Semaphore::new(n_admitted), Arc::new(Semaphore::new(n_received)));
        Self { admitted, received, limits: (n_admitted, n_received) }
    }

    /// Lets a push wait for its turn, once its header was checked.
    ///
    /// # Errors
    /// If too many do.
    pub fn admit(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.admitted
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("too many outcomes are being pushed; try again later"))
    }

    /// Waits for a push's turn, once its first bytes are here: who sends none takes nobody's turn. The turn goes with the
    /// bytes wherever they are checked, also when the call that brought them is gone.
    ///
    /// # Errors
    /// None while the gate is there.
    pub async fn turn(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.received.clone().acquire_owned().await.map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Pushes that were let in, and those that are received.
    pub fn n_in_progress(&self) -> (usize, usize) {
        (self.limits.0 - self.n_free_places(), self.limits.1 - self.n_free_turns())
    }

    /// Pushes that could be let in beside those that are.
    pub fn n_free_places(&self) -> usize {
        self.admitted.available_permits()
    }

    /// Pushes that could be received beside those that are.
    pub fn n_free_turns(&self) -> usize {
        self.received.available_permits()
    }
}
