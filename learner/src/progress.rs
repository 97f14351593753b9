//! How far the run is and what befell it, as the coordinator and its user are told.

use std::sync::{Mutex, MutexGuard};

use proto::Progress;
use tokio::sync::watch;

/// The newest progress and all notices; the training thread writes them, the reports read them.
pub struct ProgressBoard {
    progress: Mutex<Progress>,
    notices: Mutex<Vec<String>>,
    changes: watch::Sender<u64>,
}

impl Default for ProgressBoard {
    fn default() -> Self {
        Self { progress: Mutex::default(), notices: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl ProgressBoard {
    /// Changes some of it.
    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.progress));
        self.changes.send_modify(|count| *count += 1);
    }

    /// Tells what the learner is doing, if that is news.
    pub fn phase(&self, phase: &str) {
        if lock(&self.progress).phase != phase {
            self.update(|progress| phase.clone_into(&mut progress.phase));
        }
    }

    /// Tells the user what does not end the run but must not stay in a log.
    pub fn notice(&self, notice: String) {
        tracing::warn!("{notice}");
        lock(&self.notices).push(notice);
        self.changes.send_modify(|count| *count += 1);
    }

    /// All notices since this process was started.
    pub fn notices(&self) -> Vec<String> {
        lock(&self.notices).clone()
    }

    /// The newest.
    pub fn get(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// Changes whenever the progress does, and with every notice.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
