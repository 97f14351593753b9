//! How far the run is, as the coordinator and its user are told.

use std::sync::{Mutex, MutexGuard};

use proto::Progress;
use tokio::sync::watch;

/// The newest progress; the training thread writes it, the reports read it.
pub struct ProgressBoard {
    progress: Mutex<Progress>,
    changes: watch::Sender<u64>,
}

impl Default for ProgressBoard {
    fn default() -> Self {
        Self { progress: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl ProgressBoard {
    /// Changes some of it.
    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.progress());
        self.changes.send_modify(|count| *count += 1);
    }

    /// Tells what the learner is doing, if that is news.
    pub fn phase(&self, phase: &str) {
        if self.progress().phase != phase {
            self.update(|progress| phase.clone_into(&mut progress.phase));
        }
    }

    /// The newest.
    pub fn get(&self) -> Progress {
        self.progress().clone()
    }

    /// Changes whenever the progress does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
