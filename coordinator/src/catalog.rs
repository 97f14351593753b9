//! From the name of a task to the task itself: what the config and the prompt files make of it.

use crate::drawn_tasks::DrawnTasks;
use crate::tasks::TaskName;
use config::{
    PromptFileError, PromptRecord, PromptSplit, RewardSection, RunConfig, TaskKind, TaskSpec, prompt_file,
    read_prompts,
};
use std::path::Path;

/// The config with its prompts: knows every task of the run.
#[derive(Clone, Debug)]
pub struct Catalog {
    config: RunConfig,
    train: Vec<PromptRecord>,
    test: Vec<PromptRecord>,
    notes: Vec<String>,
    drawn: DrawnTasks,
}

impl Catalog {
    /// Reads the prompt files of a config.
    ///
    /// # Errors
    /// If one is missing, empty or malformed, or lacks metadata that a reward needs.
    pub fn open(config: RunConfig) -> Result<Self, PromptFileError> {
        let mut notes = Vec::new();
        let mut read = |path: &Path, split, rewards: &[RewardSection]| {
            let path = prompt_file(path, split)?;
            let records = read_prompts(&path)?;
            config::check_metadata(&path, &records, rewards)?;
            notes.extend(config::unused_prompt_keys(&path, &records));
            Ok::<_, PromptFileError>(records)
        };
        let train = read(&config.data.train, PromptSplit::Train, &config.rewards)?;
        let test = read(&config.data.test, PromptSplit::Test, config.rewards_of_evaluation())?;
        Ok(Self { config, train, test, notes, drawn: DrawnTasks::default() })
    }

    /// What the user should know about the prompts.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The config.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Number of held-out prompts in their file.
    pub fn n_test_prompts(&self) -> usize {
        self.test.len()
    }

    /// Number of tasks of a kind and iteration.
    pub fn n_tasks(&self, kind: TaskKind) -> u32 {
        let n_tasks = match kind {
            TaskKind::Train => self.config.n_train_tasks(),
            TaskKind::Evaluate => {
                let n_prompts = self.config.n_evaluated_prompts(self.test.len());
                n_prompts.div_ceil(self.config.evaluation.prompts_per_task)
            }
        };
        n_tasks as u32
    }

    /// Version of the weights that tasks of a kind and iteration are sampled with.
    pub fn version(&self, kind: TaskKind, iteration: u32) -> u32 {
        match kind {
            TaskKind::Train => self.config.policy_version(iteration),
            TaskKind::Evaluate => iteration,
        }
    }

    /// The task as a worker gets it; `None` if the run has none of that name.
    pub fn task(&mut self, name: TaskName) -> Option<proto::Task> {
        let spec = self.spec(name)?;
        let prompts = self.prompts(&spec).map(|record| proto::Prompt {
            index: record.index,
            text: record.text.clone(),
            metadata: record.metadata.to_string(),
        });
        Some(proto::Task {
            id: Some(to_wire(name)),
            version: spec.version,
            prompts: prompts.collect(),
            prompt_slot: spec.prompt_slot,
            first_seed: spec.first_seed,
            n_seeds: spec.n_seeds,
        })
    }

    /// Names a task so that a user can find it: prompts and seeds.
    pub fn describe(&mut self, name: TaskName) -> String {
        let Some(spec) = self.spec(name) else {
            return name.to_string();
        };
        let prompts: Vec<String> =
            self.prompts(&spec).map(|record| format!("{} \"{}\"", record.index, record.text)).collect();
        let seeds = match spec.kind {
            TaskKind::Train => format!(", seeds {}..{}", spec.first_seed, spec.first_seed + spec.n_seeds),
            TaskKind::Evaluate => String::new(),
        };
        let plural = if prompts.len() == 1 { "" } else { "s" };
        format!("{name} (prompt{plural} {}{seeds})", prompts.join(", "))
    }

