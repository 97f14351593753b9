//! How far the run is and what befell it, as the coordinator and its user are told.

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use proto::{Progress, Work};
use service::metrics::Counts;
use service::{Membership, WorkInHand};
use tokio::sync::watch;

/// The newest progress and all notices; the training thread writes them, the reports read them. Whether training gets on is
/// told by heartbeats, so that a learner whose thread hangs is noticed.
pub struct ProgressBoard {
    progress: Mutex<Progress>,
    notices: Mutex<Vec<String>>,
    changes: watch::Sender<u64>,
    watched: Mutex<Watched>,
    /// Time in each phase that is over, and since when the one of now is.
    phases: Mutex<(Counts<1>, Instant)>,
    /// Checkpoints that could not be written.
    pub failed_checkpoints: Counts<0>,
}

/// What heartbeats tell of the training thread; nothing without a membership.
#[derive(Default)]
struct Watched {
    membership: Option<Membership>,
    /// What it does, unless it waits for workers.
    work: Option<WorkInHand>,
}

impl Default for ProgressBoard {
    fn default() -> Self {
        let known = ["sampling", "training", "evaluating", "checkpointing"].map(|phase| [phase]);
        Self {
            progress: Mutex::default(),
            notices: Mutex::default(),
            changes: watch::Sender::new(0),
            watched: Mutex::default(),
            phases: Mutex::new((Counts::new(["phase"], known), Instant::now())),
            failed_checkpoints: Counts::new([], [[]]),
        }
    }
}

impl ProgressBoard {
    /// Changes some of it.
    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.progress));
        self.changes.send_modify(|count| *count += 1);
    }

    /// From now on heartbeats tell for how long the training thread, which opens its model first, has stood still.
    pub fn watched_by(&self, membership: Membership) {
        let work = Some(membership.begin_work(Work::Opening));
        *lock(&self.watched) = Watched { membership: Some(membership), work };
    }

    /// From now on they do not.
    pub fn unwatched(&self) {
        *lock(&self.watched) = Watched::default();
    }

    /// The training thread has opened its model, and computes.
    pub fn opened(&self) {
        self.waits();
        self.gets_on();
    }

    /// The training thread got somewhere.
    pub fn gets_on(&self) {
        let mut watched = lock(&self.watched);
        if let Some(work) = &watched.work {
            return work.progressed();
        }
        let work = watched.membership.as_ref().map(|own| own.begin_work(Work::Computing));
        watched.work = work;
    }

    /// The training thread waits for workers, which may take any time.
    pub fn waits(&self) {
        lock(&self.watched).work = None;
    }

    /// Tells what the learner is doing, if that is news.
    pub fn phase(&self, phase: &str) {
        self.gets_on();
        if lock(&self.progress).phase != phase {
            self.phase_seconds();
            self.update(|progress| phase.clone_into(&mut progress.phase));
        }
    }

    /// Seconds that were spent in each phase until now; what came before the first counts for none.
    pub fn phase_seconds(&self) -> Counts<1> {
        let phase = self.get().phase;
        let mut phases = lock(&self.phases);
        let (seconds, since) = &mut *phases;
        let now = Instant::now();
        let spent = now.saturating_duration_since(std::mem::replace(since, now));
        if !phase.is_empty() {
            seconds.add([&phase], spent.as_secs_f64());
        }
        seconds.clone()
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

#[cfg(test)]
mod tests {
    use super::*;
    use service::metrics::Exposition;

    #[test]
    fn time_is_counted_for_the_phase_in_which_it_passes() {
        let board = ProgressBoard::default();
        let seconds = |phase: &str| -> f64 {
            let mut exposition = Exposition::default();
            exposition.counts("tempflow_phase_seconds_total", "Time", &board.phase_seconds());
            let text = exposition.text();
            let line = format!("tempflow_phase_seconds_total{{phase=\"{phase}\"}} ");
            text.lines().find_map(|found| found.strip_prefix(&line)).unwrap().parse().unwrap()
        };
        assert_eq!(seconds("sampling"), 0.0);
        board.phase("sampling");
        let deadline = Instant::now() + std::time::Duration::from_secs(120);
        while seconds("sampling") == 0.0 {
            assert!(Instant::now() < deadline, "no time passes");
        }
        board.phase("training");
        let before = seconds("sampling");
        while seconds("training") == 0.0 {
            assert!(Instant::now() < deadline, "no time passes");
        }
        assert_eq!(seconds("sampling"), before, "it is over");
    }
}
