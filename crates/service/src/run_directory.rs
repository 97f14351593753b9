//! Where the files of a run are.

use crate::{ServiceError, durable};
use config::PromptSplit;
use std::path::{Path, PathBuf};

/// The directory of one run, `runs/<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunDirectory {
    path: PathBuf,
}

impl RunDirectory {
    /// Names a directory; nothing is created.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Creates the directory and those below it that processes expect to find.
    ///
    /// # Errors
    /// If one cannot be created.
    pub fn create(&self) -> Result<(), ServiceError> {
        let below = [self.checkpoints(), self.samples(), self.tensorboard(), self.logs()];
        below.iter().try_for_each(|directory| durable::create_directory(directory))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved run config.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// Copies of the prompts that the run was given.
    pub fn prompt_folder(&self) -> PathBuf {
        self.path.join("prompts")
    }

    /// The copy of the prompts for one purpose.
    pub fn prompts(&self, split: PromptSplit) -> PathBuf {
        self.prompt_folder().join(format!("{split}.jsonl"))
    }

    /// What the run read when it began, and what of that was changed knowingly since.
    pub fn inputs(&self) -> PathBuf {
        self.path.join("inputs.json")
    }

    /// Checkpoints of the learner, one directory each.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The newest averaged adapter, as PEFT folder with a diffusers LoRA file in it.
    pub fn adapter(&self) -> PathBuf {
        self.path.join("adapter")
    }

    /// One JSON object per iteration.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// One JSON object per held-out evaluation.
    pub fn evaluations(&self) -> PathBuf {
        self.path.join("evaluations.jsonl")
    }

    /// TensorBoard events.
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// PNG grids of every evaluation.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    /// One log per process.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The log of one member.
    pub fn log_of(&self, member_id: &str) -> PathBuf {
        self.logs().join(format!("{member_id}.log"))
    }

    /// How to reach the coordinator of the run.
    pub fn run_file(&self) -> PathBuf {
        self.path.join("run.json")
    }

    /// Locked by the living coordinator of the run.
    pub fn lock_file(&self) -> PathBuf {
        self.path.join(".lock")
    }
}
