//! The durable side of a run: what a checkpoint holds, when one cannot be written, what is exported and told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{AdapterMethod, RunConfig};
use models::weights;
use proto::{HeldOut, ScoreChange, Summary};
use serde::{Deserialize, Serialize};
use service::{RunDirectory, ServiceError, durable};
use tch::Tensor;

use crate::checkpoint::CheckpointError;
use crate::error::LearnerError;
use crate::evaluation::{self, Evaluation};
use crate::export;
use crate::policy::{self, NamedTensors};
use crate::run::Run;
use crate::serve::chain;
use crate::trainer::Trainer;

const STATE_FILE: &str = "state.json";
/// Checkpoints in a row that may fail before the run gives up.
const FAILED_SAVES_LIMIT: u32 = 3;

/// What a checkpoint holds besides tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedState {
    /// Of what the run config says about the trained adapter; the rest may change between lives of a run.
    pub(crate) config_digest: String,
    /// Iterations trained.
    pub(crate) version: u32,
    /// Optimizer updates.
    pub(crate) updates: u64,
    /// Images scored for training; what evaluations took stands in their records.
    pub(crate) images: u64,
    /// Guided network evaluations, likewise.
    pub(crate) network_evaluations: u64,
    /// Of the learner's process, over all its lives, without those that a crash undid.
    pub(crate) seconds: f64,
    /// Of these, not waiting for workers.
    pub(crate) computing_seconds: f64,
    /// Earlier versions of the policy, each with a file of its own.
    pub(crate) earlier_versions: Vec<u32>,
}

impl SavedState {
    /// The start of a run.
    pub(crate) fn new(config: &RunConfig) -> Self {
        let config_digest = blake3::hash(config.identity().as_bytes()).to_hex().to_string();
        Self { config_digest, ..Self::default() }
    }

    /// The state of a checkpoint of the run that would start with `expected`.
    pub(crate) fn read(checkpoint: &Path, expected: &Self, run: &RunDirectory) -> Result<Self, LearnerError> {
        let path = checkpoint.join(STATE_FILE);
        let unreadable = |source| ServiceError::File { action: "read", path: path.clone(), source };
        let bytes = std::fs::read(&path).map_err(unreadable)?;
        let state: Self = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.into()))?;
        match state.config_digest == expected.config_digest {
            true => Ok(state),
            false => Err(LearnerError::OtherConfig {
                path: checkpoint.display().to_string(),
                saved: run.config().display().to_string(),
            }),
        }
    }

    /// The earlier versions of the policy that a checkpoint holds.
    pub(crate) fn read_earlier(
        &self,
        checkpoint: &Path,
    ) -> Result<BTreeMap<u32, NamedTensors>, LearnerError> {
        let read =
            |version: &u32| Ok((*version, weights::read_all(&checkpoint.join(policy_file(*version)))?.0));
        self.earlier_versions.iter().map(read).collect()
    }
}

impl Run {
    /// Writes a checkpoint and exports the average of what is trained; a failure is told, and final only if it repeats.
    pub(crate) fn save(&mut self) -> Result<(), LearnerError> {
        self.trainer.progress.phase("checkpointing");
        let version = self.state.version;
        let state = SavedState {
            seconds: self.seconds(),
            earlier_versions: self.earlier.keys().copied().filter(|earlier| *earlier < version).collect(),
            ..self.state.clone()
        };
        match self.checkpoints.write(version, |directory| self.write_files(directory, &state)) {
            Ok(path) => {
                tracing::info!(version, "checkpoint {}", path.display());
                (self.saved, self.failed_saves) = (Some(version), 0);
                if let Err(error) = self.checkpoints.prune() {
                    tracing::warn!("old checkpoints stay: {error}");
                }
                let average = shallow_clones(self.trainer.policy.average());
                if let Err(error) = self.export(&average, &self.directory.adapter()) {
                    let notice = format!("what is trained is exported with the next checkpoint: {error}");
                    self.trainer.progress.notice(notice);
                }
                Ok(())
            }
            Err(source) => {
                self.failed_saves += 1;
                let attempts = self.failed_saves;
                let reason = chain(&source);
                self.trainer.progress.notice(format!(
                    "checkpoint {version} not written, earlier ones are kept ({attempts} of {FAILED_SAVES_LIMIT} \
                     attempts): {reason}"
                ));
                match attempts < FAILED_SAVES_LIMIT {
                    true => Ok(()),
                    false => Err(LearnerError::CheckpointsFail { attempts, source }),
                }
            }
        }
    }

    /// Told to leave: saves the version reached, unless an unfinished iteration has moved the policy already.
    pub(crate) fn save_before_leaving(&mut self) -> Result<(), LearnerError> {
        let is_at_boundary = self.trainer.updates == self.state.updates;
        if is_at_boundary && self.saved != Some(self.state.version) { self.save() } else { Ok(()) }
    }

    /// Exports the average of the checkpoint of `version`, beside the newest adapter.
    pub(crate) fn export_best(&mut self, version: u32) -> Result<(), LearnerError> {
        let average = policy::read_average(&self.checkpoints.path(version))?;
        self.export(&average, &self.best_adapter())
    }

