//! What the state decides of weights that workers send to each other.

use super::RunState;
use crate::events::Event;
use crate::membership::Refusal;
use crate::weights_relay::{Seeker, SourceAddress, WeightsTold};
use proto::seek_weights_reply::Source;
use proto::{LearnerSource, Role, SeekWeightsRequest, WeightsStanding, WorkerSource};
use protocol::{MOST_FAILED_SOURCES, MOST_HELD, WeightsName, WeightsSource};
use service::shown;
use std::time::Instant;

/// Characters of a member's name, of an address and of a reason that are kept.
const LONGEST_NAME: usize = 100;
const LONGEST_ADDRESS: usize = 300;
const LONGEST_REASON: usize = 300;

impl RunState {
    /// Tells a worker from whom to fetch weights; `None` while all sources have enough to do. Like waiting for a task, asking is
    /// no sign of life.
    ///
    /// # Errors
    /// If the sender is fenced, no worker, or names no weights.
    pub fn seek_weights(
        &mut self,
        request: &SeekWeightsRequest,
        now: Instant,
    ) -> Result<Option<Source>, Refusal> {
        let member = self.members.check(request.caller.as_ref())?;
        if member.applicant.role != Role::RolloutWorker {
            return Err(Refusal::Malformed("only rollout workers look for weights"));
        }
        let name = request.weights.as_ref().and_then(|id| WeightsName::try_from(id).ok());
        let name = name.ok_or(Refusal::Malformed("which weights are looked for?"))?;
        let failed = request.failed.iter().take(MOST_FAILED_SOURCES);
        let failed = failed
            .map(|failed| (shown(&failed.member_id, LONGEST_NAME), shown(&failed.reason, LONGEST_REASON)));
        let seeker = Seeker { worker: member.applicant.member_id.clone(), name, failed: failed.collect() };
        for (source, reason) in self.relay.new_failures(&seeker) {
            let (member, source, reason) = (seeker.worker.clone(), source.clone(), reason.clone());
            tracing::warn!(member, source, "weights did not come from a worker: {reason}");
            self.events.note(Event::WeightsSourceFailed { weights: name, member, source, reason });
        }
        let source = self.relay.seek(&seeker, self.members.n_workers() as usize, now);
        Ok(source.map(|source| match source {
            SourceAddress::Learner => Source::Learner(LearnerSource {}),
            SourceAddress::Worker { member_id, address } => {
                Source::Worker(WorkerSource { member_id, address })
            }
        }))
    }

    /// Takes a worker's word for the weights that it has.
    pub(super) fn note_weights(&mut self, member_id: &str, standing: &WeightsStanding, now: Instant) {
        let told = WeightsTold {
            address: shown(&standing.address, LONGEST_ADDRESS),
            held: standing.held.iter().take(MOST_HELD).flat_map(WeightsName::try_from).collect(),
            fetching: standing.fetching.as_ref().and_then(|id| WeightsName::try_from(id).ok()),
        };
        let Some(arrived) = self.relay.told(member_id, &told, now) else { return };
        let (cause, source) = match arrived.source {
            WeightsSource::Learner => ("learner", "learner".to_owned()),
            WeightsSource::Worker(source) => ("worker", source),
        };
        let (weights, member) = (arrived.name, member_id.to_owned());
        self.events.note(Event::WeightsFetched { weights, member, source, cause });
    }

    /// Grows with all that may give a worker a source that waits for one.
    pub fn n_relay_changes(&self) -> u64 {
        self.relay.n_changes()
    }
}
