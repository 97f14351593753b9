//! From the name of a task to the task itself: what the config and the prompt files make of it.

use crate::drawn_tasks::DrawnTasks;
use crate::kept_inputs::{KeptInputs, KeptPrompts};
use crate::tasks::RankLayout;
use config::{
    PromptFileError, PromptLists, PromptRecord, PromptSplit, RewardSection, RunConfig, TaskKind, TaskSpec,
    prompt_file, read_prompts,
};
use protocol::{Prompt, Task, TaskName, with_causes};
use std::collections::HashMap;

/// The config with its prompts: knows every task of the run.
#[derive(Clone, Debug)]
pub struct Catalog {
    config: RunConfig,
    lists: PromptLists,
    digests: HashMap<String, String>,
    notes: Vec<String>,
    drawn: DrawnTasks,
    layout: RankLayout,
}

/// Where the prompts of a run are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptSource {
    /// In the files that the config names.
    Config,
    /// There, or where they are gone in the copies of the run, which goes on.
    Run,
}

/// What is wrong with the prompts of a config, list by list.
#[derive(Debug)]
pub struct PromptErrors(Vec<(PromptSplit, String)>);

impl std::fmt::Display for PromptErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (position, (split, error)) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "\n" };
            write!(f, "{separator}`{}`: {error}", split.key())?;
        }
        Ok(())
    }
}

impl std::error::Error for PromptErrors {}

impl Catalog {
    /// Reads the prompt files of a config.
    ///
    /// # Errors
    /// All lists that are missing, empty or malformed, or lack metadata that a reward needs.
    pub fn open(config: RunConfig) -> Result<Self, PromptErrors> {
        Self::open_by(config, |config, split, notes| {
            read_list(config, split, notes).map_err(|error| with_causes(&error))
        })
    }

    /// Reads the prompts of a run that goes on: where the files that its config names are gone, from the run's copies.
    ///
    /// # Errors
    /// As [`Catalog::open`], and if such a copy is lost or damaged, too.
    pub fn open_again(config: RunConfig, kept: &KeptInputs) -> Result<Self, PromptErrors> {
        Self::open_by(config, |config, split, notes| match read_list(config, split, notes) {
            Err(error @ PromptFileError::Unreadable { .. }) => instead_of(error, split, kept, notes),
            Err(error) if error.is_absence() => instead_of(error, split, kept, notes),
            read => read.map_err(|error| with_causes(&error)),
        })
    }

