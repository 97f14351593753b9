//! The ranks of the learner: where they are, and which group they are to form.

use super::RunState;
use crate::events::Event;
use crate::membership::{Member, Refusal};
use crate::rank_groups::LivingRank;
use crate::tasks::WantedTasks;
use proto::{RankGroup, Wanted};
use protocol::kind_from_wire;

impl RunState {
    /// Where workers reach the learner, by rank; empty while that rank is not there.
    pub(super) fn learner_addresses(&self) -> Vec<String> {
        let address = |member: Option<&Member>| member.map(|member| member.applicant.address.clone());
        self.members.learners().map(|member| address(member).unwrap_or_default()).collect()
    }

    /// What a rank says that it wants.
    pub(super) fn wanted(&self, set: &Wanted, rank: u32) -> Result<WantedTasks, Refusal> {
        let kind = kind_from_wire(set.kind()).ok_or(Refusal::Malformed("tasks of which kind are wanted?"))?;
        if set.version != self.catalog.version(kind, set.iteration) {
            return Err(Refusal::Malformed(
                "the learner wants tasks with another version than the config says",
            ));
        }
        if set.rank != rank {
            return Err(Refusal::Malformed("a rank of the learner wants tasks for another rank"));
        }
        let n_tasks = self.catalog.n_tasks(kind);
        let open_below = set.open_below.unwrap_or(n_tasks);
        Ok(WantedTasks { iteration: set.iteration, kind, n_tasks, held: set.held.clone(), open_below })
    }

    /// Whether a member is the rank of the learner that writes.
    pub(super) fn is_first_learner(&self, member_id: &str) -> bool {
        let first = self.members.learners().next().flatten();
        first.is_some_and(|member| member.applicant.member_id == member_id)
    }

    /// The group that all ranks are to form; none while one is missing, and where there is but one.
    pub(super) fn rank_group(&mut self) -> Option<RankGroup> {
        let is_reached = |member: &&Member| !member.ranks_address.is_empty();
        let ranks: Option<Vec<&Member>> =
            self.members.learners().map(|member| member.filter(is_reached)).collect();
        let ranks = ranks.filter(|ranks| ranks.len() > 1)?;
        let living = ranks.iter().map(|member| LivingRank {
            incarnation: member.incarnation,
            nonce: &member.applicant.process.nonce,
            address: &member.ranks_address,
        });
        let (group, cause) = self.rank_groups.group(&living.collect::<Vec<_>>());
        if let Some(cause) = cause {
            let members = ranks.iter().map(|member| member.applicant.member_id.clone()).collect();
            self.events.note(Event::RanksGrouped { epoch: group.epoch, cause, members });
        }
        Some(group)
    }
}