    fn spec(&mut self, name: TaskName) -> Option<TaskSpec> {
        let specs = self.drawn.of((name.iteration, name.kind), || match name.kind {
            TaskKind::Train => self.config.train_tasks(self.train.len(), name.iteration),
            TaskKind::Evaluate => self.config.evaluation_tasks(self.test.len(), name.iteration),
        });
        specs.get(name.index as usize).cloned()
    }

    fn prompts(&self, spec: &TaskSpec) -> impl Iterator<Item = &PromptRecord> {
        let records = match spec.kind {
            TaskKind::Train => &self.train,
            TaskKind::Evaluate => &self.test,
        };
        spec.prompts.iter().filter_map(|&index| records.get(index as usize))
    }
}

/// A task's name as it travels.
pub fn to_wire(name: TaskName) -> proto::TaskId {
    let kind = match name.kind {
        TaskKind::Train => proto::TaskKind::Train,
        TaskKind::Evaluate => proto::TaskKind::Evaluate,
    };
    proto::TaskId { kind: kind.into(), iteration: name.iteration, index: name.index }
}

/// A task's name from the wire; `None` if its kind is unknown.
pub fn from_wire(id: &proto::TaskId) -> Option<TaskName> {
    Some(TaskName { iteration: id.iteration, kind: kind_from_wire(id.kind())?, index: id.index })
}

/// A task's kind from the wire.
pub fn kind_from_wire(kind: proto::TaskKind) -> Option<TaskKind> {
    match kind {
        proto::TaskKind::Train => Some(TaskKind::Train),
        proto::TaskKind::Evaluate => Some(TaskKind::Evaluate),
        proto::TaskKind::Unspecified => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        let mut config = config::preset("tempflow-tiny-cpu").expect("a preset").config;
        config.sampling.prompts_per_iteration = 2;
        config.sampling.seeds_per_prompt = 3;
        config.sampling.seeds_per_task = 2;
        config.evaluation.prompts = 3;
        config.evaluation.prompts_per_task = 2;
        let record = |index: u32| PromptRecord {
            index,
            text: format!("scene {index}"),
            metadata: serde_json::json!({ "prompt": format!("scene {index}") }),
        };
        Catalog {
            config,
            train: (0..9).map(record).collect(),
            test: (0..4).map(record).collect(),
            notes: Vec::new(),
            drawn: DrawnTasks::default(),
        }
    }

    #[test]
    fn counts_and_tasks_agree() {
        let mut catalog = catalog();
        for (kind, n_tasks) in [(TaskKind::Train, 4), (TaskKind::Evaluate, 2)] {
            assert_eq!(catalog.n_tasks(kind), n_tasks);
            let mut task = |index| catalog.task(TaskName { iteration: 7, kind, index });
            assert!(task(n_tasks - 1).is_some());
            assert!(task(n_tasks).is_none());
        }
    }

    #[test]
    fn a_task_carries_its_prompts_and_seeds() {
        let name = TaskName { iteration: 7, kind: TaskKind::Train, index: 3 };
        let task = catalog().task(name).expect("a task");
        assert_eq!((task.prompt_slot, task.first_seed, task.n_seeds), (1, 2, 1));
        assert_eq!(task.prompts.len(), 1);
        assert_eq!(task.prompts[0].metadata, format!("{{\"prompt\":\"{}\"}}", task.prompts[0].text));
        assert_eq!(from_wire(&task.id.expect("an id")), Some(name));
    }

    #[test]
    fn descriptions_name_prompt_and_seeds() {
        let mut catalog = catalog();
        let text = catalog.describe(TaskName { iteration: 0, kind: TaskKind::Evaluate, index: 1 });
        assert_eq!(text, "evaluation task 1 of version 0 (prompt 2 \"scene 2\")");
        let text = catalog.describe(TaskName { iteration: 0, kind: TaskKind::Train, index: 0 });
        assert!(text.ends_with("seeds 0..2)"), "{text}");
    }
}
