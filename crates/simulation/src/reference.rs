//! What an undisturbed run comes to, computed without processes: digests in place of images, gradients and weights.

use crate::checkpoints::Row;
use crate::dice::{digest, digest_of_text};
use config::{PromptLists, RunConfig, TaskKind, TaskSpec};
use protocol::{Task, TaskName, WeightsName, WeightsRole};
use std::collections::BTreeSet;

/// The policy that a run starts with.
pub const FIRST_POLICY: u64 = 0x4528_21e6_38d0_1377;

/// The outcome of a task as it is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Version of the weights that it was sampled with.
    pub version: u32,
    /// What stands for its bytes.
    pub digest: u64,
    /// What stands for the prompt's embedding.
    pub embedding: u64,
}

/// Every version of the policy, and what is measured of some.
#[derive(Clone, Debug, Default)]
pub struct Reference {
    /// What stands for the policy, by version.
    pub policies: Vec<u64>,
    /// Evaluations that are due.
    pub evaluations: Vec<Row>,
    /// Tests that are due, of the first and the last version.
    pub tests: Vec<Row>,
}

/// What stands for weights, given what stands for the policy of their version.
pub fn weights_digest(name: WeightsName, policy: u64) -> u64 {
    match name.role {
        WeightsRole::Policy => policy,
        WeightsRole::Average => digest(&[policy, 1]),
    }
}

/// What stands for the outcome of a task that a worker has run.
pub fn outcome_digest(task: &Task, weights: u64) -> u64 {
    let prompts = task.prompts.iter().map(|prompt| (prompt.index, prompt.text.as_str()));
    of_parts(task.name, (task.prompt_slot, task.first_seed, task.n_seeds), prompts, weights)
}

/// What the outcome of a task must be.
pub fn expected_outcome(spec: &TaskSpec, lists: &PromptLists, config: &RunConfig, policy: u64) -> u64 {
    let TaskSpec { kind, iteration, index, version, .. } = *spec;
    let name = TaskName { iteration, kind, index };
    let weights = match kind {
        TaskKind::Train => WeightsName::policy(version),
        TaskKind::Evaluate | TaskKind::Test => WeightsName::average(version),
    };
    let records = lists.of(config.data.split_of(kind));
    let prompts = spec.prompts.iter().filter_map(|index| records.get(*index as usize));
    let prompts = prompts.map(|record| (record.index, record.text.as_str()));
    of_parts(
        name,
        (spec.prompt_slot, spec.first_seed, spec.n_seeds),
        prompts,
        weights_digest(weights, policy),
    )
}

fn of_parts<'a>(
    name: TaskName,
    (slot, first_seed, n_seeds): (u32, u32, u32),
    prompts: impl Iterator<Item = (u32, &'a str)>,
    weights: u64,
) -> u64 {
    let numbers = [name.iteration, name.kind as u32, name.index, slot, first_seed, n_seeds].map(u64::from);
    let prompts =
        prompts.fold(0, |chain, (index, text)| digest(&[chain, index.into(), digest_of_text(text)]));
    digest(&[digest(&numbers), prompts, weights])
}

/// The gradient of a part with one more outcome in it.
pub fn add(sum: u64, outcome: u64) -> u64 {
    digest(&[sum, outcome])
}

/// The policy after an update.
pub fn update(policy: u64, sum: u64) -> u64 {
    digest(&[policy, sum, 2])
}

/// What an evaluation measures.
pub fn measure(outcomes: impl Iterator<Item = u64>) -> u64 {
    digest(&outcomes.collect::<Vec<_>>())
}

/// One past the last task of each part of an iteration, as `learner/src/training/trainer.rs` cuts it.
pub fn part_ends(n_tasks: usize, n_parts: usize) -> BTreeSet<usize> {
    let n_parts = n_parts.clamp(1, n_tasks.max(1));
    (1..=n_parts).map(|part| part * n_tasks / n_parts).collect()
}

impl Reference {
    /// The undisturbed run of a config.
    pub fn of(config: &RunConfig, lists: &PromptLists) -> Self {
        let mut reference = Self { policies: vec![FIRST_POLICY], ..Self::default() };
        let n_prompts = |kind| lists.of(config.data.split_of(kind)).len();
        for version in 0..=config.run.iterations {
            let policy = reference.policies[version as usize];
            let measured = |kind: TaskKind| {
                let tasks = config.evaluation_tasks(kind, n_prompts(kind), version);
                (version, measure(tasks.iter().map(|task| expected_outcome(task, lists, config, policy))))
            };
            if config.evaluation_due(version) {
                reference.evaluations.push(measured(TaskKind::Evaluate));
            }
            if config.data.has_validation() && [0, config.run.iterations].contains(&version) {
                reference.tests.push(measured(TaskKind::Test));
            }
            if version < config.run.iterations {
                let tasks = config.train_tasks(n_prompts(TaskKind::Train), version);
                reference.train(config, lists, &tasks);
            }
        }
        reference
    }

    fn train(&mut self, config: &RunConfig, lists: &PromptLists, tasks: &[TaskSpec]) {
        let mut policy = *self.policies.last().expect("there is a first one; else this is a bug");
        let mut start = 0;
        for end in part_ends(tasks.len(), config.training.updates_per_iteration) {
            let outcome =
                |task: &TaskSpec| expected_outcome(task, lists, config, self.policies[task.version as usize]);
            policy = update(policy, tasks[start..end].iter().map(outcome).fold(0, add));
            start = end;
        }
        self.policies.push(policy);
    }
}
