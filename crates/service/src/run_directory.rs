//! Where the files of a run are.

use crate::{ServiceError, durable, host_name};
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

    /// The same of the best version.
    pub fn best_adapter(&self) -> PathBuf {
        self.adapter().join("best")
    }

    /// One JSON object per iteration.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The kinds of device that the run was computed on.
    pub fn devices(&self) -> PathBuf {
        self.path.join("devices.json")
    }

    /// One JSON object per decision of the coordinator; older ones are in a file of this name with `.1` at its end.
    pub fn events(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// One JSON object per held-out evaluation.
    pub fn evaluations(&self) -> PathBuf {
        self.path.join("evaluations.jsonl")
    }

    /// One JSON object per version that was evaluated on the test prompts.
    pub fn tests(&self) -> PathBuf {
        self.path.join("tests.jsonl")
    }

    /// Whether there are records or exports, which a run leaves only once it has written a checkpoint.
    pub fn has_records(&self) -> bool {
        let is_filled = |path: PathBuf| std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
        [self.metrics(), self.evaluations(), self.tests()].into_iter().any(is_filled)
            || self.adapter().exists()
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

    /// What a coordinator without a terminal printed, over all its lives.
    pub fn console(&self) -> PathBuf {
        self.path.join("console.txt")
    }

    /// The log of one member.
    pub fn log_of(&self, member_id: &str) -> PathBuf {
        self.logs().join(format!("{member_id}.log"))
    }

    /// Of a learner's half: the run that it is of.
    pub fn learner_file(&self) -> PathBuf {
        self.path.join("learner.json")
    }

    /// Of a learner's half: what it got of what the run reads, where a run directory has it.
    pub fn inputs_received(&self) -> Self {
        Self::new(self.path.join("inputs"))
    }

    /// Of a coordinator's half: what the learner sent last of what it has to show, where a run directory has it.
    pub fn results(&self) -> Self {
        Self::new(self.path.join("results"))
    }

    /// How to reach the coordinator of the run.
    pub fn run_file(&self) -> PathBuf {
        self.path.join("run.json")
    }

    /// Where members elsewhere reach the coordinator; rewritten at every start of it.
    pub fn address_file(&self) -> PathBuf {
        self.path.join("address")
    }

    /// The run's authority and tokens, for its owner alone.
    pub fn secrets(&self) -> PathBuf {
        self.path.join("tls")
    }

    /// Who owns the run, and which learner may change it.
    pub fn owner_file(&self) -> PathBuf {
        self.path.join("owner.json")
    }

    /// Claims of owners, one file for each.
    pub fn owners(&self) -> PathBuf {
        self.path.join("owners")
    }

    /// The claim of the owner of an epoch.
    pub fn claim(&self, epoch: u64) -> PathBuf {
        self.owners().join(format!("{epoch:06}"))
    }

    /// Locked by the living coordinator of the run on this host: a lock says nothing on another one.
    pub fn lock_file(&self) -> PathBuf {
        self.path.join(format!(".lock-{}", host_name().replace('/', "-")))
    }
}
