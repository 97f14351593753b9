//! A worker's search for a source of one version: whom it asks next, and when it is left to the learner.

use super::MOST_FAILED_SOURCES;
use proto::seek_weights_reply::Source;
use proto::{FailedSource, SeekWeightsReply, WorkerSource};

/// How often the coordinator may say that all sources are busy before the learner is asked regardless. Each of these answers takes
/// as long as the worker waits for one, so that this is reached only where streams neither end nor fail.
const MOST_WAITS: u32 = 60;

/// What a worker does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SearchStep {
    /// Ask the coordinator for a source.
    Seek,
    /// Fetch from the learner.
    FromLearner,
    /// Fetch from this worker, and check it against the learner's manifest.
    FromWorker(WorkerSource),
}

/// A search from its beginning until the weights are there.
#[derive(Clone, Debug, Default)]
pub struct SourceSearch {
    failed: Vec<FailedSource>,
    n_waits: u32,
}

impl SourceSearch {
    /// Workers that have failed this one, for the coordinator.
    pub fn failed(&self) -> &[FailedSource] {
        &self.failed
    }

    /// How the search begins, and goes on after a source has failed.
    pub fn next(&self) -> SearchStep {
        let is_left_to_learner = self.failed.len() >= MOST_FAILED_SOURCES || self.n_waits >= MOST_WAITS;
        if is_left_to_learner { SearchStep::FromLearner } else { SearchStep::Seek }
    }

    /// What follows from the coordinator's answer. One that does not answer keeps nobody from the learner.
    pub fn on_reply(&mut self, reply: Option<SeekWeightsReply>) -> SearchStep {
        let Some(reply) = reply else { return SearchStep::FromLearner };
        match reply.source {
            Some(Source::Learner(_)) => SearchStep::FromLearner,
            // Whoever fails once is not asked again, whatever the coordinator says.
            Some(Source::Worker(worker)) if self.has_failed(&worker.member_id) => SearchStep::FromLearner,
            Some(Source::Worker(worker)) => SearchStep::FromWorker(worker),
            None => {
                self.n_waits += 1;
                self.next()
            }
        }
    }

    /// A worker did not send the weights, or not these.
    pub fn on_failure(&mut self, source: &WorkerSource, reason: String) {
        self.failed.push(FailedSource { member_id: source.member_id.clone(), reason });
    }

    fn has_failed(&self, member_id: &str) -> bool {
        self.failed.iter().any(|failed| failed.member_id == member_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::LearnerSource;

    fn worker(number: usize) -> WorkerSource {
        WorkerSource { member_id: format!("worker-{number}"), address: format!("10.0.0.{number}:7100") }
    }

    fn reply(source: Source) -> Option<SeekWeightsReply> {
        Some(SeekWeightsReply { source: Some(source) })
    }

    #[test]
    fn the_coordinator_says_whom_to_ask_and_one_that_is_away_leaves_the_learner() {
        let mut search = SourceSearch::default();
        assert_eq!(search.next(), SearchStep::Seek);
        assert_eq!(search.on_reply(reply(Source::Worker(worker(1)))), SearchStep::FromWorker(worker(1)));
        assert_eq!(search.on_reply(reply(Source::Learner(LearnerSource {}))), SearchStep::FromLearner);
        assert_eq!(search.on_reply(None), SearchStep::FromLearner);
    }

    #[test]
    fn a_source_that_failed_is_told_of_and_never_asked_again() {
        let mut search = SourceSearch::default();
        search.on_failure(&worker(1), "it was cut".to_owned());
        assert_eq!(search.next(), SearchStep::Seek);
        assert_eq!((&*search.failed()[0].member_id, &*search.failed()[0].reason), ("worker-1", "it was cut"));
        assert_eq!(search.on_reply(reply(Source::Worker(worker(1)))), SearchStep::FromLearner);
        assert_eq!(search.on_reply(reply(Source::Worker(worker(2)))), SearchStep::FromWorker(worker(2)));
    }

    #[test]
    fn after_enough_failures_or_answers_without_a_source_the_learner_is_asked() {
        let mut search = SourceSearch::default();
        (0..MOST_FAILED_SOURCES).for_each(|number| search.on_failure(&worker(number), String::new()));
        assert_eq!(search.next(), SearchStep::FromLearner);
        let mut search = SourceSearch::default();
        for _ in 1..MOST_WAITS {
            assert_eq!(search.on_reply(Some(SeekWeightsReply { source: None })), SearchStep::Seek);
        }
        assert_eq!(search.on_reply(Some(SeekWeightsReply { source: None })), SearchStep::FromLearner);
    }
}