    fn export(&mut self, average: &[(String, Tensor)], directory: &Path) -> Result<(), LearnerError> {
        let Trainer { config, policy, .. } = &mut self.trainer;
        match config.adapter.method {
            AdapterMethod::Lora => export::write_adapter(config, average, directory),
            AdapterMethod::Full => {
                let base = policy.folder().to_owned();
                policy
                    .with_average(average, |tensors| export::write_transformer(&base, tensors, directory))?
            }
        }
    }

    /// Seconds since the start of the run, its earlier lives included.
    pub(crate) fn seconds(&self) -> f64 {
        self.state.seconds + self.opened.elapsed().as_secs_f64()
    }

    /// Tells the coordinator how far the run is.
    pub(crate) fn tell_progress(&self) {
        let (state, seconds) = (&self.state, self.seconds());
        let (images, network_evaluations) = self.totals();
        let reward = self.records.metrics().last().map(|row| row.reward.mean);
        let held_out = self.records.evaluations().last().map(held_out);
        self.trainer.progress.update(|progress| {
            progress.iteration = state.version;
            progress.iterations = self.config().run.iterations;
            progress.reward = reward;
            progress.held_out = held_out;
            progress.images = images;
            progress.network_evaluations = network_evaluations;
            progress.seconds = seconds;
            progress.learner_busy = state.computing_seconds / seconds.max(f64::MIN_POSITIVE);
        });
    }

    /// What the run achieved and cost.
    pub(crate) fn summary(&self) -> Summary {
        let (seconds, evaluations) = (self.seconds(), self.records.evaluations());
        let (images, network_evaluations) = self.totals();
        let best = evaluation::best(evaluations);
        let is_of_test_prompts = self.config().data.has_validation();
        let reported = if is_of_test_prompts { self.records.tests() } else { evaluations };
        let comparable = evaluation::comparable(reported);
        let reported = |version: u32| comparable.iter().copied().find(|row| row.version == version);
        let last = match is_of_test_prompts {
            true => Some(self.state.version),
            false => evaluations.last().map(|row| row.version),
        };
        let (before, after) = (comparable.first().copied(), last.and_then(&reported));
        let is_exported = best.is_some_and(|best| self.checkpoints.best() == Some(best.version));
        Summary {
            before: before.map(held_out),
            after: after.map(held_out),
            best: best.and_then(|best| reported(best.version)).map(held_out),
            gain: after.map_or(0.0, |row| row.gain),
            gain_standard_error: after.map_or(0.0, |row| row.gain_standard_error),
            prompts: after.map_or(0, |row| row.prompts),
            seconds,
            images,
            network_evaluations,
            learner_busy: self.state.computing_seconds / seconds,
            // Both are known to the coordinator, which fills them in.
            worker_busy: 0.0,
            worker_busy_seconds: 0.0,
            adapter: self.directory.adapter().display().to_string(),
            best_adapter: if is_exported { self.best_adapter().display().to_string() } else { String::new() },
            scores: before.zip(after).map(|(before, after)| score_changes(before, after)).unwrap_or_default(),
            reward_hacking: evaluations.last().map(|row| row.reward_hacking.clone()).unwrap_or_default(),
            is_of_test_prompts,
        }
    }

    /// Images scored and guided network evaluations, for training and evaluations.
    fn totals(&self) -> (u64, u64) {
        let rows = [self.records.evaluations(), self.records.tests()].concat();
        let images = rows.iter().map(|row| row.images).sum::<u64>();
        let network_evaluations = rows.iter().map(|row| row.network_evaluations).sum::<u64>();
        (self.state.images + images, self.state.network_evaluations + network_evaluations)
    }

    fn best_adapter(&self) -> PathBuf {
        self.directory.adapter().join("best")
    }

    fn write_files(&self, directory: &Path, state: &SavedState) -> Result<(), CheckpointError> {
        self.trainer.policy.save(directory)?;
        for version in &state.earlier_versions {
            weights::write(
                &directory.join(policy_file(*version)),
                &self.earlier[version],
                &Default::default(),
            )?;
        }
        let text = serde_json::to_string_pretty(state).expect("the state is plain data; else this is a bug");
        Ok(durable::write_file(&directory.join(STATE_FILE), text.as_bytes())?)
    }
}

fn shallow_clones(tensors: &[(String, Tensor)]) -> NamedTensors {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

fn held_out(row: &Evaluation) -> HeldOut {
    HeldOut { version: row.version, reward: row.reward, standard_error: row.standard_error }
}

/// What became of each reward between two evaluations by the same ones.
fn score_changes(before: &Evaluation, after: &Evaluation) -> Vec<ScoreChange> {
    let change = |reward: &config::RewardSection| {
        let (before, after) = (before.scores.get(&reward.name)?, after.scores.get(&reward.name)?);
        Some(ScoreChange {
            name: reward.name.clone(),
            before: before.mean,
            before_standard_error: before.standard_error,
            after: after.mean,
            after_standard_error: after.standard_error,
        })
    };
    after.rewards.iter().filter_map(change).collect()
}

fn policy_file(version: u32) -> String {
    format!("policy-{version:06}.safetensors")
}
