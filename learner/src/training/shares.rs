//! Who has which training tasks of an iteration, the same in every one.

use std::ops::Range;

use collective::{CollectiveError, TreePlan};
use config::RunConfig;

/// The updates of an iteration, the shards of their gradients, and which of them are this rank's.
#[derive(Clone, Debug)]
pub struct Shares {
    rank: usize,
    ends: Vec<usize>,
    shards: Vec<usize>,
    tree: TreePlan,
    /// Tasks whose rewards are compared with each other, one group after the other.
    compared: usize,
}

impl Shares {
    /// Those of a rank in a run.
    ///
    /// # Errors
    /// If the run has more learners than shards.
    pub fn of(config: &RunConfig, rank: usize) -> Result<Self, CollectiveError> {
        Ok(Self {
            rank,
            ends: config.update_ends(),
            shards: config.shards_of_tasks(),
            tree: TreePlan::even(config.training.gradient_shards, config.resources.learners)?,
            compared: config.tasks_compared().max(1),
        })
    }

    /// Updates of an iteration.
    pub fn n_updates(&self) -> usize {
        self.ends.len()
    }

    /// The tasks of an update of the iteration.
    pub fn tasks_of(&self, update: usize) -> Range<usize> {
        let start = if update == 0 { 0 } else { self.ends[update - 1] };
        start..self.ends[update]
    }

    /// The tasks that `task` is compared with, itself included.
    pub fn compared_with(&self, task: usize) -> Range<usize> {
        let start = task / self.compared * self.compared;
        start..(start + self.compared).min(self.shards.len())
    }

    /// The shard that a task's gradient adds to.
    pub fn shard_of(&self, task: usize) -> usize {
        self.shards[task]
    }

    /// Whether a task is this rank's own.
    pub fn is_own(&self, task: usize) -> bool {
        self.rank_of(task) == Some(self.rank)
    }

    fn rank_of(&self, task: usize) -> Option<usize> {
        self.tree.rank_of(self.shards[task])
    }

    /// The tasks that this rank needs from the beginning of an update on.
    pub fn wanted_from(&self, update: usize) -> impl Iterator<Item = usize> {
        let first = match (self.are_exchanged(), self.ends.get(update)) {
            (false, Some(_)) => self.compared_with(self.tasks_of(update).start).start,
            (true, Some(_)) => 0,
            (_, None) => self.shards.len(),
        };
        (first..self.shards.len()).filter(|task| self.is_own(*task))
    }

    /// Whether tasks of several ranks are compared with each other.
    pub fn are_exchanged(&self) -> bool {
        let groups = (0..self.shards.len()).step_by(self.compared).map(|first| self.compared_with(first));
        groups.into_iter().any(|mut group| {
            let rank = self.rank_of(group.start);
            group.any(|task| self.rank_of(task) != rank)
        })
    }

    /// The tree by which the gradient of an update is added, without the shards that have no tasks in it.
    pub fn tree_of(&self, update: usize) -> TreePlan {
        let shards = &self.shards[self.tasks_of(update)];
        self.tree.without(|shard| !shards.contains(&shard))
    }

    /// Whether the gradient of an update has one shard, and this is the only rank: then there is nothing to add.
    pub fn is_whole(&self, update: usize) -> bool {
        let shards = &self.shards[self.tasks_of(update)];
        self.tree.n_ranks() == 1 && shards.iter().all(|shard| *shard == shards[0])
    }
}

#[cfg(test)]
mod tests {
    use config::AdvantageGroup;

    use super::*;

    fn shares(rank: usize, change: impl FnOnce(&mut RunConfig)) -> Shares {
        let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        (config.sampling.prompts_per_iteration, config.sampling.seeds_per_prompt) = (4, 2);
        (config.sampling.seeds_per_task, config.training.updates_per_iteration) = (1, 2);
        (config.training.gradient_shards, config.resources.learners) = (4, 2);
        change(&mut config);
        Shares::of(&config, rank).expect("shares")
    }

    #[test]
    fn every_task_is_one_ranks_own_and_the_tree_leaves_out_what_is_empty() {
        let own = |rank| shares(rank, |_| ()).wanted_from(0).collect::<Vec<_>>();
        assert_eq!((own(0), own(1)), (vec![0, 1, 4, 5], vec![2, 3, 6, 7]));
        assert_eq!(shares(1, |_| ()).wanted_from(1).collect::<Vec<_>>(), [6, 7]);
        assert_eq!(shares(1, |_| ()).wanted_from(2).count(), 0);
        let few = shares(0, |config| config.training.gradient_shards = 8);
        assert_eq!(few.tree_of(0).subtrees().len(), 2);
        let alone = |shards| {
            shares(0, |config| {
                (config.training.gradient_shards, config.resources.learners) = (shards, 1);
            })
        };
        assert!(alone(1).is_whole(0) && !alone(2).is_whole(0));
    }

    #[test]
    fn rewards_are_exchanged_where_ranks_are_compared() {
        let with = |group, updates| {
            shares(1, |config| {
                (config.training.advantage_group, config.training.updates_per_iteration) = (group, updates);
            })
        };
        assert!(!with(AdvantageGroup::Seed, 2).are_exchanged());
        assert!(!with(AdvantageGroup::Prompt, 2).are_exchanged());
        assert!(with(AdvantageGroup::Batch, 2).are_exchanged());
        assert_eq!(with(AdvantageGroup::Batch, 2).wanted_from(1).collect::<Vec<_>>(), [2, 3, 6, 7]);
        assert!(with(AdvantageGroup::Prompt, 3).are_exchanged(), "an update ends within a prompt");
    }
}
