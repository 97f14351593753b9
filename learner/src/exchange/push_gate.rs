//! How many pushes there may be at a time, so that the memory for them is bounded.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use service::shown;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tonic::Status;

/// Pushes whose bytes are received and checked at a time.
const RECEIVED_AT_ONCE: usize = 8;
/// Pushes that are received or wait for that; the network keeps a few MiB of each.
const ADMITTED_AT_ONCE: usize = 128;
/// And of these, of one worker: it has two tasks, and may try again before an earlier try is noticed to have broken.
const ADMITTED_OF_WORKER: usize = 4;
/// Characters by which workers are told apart.
const LONGEST_NAME: usize = 100;

/// Lets pushes in: first those that have something wanted to bring, then those whose bytes flow.
#[derive(Debug)]
pub struct PushGate {
    admitted: Semaphore,
    received: Arc<Semaphore>,
    by_worker: Mutex<BTreeMap<String, usize>>,
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
        Self { admitted, received, by_worker: Mutex::default(), limits: (n_admitted, n_received) }
    }

    /// Lets a push of a worker wait for its turn, once its header was checked.
    ///
    /// # Errors
    /// If too many do, or too many of this worker.
    pub fn admit(&self, worker: &str) -> Result<Admission<'_>, Status> {
        let too_many = |whose| {
            Status::resource_exhausted(format!("too many outcomes{whose} are being pushed; try again later"))
        };
        let place = self.admitted.try_acquire().map_err(|_| too_many(""))?;
        let worker = shown(worker, LONGEST_NAME);
        let mut by_worker = self.by_worker();
        let n_admitted = by_worker.entry(worker.clone()).or_default();
        if *n_admitted >= ADMITTED_OF_WORKER {
            return Err(too_many(" of this worker"));
        }
        *n_admitted += 1;
        Ok(Admission { gate: self, worker, _place: place })
    }

    fn by_worker(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.by_worker.lock().unwrap_or_else(PoisonError::into_inner)
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

/// The place of a push that was let in; free again once this is dropped.
#[derive(Debug)]
pub struct Admission<'a> {
    gate: &'a PushGate,
    worker: String,
    _place: SemaphorePermit<'a>,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let mut by_worker = self.gate.by_worker();
        if let Some(n_admitted) = by_worker.get_mut(&self.worker) {
            *n_admitted -= 1;
            if *n_admitted == 0 {
                by_worker.remove(&self.worker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_leaves_places_to_others() {
        let gate = PushGate::default();
        let mut admissions: Vec<_> =
            (0..ADMITTED_OF_WORKER).map(|_| gate.admit("a").expect("a place")).collect();
        let refused = gate.admit("a").expect_err("too many of one");
        assert!(refused.message().contains("of this worker"), "{}", refused.message());
        let _other = gate.admit("b").expect("a place");
        admissions.pop();
        drop(gate.admit("a").expect("one has ended"));
        drop(admissions);
        assert_eq!(gate.by_worker().keys().collect::<Vec<_>>(), ["b"], "nothing else is remembered");
    }
}
