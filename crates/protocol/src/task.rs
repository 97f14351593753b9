//! A task as a worker runs it, every field of it checked.

use crate::{NameFault, TaskName, WeightsName};
use config::TaskKind;
use serde_json::Value;

/// A task and all that it takes besides run config and weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// Unique in a run.
    pub name: TaskName,
    /// Version of the weights to sample with.
    pub version: u32,
    /// Train: exactly one. Evaluate and test: the prompts of the batch.
    pub prompts: Vec<Prompt>,
    /// Train: position of the prompt among those drawn for the iteration.
    pub prompt_slot: u32,
    /// First seed of the prompt; `first_seed + n_seeds` is a `u32`.
    pub first_seed: u32,
    /// Train: seeds of the prompt. Evaluate and test: images of every prompt.
    pub n_seeds: u32,
    /// The rank of the learner that the outcome goes to.
    pub learner_rank: u32,
}

/// A prompt of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Line of the prompt file, from 0.
    pub index: u32,
    /// Its words.
    pub text: String,
    /// The whole row of the prompt; null where there is none.
    pub metadata: Value,
}

/// Why a task makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum TaskFault {
    /// Its name is missing or unknown.
    #[error(transparent)]
    Name(#[from] NameFault),
    /// Not as many prompts as its kind takes.
    #[error("it has {0} prompts, but training takes one")]
    Prompts(usize),
    /// Nothing to evaluate.
    #[error("it has no prompts")]
    NoPrompts,
    /// No seeds, or seeds beyond the last one.
    #[error("it has {n_seeds} seeds from {first_seed} on")]
    Seeds {
        /// Counted from 0 for each prompt.
        first_seed: u32,
        /// Number of seeds.
        n_seeds: u32,
    },
    /// What a reward is to know of the prompt cannot be read.
    #[error("the metadata of prompt `{prompt}` is no JSON: {source}")]
    Metadata {
        /// The prompt's words.
        prompt: String,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
}

impl Task {
    /// The weights to sample with: the policy for training, its moving average for held-out images.
    pub fn weights(&self) -> WeightsName {
        match self.name.kind {
            TaskKind::Train => WeightsName::policy(self.version),
            TaskKind::Evaluate | TaskKind::Test => WeightsName::average(self.version),
        }
    }
}

impl TryFrom<proto::Task> for Task {
    type Error = TaskFault;

    fn try_from(task: proto::Task) -> Result<Self, TaskFault> {
        let proto::Task { id, version, prompts, prompt_slot, first_seed, n_seeds, learner_rank } = task;
        let name = TaskName::try_from(&id.ok_or(NameFault::Missing)?)?;
        match (name.kind, prompts.len()) {
            (TaskKind::Train, 1) => {}
            (TaskKind::Train, n_prompts) => return Err(TaskFault::Prompts(n_prompts)),
            (TaskKind::Evaluate | TaskKind::Test, 0) => return Err(TaskFault::NoPrompts),
            (TaskKind::Evaluate | TaskKind::Test, _) => {}
        }
        if n_seeds == 0 || first_seed.checked_add(n_seeds).is_none() {
            return Err(TaskFault::Seeds { first_seed, n_seeds });
        }
        let prompts = prompts.into_iter().map(Prompt::try_from).collect::<Result<_, _>>()?;
        Ok(Self { name, version, prompts, prompt_slot, first_seed, n_seeds, learner_rank })
    }
}

impl From<Task> for proto::Task {
    fn from(task: Task) -> Self {
        let Task { name, version, prompts, prompt_slot, first_seed, n_seeds, learner_rank } = task;
        let prompts = prompts.into_iter().map(proto::Prompt::from).collect();
        Self { id: Some(name.into()), version, prompts, prompt_slot, first_seed, n_seeds, learner_rank }
    }
}

impl TryFrom<proto::Prompt> for Prompt {
    type Error = TaskFault;

    fn try_from(prompt: proto::Prompt) -> Result<Self, TaskFault> {
        let proto::Prompt { index, text, metadata } = prompt;
        match metadata.as_str() {
            "" => Ok(Self { index, text, metadata: Value::Null }),
            json => match serde_json::from_str(json) {
                Ok(metadata) => Ok(Self { index, text, metadata }),
                Err(source) => Err(TaskFault::Metadata { prompt: text, source }),
            },
        }
    }
}

impl From<Prompt> for proto::Prompt {
    fn from(prompt: Prompt) -> Self {
        Self { index: prompt.index, text: prompt.text, metadata: prompt.metadata.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(kind: TaskKind) -> proto::Task {
        let prompt =
            proto::Prompt { index: 4, text: "a red cube".to_owned(), metadata: r#"{"count":2}"#.to_owned() };
        proto::Task {
            id: Some(TaskName { iteration: 3, kind, index: 1 }.into()),
            version: 2,
            prompts: vec![prompt],
            prompt_slot: 5,
            first_seed: 6,
            n_seeds: 7,
            learner_rank: 1,
        }
    }

    #[test]
    fn a_task_comes_back_from_the_wire_and_knows_its_weights() {
        for (kind, weights) in [
            (TaskKind::Train, WeightsName::policy(2)),
            (TaskKind::Evaluate, WeightsName::average(2)),
            (TaskKind::Test, WeightsName::average(2)),
        ] {
            let task = Task::try_from(wire(kind)).expect("a sound task");
            assert_eq!(task.weights(), weights);
            assert_eq!(task.prompts[0].metadata["count"], 2);
            assert_eq!(proto::Task::from(task), wire(kind));
        }
    }

    #[test]
    fn every_field_is_checked() {
        let train = || wire(TaskKind::Train);
        let prompt =
            |metadata: &str| proto::Prompt { metadata: metadata.to_owned(), ..train().prompts[0].clone() };
        let faults = [
            (proto::Task { id: None, ..train() }, "it has no id"),
            (proto::Task { id: Some(proto::TaskId::default()), ..train() }, "it has no kind"),
            (proto::Task { prompts: vec![], ..train() }, "it has 0 prompts, but training takes one"),
            (proto::Task { prompts: vec![], ..wire(TaskKind::Test) }, "it has no prompts"),
            (proto::Task { n_seeds: 0, ..train() }, "it has 0 seeds from 6 on"),
            (proto::Task { first_seed: u32::MAX, ..train() }, "it has 7 seeds from 4294967295 on"),
            (
                proto::Task { prompts: vec![prompt("{")], ..train() },
                "the metadata of prompt `a red cube` is no JSON",
            ),
        ];
        for (task, problem) in faults {
            let fault = Task::try_from(task).expect_err(problem).to_string();
            assert!(fault.starts_with(problem), "{fault}");
        }
        let bare = proto::Task { prompts: vec![prompt("")], ..train() };
        assert_eq!(Task::try_from(bare).expect("a sound task").prompts[0].metadata, Value::Null);
    }
}
