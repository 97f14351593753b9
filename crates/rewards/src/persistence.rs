//! Whether to ask a scorer again that has failed: decisions without clock or sleep.
//!
//! 1. A scorer without [patience](crate::Reward::patience) computes here; it would fail again, so it is not asked again.
//! 2. A failure that [may pass](RewardError::may_pass) holds its batch for as long as the scorer's patience. When that is
//!    over the circuit is open: every further batch is one attempt, until one succeeds and closes it.
//! 3. A failure that will not pass by waiting, such as a score that is not finite, gets [`ATTEMPTS`].

use std::time::{Duration, Instant};

use crate::error::RewardError;

/// How often a batch is tried whose failure does not look like an outage.
pub const ATTEMPTS: u32 = 3;

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryVerdict {
    /// Pause, then ask again.
    Retry,
    /// The batch has failed.
    GiveUp,
}

/// What is remembered of a scorer's failures, from batch to batch.
#[derive(Debug, Default)]
pub struct Persistence {
    /// When the outage began that still lasts.
    outage_since: Option<Instant>,
    /// Failures of the batch at hand that were no outage.
    failures: u32,
    is_open: bool,
}

impl Persistence {
    /// Takes note of a new batch.
    pub fn begin_batch(&mut self) {
        self.failures = 0;
        // An outage that was still waited for when its batch was abandoned may be long over.
        if !self.is_open {
            self.outage_since = None;
        }
    }

    /// Takes note of a failure of the batch at hand.
    pub fn failed(&mut self, error: &RewardError, patience: Duration, now: Instant) -> RetryVerdict {
        if patience.is_zero() {
            return RetryVerdict::GiveUp;
        }
        if !error.may_pass() {
            // Whoever answers, however wrongly, is not away.
            (self.outage_since, self.is_open) = (None, false);
            self.failures += 1;
            return if self.failures < ATTEMPTS { RetryVerdict::Retry } else { RetryVerdict::GiveUp };
        }
        let since = *self.outage_since.get_or_insert(now);
        self.is_open |= now.saturating_duration_since(since) >= patience;
        if self.is_open { RetryVerdict::GiveUp } else { RetryVerdict::Retry }
    }

    /// Takes note that the batch at hand was scored.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::RemoteError;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn outage() -> RewardError {
        let problem = Box::new(RemoteError::Unreachable { cause: "connection refused".into() });
        RewardError::Remote { name: "far".to_owned(), url: "http://far".to_owned(), problem }
    }

    fn not_finite() -> RewardError {
        RewardError::NotFinite { name: "far".to_owned(), index: 0, value: f32::NAN }
    }

    #[test]
    fn an_outage_is_waited_for_and_then_every_batch_has_one_attempt() {
        let (mut persistence, start) = (Persistence::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [0, 10, 59] {
            assert_eq!(persistence.failed(&outage(), PATIENCE, at(seconds)), RetryVerdict::Retry);
        }
        for seconds in [60, 61, 62] {
            assert_eq!(persistence.failed(&outage(), PATIENCE, at(seconds)), RetryVerdict::GiveUp);
        }
        persistence.succeeded();
        assert_eq!(
            persistence.failed(&outage(), PATIENCE, at(90)),
            RetryVerdict::Retry,
            "the circuit is closed"
        );
        assert_eq!(persistence.failed(&outage(), PATIENCE, at(149)), RetryVerdict::Retry, "a new outage");
    }

    #[test]
    fn an_answer_that_is_wrong_closes_the_circuit_too() {
        let (mut persistence, start) = (Persistence::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        persistence.failed(&outage(), PATIENCE, at(0));
        assert_eq!(persistence.failed(&outage(), PATIENCE, at(60)), RetryVerdict::GiveUp);
        assert_eq!(persistence.failed(&not_finite(), PATIENCE, at(61)), RetryVerdict::Retry);
        assert_eq!(persistence.failed(&outage(), PATIENCE, at(62)), RetryVerdict::Retry, "a new outage");
    }

    #[test]
    fn an_abandoned_batch_leaves_no_outage_behind() {
        let (mut persistence, start) = (Persistence::default(), Instant::now());
        persistence.begin_batch();
        assert_eq!(persistence.failed(&outage(), PATIENCE, start), RetryVerdict::Retry);
        // Nobody waits for it any more; the next one comes long after.
        persistence.begin_batch();
        let later = start + Duration::from_secs(1000);
        assert_eq!(persistence.failed(&outage(), PATIENCE, later), RetryVerdict::Retry);
        assert_eq!(persistence.failed(&outage(), PATIENCE, later + PATIENCE), RetryVerdict::GiveUp);
        persistence.begin_batch();
        assert_eq!(
            persistence.failed(&outage(), PATIENCE, later + PATIENCE),
            RetryVerdict::GiveUp,
            "still open"
        );
    }

    #[test]
    fn what_waiting_does_not_mend_has_few_attempts_for_each_batch() {
        let (mut persistence, now) = (Persistence::default(), Instant::now());
        for _ in 0..2 {
            persistence.begin_batch();
            let verdicts = [(); 3].map(|()| persistence.failed(&not_finite(), PATIENCE, now));
            assert_eq!(verdicts, [RetryVerdict::Retry, RetryVerdict::Retry, RetryVerdict::GiveUp]);
        }
    }

    #[test]
    fn what_computes_here_is_not_asked_again() {
        let mut persistence = Persistence::default();
        assert_eq!(persistence.failed(&not_finite(), Duration::ZERO, Instant::now()), RetryVerdict::GiveUp);
    }
}
