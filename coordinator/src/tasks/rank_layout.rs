//! Which rank of the learner a task's outcome goes to, and in which turn of that rank.

use config::{RunConfig, TaskKind};
use protocol::TaskName;

/// Where training tasks go, the same in every iteration; what is evaluated goes to rank 0. The default is one rank.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RankLayout {
    /// Rank and turn of each training task, by index; of those beyond, rank 0 and the index.
    places: Vec<(u32, u32)>,
}

impl RankLayout {
    /// The ranks of a run: neighbouring shards of the gradient lie on one, as many on each as on any other, give or take one.
    ///
    /// # Panics
    /// If the config has more learners than shards, which is none that was validated.
    pub fn of(config: &RunConfig) -> Self {
        let (n_shards, n_ranks) = (config.training.gradient_shards, config.resources.learners);
        let tree = collective::TreePlan::even(n_shards, n_ranks);
        let tree = tree.expect("a valid config has shards for its learners; else this is a bug");
        let mut turns = vec![0; n_ranks];
        let place = |shard: usize| {
            let rank = tree.rank_of(shard).unwrap_or(0);
            let turn = turns[rank];
            turns[rank] += 1;
            (rank as u32, turn)
        };
        Self { places: config.shards_of_tasks().into_iter().map(place).collect() }
    }

    fn place(&self, kind: TaskKind, index: u32) -> (u32, u32) {
        match kind {
            TaskKind::Train => self.places.get(index as usize).copied().unwrap_or((0, index)),
            TaskKind::Evaluate | TaskKind::Test => (0, index),
        }
    }

    /// The rank that a task's outcome goes to.
    pub fn rank_of(&self, task: &TaskName) -> u32 {
        self.place(task.kind, task.index).0
    }

    /// How many of a rank's own tasks of the same set come before this one.
    pub fn turn_of(&self, task: &TaskName) -> u32 {
        self.place(task.kind, task.index).1
    }

    /// How many of the first `n_tasks` of a kind are a rank's own.
    pub fn n_own(&self, kind: TaskKind, n_tasks: u32, rank: u32) -> u32 {
        (0..n_tasks).filter(|&index| self.place(kind, index).0 == rank).count() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(tasks: usize, updates: usize, learners: usize) -> RankLayout {
        let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        (config.sampling.prompts_per_iteration, config.sampling.seeds_per_prompt) = (tasks, 1);
        config.sampling.seeds_per_task = 1;
        (config.training.updates_per_iteration, config.resources.learners) = (updates, learners);
        RankLayout::of(&config)
    }

    #[test]
    fn ranks_have_neighbouring_tasks_of_every_update_and_take_turns() {
        let places = |tasks, updates, learners| layout(tasks, updates, learners).places;
        assert_eq!(places(3, 1, 1), [(0, 0), (0, 1), (0, 2)]);
        assert_eq!(places(4, 1, 2), [(0, 0), (0, 1), (1, 0), (1, 1)]);
        assert_eq!(places(4, 2, 2), [(0, 0), (1, 0), (0, 1), (1, 1)]);
        let two = layout(4, 2, 2);
        assert_eq!((two.n_own(TaskKind::Train, 4, 1), two.n_own(TaskKind::Evaluate, 4, 1)), (2, 0));
    }
}
