//! The tasks of an iteration as pure functions of the config: which prompt, which seeds, with which policy version.

use crate::{AdvantageGroup, RewardCombination, RunConfig};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a task is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TaskKind {
    /// Images of validation prompts, by which the best version is chosen.
    Evaluate,
    /// Images of test prompts, which are reported.
    Test,
    /// Trajectories for an update.
    Train,
}

/// One unit of work; running it twice gives the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSpec {
    /// What it is for.
    pub kind: TaskKind,
    /// Train: the iteration it feeds. Evaluate and test: the version they measure.
    pub iteration: u32,
    /// Position among its kind and iteration.
    pub index: u32,
    /// Version of the weights to sample with.
    pub version: u32,
    /// Lines of the prompt file: one for training, a batch for evaluation.
    pub prompts: Vec<u32>,
    /// Train: position of the prompt among those of the iteration.
    pub prompt_slot: u32,
    /// First seed of the prompt.
    pub first_seed: u32,
    /// Seeds of the prompt (train), or images per prompt (evaluate, test).
    pub n_seeds: u32,
}

impl RunConfig {
    /// Policy version that the tasks of an iteration are sampled with.
    pub fn policy_version(&self, iteration: u32) -> u32 {
        iteration.saturating_sub(self.run.lag)
    }

    /// Number of training tasks of every iteration.
    pub fn n_train_tasks(&self) -> usize {
        self.sampling.prompts_per_iteration * self.tasks_per_prompt()
    }

    /// Tasks that share one prompt.
    pub fn tasks_per_prompt(&self) -> usize {
        self.sampling.seeds_per_prompt.div_ceil(self.sampling.seeds_per_task)
    }

    /// How many consecutive tasks of an iteration have their rewards compared with each other, which is how many training
    /// has to wait for before it can use the first of them.
    pub fn tasks_compared(&self) -> usize {
        match (self.training.reward_combination, self.training.advantage_group) {
            (RewardCombination::Gdpo, _) | (_, AdvantageGroup::Batch | AdvantageGroup::None) => {
                self.n_train_tasks()
            }
            (RewardCombination::Sum, AdvantageGroup::Seed) => 1,
            (RewardCombination::Sum, AdvantageGroup::Prompt) => self.tasks_per_prompt(),
        }
    }

    /// One past the last task of each update of an iteration: contiguous, nearly equal, non-empty parts.
    pub fn update_ends(&self) -> Vec<usize> {
        let n_tasks = self.n_train_tasks();
        let n_parts = self.training.updates_per_iteration.clamp(1, n_tasks.max(1));
        (1..=n_parts).map(|part| part * n_tasks / n_parts).collect()
    }

    /// The shard of its update's gradient that each training task of an iteration adds to, by index. Shards are contiguous
    /// and nearly equal in every update, and the tasks of a prompt whose rewards are compared are in one unless an update ends
    /// between them; where an update has fewer tasks than there are shards, some are empty.
    pub fn shards_of_tasks(&self) -> Vec<usize> {
        let n_shards = self.training.gradient_shards;
        let unit = match self.tasks_compared() {
            compared if compared == self.n_train_tasks() => 1,
            compared => compared,
        };
        let mut shards = Vec::with_capacity(self.n_train_tasks());
        for end in self.update_ends() {
            let n_units = (end - shards.len()).div_ceil(unit);
            let start = shards.len();
            shards.extend((start..end).map(|task| (task - start) / unit * n_shards / n_units));
        }
        shards
    }

    /// Training tasks of an iteration, prompt by prompt; `n_prompts` is the length of the prompt file.
    pub fn train_tasks(&self, n_prompts: usize, iteration: u32) -> Vec<TaskSpec> {
        let sampling = &self.sampling;
        let drawn = draw_prompts(self.run.seed, iteration, n_prompts, sampling.prompts_per_iteration);
        let mut tasks = Vec::with_capacity(self.n_train_tasks());
        for (slot, prompt) in drawn.into_iter().enumerate() {
            for first_seed in (0..sampling.seeds_per_prompt).step_by(sampling.seeds_per_task) {
                tasks.push(TaskSpec {
                    kind: TaskKind::Train,
                    iteration,
                    index: tasks.len() as u32,
                    version: self.policy_version(iteration),
                    prompts: vec![prompt],
                    prompt_slot: slot as u32,
                    first_seed: first_seed as u32,
                    n_seeds: sampling.seeds_per_task.min(sampling.seeds_per_prompt - first_seed) as u32,
                });
            }
        }
        tasks
    }

    /// Whether the averaged weights of a version are evaluated: at the start, every so often, and at the end.
    pub fn evaluation_due(&self, version: u32) -> bool {
        version == 0 || version == self.run.iterations || version.is_multiple_of(self.evaluation.every)
    }

    /// Number of held-out prompts that are evaluated, given the length of their file.
    pub fn n_evaluated_prompts(&self, n_prompts: usize) -> usize {
        match self.evaluation.prompts {
            0 => n_prompts,
            wanted => wanted.min(n_prompts),
        }
    }

    /// Evaluation or test tasks of a version, batches of held-out prompts in file order.
    pub fn evaluation_tasks(&self, kind: TaskKind, n_prompts: usize, version: u32) -> Vec<TaskSpec> {
        let prompts: Vec<u32> = (0..self.n_evaluated_prompts(n_prompts) as u32).collect();
        let batches = prompts.chunks(self.evaluation.prompts_per_task).enumerate();
        batches
            .map(|(index, batch)| TaskSpec {
                kind,
                iteration: version,
                index: index as u32,
                version,
                prompts: batch.to_vec(),
                prompt_slot: 0,
                first_seed: 0,
                n_seeds: self.evaluation.images_per_prompt as u32,
            })
            .collect()
    }
}

