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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;
    use crate::membership::{Members, Patience};
    use proto::{Caller, HeartbeatRequest, JoinRequest, Role};
    use std::time::{Duration, Instant};

    const LONG: Duration = Duration::from_secs(60);

    fn state(home: &std::path::Path) -> RunState {
        let prompts = home.join("prompts.txt");
        std::fs::write(&prompts, "a scene\n").expect("written");
        let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        for split in [&mut config.data.train, &mut config.data.validation, &mut config.data.test] {
            split.clone_from(&prompts);
        }
        config.rewards[0].name = "jpeg_compressibility".to_owned();
        config.resources.learners = 2;
        let patience = Patience { lease: LONG, task_deadline: LONG, opening_deadline: LONG, drain: LONG };
        let members = Members::new("run-a".to_owned(), 1, patience);
        RunState::new(members, Catalog::open(config).expect("prompts"), String::new(), Instant::now())
    }

    fn join(
        state: &mut RunState,
        role: Role,
        (member_id, rank): (&str, u32),
        now: Instant,
    ) -> Option<Caller> {
        let request = JoinRequest {
            role: role.into(),
            member_id: member_id.to_owned(),
            rank,
            address: "a:1".to_owned(),
            process: Some(protocol::process([7; 16], "here", 1 + rank)),
            ..JoinRequest::default()
        };
        state.join(&request, now).expect("joined").identity
    }

    fn beat(state: &mut RunState, caller: &Option<Caller>, broken_ranks: u64, now: Instant) -> Option<u64> {
        let ranks_address = "a:2".to_owned();
        let request = HeartbeatRequest {
            caller: caller.clone(),
            broken_ranks,
            ranks_address,
            ..HeartbeatRequest::default()
        };
        state.heartbeat(request, now).expect("a member").ranks.map(|group| group.epoch)
    }

    #[test]
    fn ranks_say_that_their_group_broke_and_nobody_else_does() {
        let (home, now) = (tempfile::tempdir().expect("a folder"), Instant::now());
        let mut state = state(home.path());
        let ranks = [("learner", 0), ("learner-1", 1)].map(|name| join(&mut state, Role::Learner, name, now));
        let worker = join(&mut state, Role::RolloutWorker, ("a", 0), now);
        for rank in &ranks {
            beat(&mut state, rank, 0, now);
        }
        let first = beat(&mut state, &ranks[0], 0, now).expect("both are there");
        assert_eq!(beat(&mut state, &worker, u64::MAX, now), None);
        assert_eq!(beat(&mut state, &ranks[0], 0, now), Some(first), "a worker breaks no group");
        assert_eq!(beat(&mut state, &ranks[1], first, now), Some(first + 1));
    }
}