    fn open_by(
        config: RunConfig,
        read: impl Fn(&RunConfig, PromptSplit, &mut Vec<String>) -> Result<Vec<PromptRecord>, String>,
    ) -> Result<Self, PromptErrors> {
        let (mut lists, mut notes, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for split in config.data.splits() {
            match read(&config, split, &mut notes) {
                Ok(records) => lists.push((split, records)),
                Err(error) => errors.push((split, error)),
            }
        }
        if !errors.is_empty() {
            return Err(PromptErrors(errors));
        }
        Ok(Self::new(config, PromptLists::new(lists), notes))
    }

    /// The catalog of prompts that have been read, with what the user should know about them.
    pub fn new(config: RunConfig, lists: PromptLists, notes: Vec<String>) -> Self {
        let digest =
            |(split, records): (PromptSplit, _)| (split.to_string(), service::prompt_digest(records));
        let digests = lists.iter().map(digest).collect();
        let layout = RankLayout::of(&config);
        Self { config, lists, digests, notes, drawn: DrawnTasks::default(), layout }
    }

    /// Which rank of the learner the outcome of each task goes to.
    pub fn rank_layout(&self) -> &RankLayout {
        &self.layout
    }

    /// All prompts.
    pub fn prompt_lists(&self) -> &PromptLists {
        &self.lists
    }

    /// Digest of each list of prompts, by what it is for.
    pub fn prompt_digests(&self) -> &HashMap<String, String> {
        &self.digests
    }

    /// What the user should know about the prompts.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The config.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Number of prompts that tasks of a kind are of.
    pub fn n_prompts(&self, kind: TaskKind) -> usize {
        self.records(kind).len()
    }

    /// Number of tasks of a kind and iteration.
    pub fn n_tasks(&self, kind: TaskKind) -> u32 {
        let n_tasks = match kind {
            TaskKind::Train => self.config.n_train_tasks(),
            TaskKind::Evaluate | TaskKind::Test => {
                let n_prompts = self.config.n_evaluated_prompts(self.n_prompts(kind));
                n_prompts.div_ceil(self.config.evaluation.prompts_per_task)
            }
        };
        n_tasks as u32
    }

    /// Version of the weights that tasks of a kind and iteration are sampled with.
    pub fn version(&self, kind: TaskKind, iteration: u32) -> u32 {
        match kind {
            TaskKind::Train => self.config.policy_version(iteration),
            TaskKind::Evaluate | TaskKind::Test => iteration,
        }
    }

    /// The task as a worker gets it; `None` if the run has none of that name.
    pub fn task(&mut self, name: TaskName) -> Option<Task> {
        let spec = self.spec(name)?;
        let prompts = self.prompts(&spec).map(|record| Prompt {
            index: record.index,
            text: record.text.clone(),
            metadata: record.metadata.clone(),
        });
        Some(Task {
            name,
            version: spec.version,
            prompts: prompts.collect(),
            prompt_slot: spec.prompt_slot,
            first_seed: spec.first_seed,
            n_seeds: spec.n_seeds,
            learner_rank: self.layout.rank_of(&name),
        })
    }

    /// What is in a task, so that a user can find it: prompts and seeds.
    pub fn contents(&mut self, name: TaskName) -> String {
        let Some(spec) = self.spec(name) else {
            return "it has no prompts".to_owned();
        };
        let prompts: Vec<String> =
            self.prompts(&spec).map(|record| format!("{} \"{}\"", record.index, record.text)).collect();
        let seeds = match spec.kind {
            TaskKind::Train => format!(", seeds {}..{}", spec.first_seed, spec.first_seed + spec.n_seeds),
            TaskKind::Evaluate | TaskKind::Test => String::new(),
        };
        let plural = if prompts.len() == 1 { "" } else { "s" };
        format!("prompt{plural} {}{seeds}", prompts.join(", "))
    }

    fn spec(&mut self, name: TaskName) -> Option<TaskSpec> {
        let n_prompts = self.n_prompts(name.kind);
        let specs = self.drawn.of((name.iteration, name.kind), || match name.kind {
            TaskKind::Train => self.config.train_tasks(n_prompts, name.iteration),
            TaskKind::Evaluate | TaskKind::Test => {
                self.config.evaluation_tasks(name.kind, n_prompts, name.iteration)
            }
        });
        specs.get(name.index as usize).cloned()
    }

    fn prompts(&self, spec: &TaskSpec) -> impl Iterator<Item = &PromptRecord> {
        let records = self.records(spec.kind);
        spec.prompts.iter().filter_map(|&index| records.get(index as usize))
    }

    fn records(&self, kind: TaskKind) -> &[PromptRecord] {
        self.lists.of(self.config.data.split_of(kind))
    }
}

/// The run's copy of a list whose own file cannot be read.
fn instead_of(
    error: PromptFileError,
    split: PromptSplit,
    kept: &KeptInputs,
    notes: &mut Vec<String>,
) -> Result<Vec<PromptRecord>, String> {
    let (error, copy) = (with_causes(&error), kept.copy_name(split));
    match kept.prompts(split) {
        KeptPrompts::Whole(records) => {
            notes.push(format!("`{}`: {error}; the run goes on with its own copy, {copy}", split.key()));
            Ok(records)
        }
        KeptPrompts::Lost(_) => {
            Err(format!("{error}; nor is the run's own copy whole, {copy}: put one of the two back"))
        }
        KeptPrompts::Absent => Err(error),
    }
}

fn read_list(
    config: &RunConfig,
    split: PromptSplit,
    notes: &mut Vec<String>,
) -> Result<Vec<PromptRecord>, PromptFileError> {
    let path = prompt_file(config.data.path(split), split)?;
    let records = read_prompts(&path)?;
    config::check_metadata(&path, &records, rewards_of(config, split))?;
    notes.extend(config::unused_prompt_keys(&path, &records));
    Ok(records)
}

/// What images of such prompts are scored by.
fn rewards_of(config: &RunConfig, split: PromptSplit) -> &[RewardSection] {
    match split {
        PromptSplit::Train => &config.rewards,
        PromptSplit::Validation | PromptSplit::Test => config.rewards_of_evaluation(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A run of nine prompts.
    pub(crate) fn catalog() -> Catalog {
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
        let lists = [(PromptSplit::Train, 9), (PromptSplit::Validation, 4), (PromptSplit::Test, 5)];
        let lists = lists.map(|(split, n_prompts)| (split, (0..n_prompts).map(record).collect()));
        Catalog::new(config, PromptLists::new(lists), Vec::new())
    }

    #[test]
    fn counts_and_tasks_agree() {
        let mut catalog = catalog();
        for (kind, n_tasks) in [(TaskKind::Train, 4), (TaskKind::Evaluate, 2), (TaskKind::Test, 2)] {
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
        assert_eq!(task.prompts[0].metadata, serde_json::json!({ "prompt": task.prompts[0].text }));
        assert_eq!(task.name, name);
    }

    #[test]
    fn contents_are_prompts_and_seeds() {
        let mut catalog = catalog();
        let text = catalog.contents(TaskName { iteration: 0, kind: TaskKind::Evaluate, index: 1 });
        assert_eq!(text, "prompt 2 \"scene 2\"");
        let text = catalog.contents(TaskName { iteration: 3, kind: TaskKind::Test, index: 0 });
        assert_eq!(text, "prompts 0 \"scene 0\", 1 \"scene 1\"");
        let text = catalog.contents(TaskName { iteration: 0, kind: TaskKind::Train, index: 0 });
        assert!(text.ends_with("seeds 0..2"), "{text}");
    }
}
