//! How many members count as what, kept so that nobody need count them.

use super::Member;
use proto::Role;
use std::collections::BTreeMap;

/// Numbers that every message asks for.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Members that are there.
    pub(super) n_living: usize,
    /// Rollout workers that are there.
    pub(super) n_workers: u32,
    /// Of them, those that are not asked to leave.
    pub(super) n_taking_tasks: usize,
    /// The member ids of the learners that are there, by rank.
    pub(super) learners: BTreeMap<u32, String>,
}

impl Tally {
    /// Counts a member that is new or has changed.
    pub(super) fn add(&mut self, member: &Member) {
        if !member.is_living() {
            return;
        }
        self.n_living += 1;
        match member.applicant.role {
            Role::Learner => {
                self.learners.insert(member.applicant.rank, member.applicant.member_id.clone());
            }
            Role::RolloutWorker => {
                self.n_workers += 1;
                self.n_taking_tasks += usize::from(!member.draining);
            }
            Role::Unspecified => {}
        }
    }

    /// Takes back what [`Self::add`] did for this member as it is.
    pub(super) fn remove(&mut self, member: &Member) {
        if !member.is_living() {
            return;
        }
        self.n_living -= 1;
        match member.applicant.role {
            Role::Learner => {
                self.learners.remove(&member.applicant.rank);
            }
            Role::RolloutWorker => {
                self.n_workers -= 1;
                self.n_taking_tasks -= usize::from(!member.draining);
            }
            Role::Unspecified => {}
        }
    }
}
