//! What a checkpoint of a run holds besides what is trained: how far the run is, and copies of its records.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::RunConfig;
use models::weights;
use serde::{Deserialize, Serialize};
use service::{RunDirectory, ServiceError};

use crate::error::LearnerError;
use crate::records::Copies;
use crate::records::evaluation::Evaluation;
use crate::training::policy::NamedTensors;

pub(super) const STATE_FILE: &str = "state.json";
/// The run config, for a run directory that has lost its own.
pub(super) const CONFIG_FILE: &str = "config.toml";
/// The evaluations recorded so far, likewise.
pub(super) const EVALUATIONS_FILE: &str = "evaluations.jsonl";
/// Those on the test prompts, likewise.
pub(super) const TESTS_FILE: &str = "tests.jsonl";

/// What a checkpoint holds besides tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedState {
    /// Of what the run config says about the trained adapter; the rest may change between lives of a run.
    pub(super) config_digest: String,
    /// Iterations trained.
    pub(super) version: u32,
    /// Optimizer updates.
    pub(super) updates: u64,
    /// Images scored for training; what evaluations took stands in their records.
    pub(super) images: u64,
    /// Guided network evaluations, likewise.
    pub(super) network_evaluations: u64,
    /// Of the learner's process, over all its lives, without those that a crash undid.
    pub(super) seconds: f64,
    /// Of these, not waiting for workers.
    pub(super) computing_seconds: f64,
    /// Earlier versions of the policy, each with a file of its own.
    pub(super) earlier_versions: Vec<u32>,
}

impl SavedState {
    /// The start of a run.
    pub(super) fn new(config: &RunConfig) -> Self {
        let config_digest = blake3::hash(config.identity().as_bytes()).to_hex().to_string();
        Self { config_digest, ..Self::default() }
    }

    /// The state of a checkpoint of the run that would start with `expected`.
    pub(super) fn read(checkpoint: &Path, expected: &Self, run: &RunDirectory) -> Result<Self, LearnerError> {
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
    pub(super) fn read_earlier(
        &self,
        checkpoint: &Path,
    ) -> Result<BTreeMap<u32, NamedTensors>, LearnerError> {
        let read =
            |version: &u32| Ok((*version, weights::read_all(&checkpoint.join(policy_file(*version)))?.0));
        self.earlier_versions.iter().map(read).collect()
    }
}

/// The evaluations that a checkpoint holds a copy of; none where it holds none.
pub(super) fn read_copies(checkpoint: &Path) -> Result<Copies, LearnerError> {
    Ok(Copies {
        evaluations: read_copy(checkpoint.join(EVALUATIONS_FILE))?,
        tests: read_copy(checkpoint.join(TESTS_FILE))?,
    })
}

fn read_copy(path: PathBuf) -> Result<Vec<Evaluation>, LearnerError> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let unreadable = |source| ServiceError::File { action: "read", path: path.clone(), source };
    let bytes = std::fs::read(&path).map_err(unreadable)?;
    let rows = serde_json::Deserializer::from_slice(&bytes).into_iter().collect::<Result<_, _>>();
    Ok(rows.map_err(|error| unreadable(error.into()))?)
}

/// The file of an earlier version of the policy.
pub(super) fn policy_file(version: u32) -> String {
    format!("policy-{version:06}.safetensors")
}