/// Draws the distinct prompts of an iteration: a partial Fisher–Yates shuffle keyed by seed and iteration.
///
/// Prompts recur between iterations, never within one; where the file has fewer prompts than asked for, the shuffle
/// starts over, so that every prompt comes equally often.
fn draw_prompts(seed: u64, iteration: u32, n_prompts: usize, wanted: usize) -> Vec<u32> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(u64::from(iteration));
    let mut drawn = Vec::with_capacity(wanted);
    while drawn.len() < wanted && n_prompts > 0 {
        let mut indices: Vec<u32> = (0..n_prompts as u32).collect();
        for position in 0..n_prompts.min(wanted - drawn.len()) {
            let other = position + below(&mut generator, n_prompts - position);
            indices.swap(position, other);
            drawn.push(indices[position]);
        }
    }
    drawn
}

/// A uniform integer below `bound`, by rejection so that no value is favoured.
fn below(generator: &mut ChaCha8Rng, bound: usize) -> usize {
    let bound = bound as u64;
    let unbiased = u64::MAX - u64::MAX % bound;
    loop {
        let value = generator.next_u64();
        if value < unbiased {
            return (value % bound) as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    fn config() -> RunConfig {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        config.sampling.prompts_per_iteration = 5;
        config.sampling.seeds_per_prompt = 3;
        config.sampling.seeds_per_task = 2;
        config
    }

    #[test]
    fn an_iteration_holds_every_seed_of_every_prompt_once() {
        let tasks = config().train_tasks(40, 7);
        assert_eq!(tasks.len(), config().n_train_tasks());
        let seeds: u32 = tasks.iter().map(|task| task.n_seeds).sum();
        assert_eq!(seeds, 15);
        let mut prompts: Vec<u32> = tasks.iter().map(|task| task.prompts[0]).collect();
        prompts.dedup();
        prompts.sort_unstable();
        prompts.dedup();
        assert_eq!(prompts.len(), 5, "prompts of one iteration are distinct");
        assert!(tasks.iter().enumerate().all(|(position, task)| task.index as usize == position));
    }

    #[test]
    fn tasks_depend_on_seed_and_iteration_alone() {
        assert_eq!(config().train_tasks(40, 7), config().train_tasks(40, 7));
        let prompts =
            |iteration| config().train_tasks(40, iteration).iter().map(|t| t.prompts[0]).collect::<Vec<_>>();
        assert_ne!(prompts(7), prompts(8));
    }

    #[test]
    fn prompts_repeat_evenly_where_the_file_is_short() {
        let drawn = draw_prompts(1, 0, 3, 6);
        assert!((0..3).all(|prompt| drawn.iter().filter(|&&index| index == prompt).count() == 2));
    }

    #[test]
    fn every_prompt_is_drawn_equally_often_in_the_long_run() {
        let mut counts = [0u32; 20];
        for iteration in 0..2000 {
            for prompt in draw_prompts(3, iteration, 20, 5) {
                counts[prompt as usize] += 1;
            }
        }
        assert!(counts.iter().all(|&count| (400..600).contains(&count)), "{counts:?}");
    }

    #[test]
    fn lagged_iterations_use_an_earlier_version() {
        let mut config = config();
        config.run.lag = 1;
        assert_eq!([0, 1, 2].map(|iteration| config.policy_version(iteration)), [0, 0, 1]);
    }

    #[test]
    fn gdpo_compares_all_tasks_whatever_the_group() {
        let mut config = config();
        let groups =
            [AdvantageGroup::Seed, AdvantageGroup::Prompt, AdvantageGroup::Batch, AdvantageGroup::None];
        for (group, by_sum) in groups.into_iter().zip([1, 2, 10, 10]) {
            config.training.advantage_group = group;
            config.training.reward_combination = RewardCombination::Sum;
            assert_eq!(config.tasks_compared(), by_sum, "{group:?}");
            config.training.reward_combination = RewardCombination::Gdpo;
            assert_eq!(config.tasks_compared(), 10, "{group:?}");
        }
    }

    #[test]
    fn updates_and_their_shards_are_contiguous_and_nearly_equal() {
        let with = |prompts: usize, updates: usize, shards: usize| {
            let mut config = config();
            config.sampling.prompts_per_iteration = prompts;
            (config.training.updates_per_iteration, config.training.gradient_shards) = (updates, shards);
            config
        };
        assert_eq!(with(4, 2, 4).update_ends(), [4, 8]);
        assert_eq!(with(4, 2, 4).shards_of_tasks(), [0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(with(4, 1, 4).shards_of_tasks(), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(with(3, 1, 4).shards_of_tasks(), [0, 0, 1, 2, 2, 3]);
        assert_eq!(with(1, 5, 8).update_ends(), [1, 2], "no update is empty");
        assert_eq!(with(1, 1, 8).shards_of_tasks(), [0, 4], "some shards are");
        let mut config = with(4, 1, 8);
        config.training.advantage_group = AdvantageGroup::Prompt;
        assert_eq!(config.shards_of_tasks(), [0, 0, 2, 2, 4, 4, 6, 6], "the tasks of a prompt stay together");
        config.training.advantage_group = AdvantageGroup::Batch;
        assert_eq!(config.shards_of_tasks(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn evaluation_covers_each_held_out_prompt_once() {
        let mut config = config();
        config.evaluation.prompts = 10;
        config.evaluation.prompts_per_task = 4;
        let prompts: Vec<u32> = config
            .evaluation_tasks(TaskKind::Evaluate, 25, 3)
            .into_iter()
            .flat_map(|task| task.prompts)
            .collect();
        assert_eq!(prompts, (0..10).collect::<Vec<_>>());
    }
}
