//! Scoring a task while the coordinator hears how that goes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proto::Work;
use service::Membership;

use crate::metrics::RewardMetrics;
use crate::sampling::delivery::Delivery;
use crate::sampling::task::Sampled;
use crate::scoring::{Listener, Scorer, ScoringError};

/// How often a task that is being scored counts as getting on.
const PROGRESS: Duration = Duration::from_secs(5);
/// How long scorers may work on a task without a word before it no longer does: no device takes as long for its images.
const LONGEST_SILENCE: Duration = Duration::from_secs(3600);

/// Tells the coordinator how scoring goes on.
struct ScoringReport {
    membership: Membership,
    metrics: RewardMetrics,
    last_word: Mutex<Instant>,
}

impl ScoringReport {
    fn hear(&self) {
        *self.last_word.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silence(&self) -> Duration {
        self.last_word.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl Listener for ScoringReport {
    fn unreachable(&self, scorer: &str, problem: &str) {
        self.hear();
        self.metrics.failed(scorer);
        self.membership
            .troubled(scorer, format!("tasks wait for reward `{scorer}`, which is asked again: {problem}"));
    }

    fn reachable(&self, scorer: &str) {
        self.hear();
        self.membership.relieved(scorer);
    }
}

/// Scores. Meanwhile the worker does not hang, unless nothing is heard of it for very long: a request to a server has a
/// deadline of its own, and every attempt while a task is held for a server that is away is heard.
///
/// # Errors
/// If an image cannot be scored, or a scorer has died.
pub async fn score(
    scorer: &Scorer,
    sampled: Sampled,
    membership: &Membership,
) -> Result<Delivery, ScoringError> {
    let work = membership.begin_work(Work::Waiting);
    let report = Arc::new(ScoringReport {
        membership: membership.clone(),
        metrics: scorer.metrics().clone(),
        last_word: Mutex::new(Instant::now()),
    });
    let mut scoring = std::pin::pin!(scorer.complete(sampled, report.clone()));
    let mut ticks = tokio::time::interval(PROGRESS);
    loop {
        tokio::select! {
            outcome = &mut scoring => return outcome,
            _ = ticks.tick(), if report.silence() < LONGEST_SILENCE => work.progressed(),
        }
    }
}
