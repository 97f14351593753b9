//! `inputs.json`: digests of what a run reads.

use crate::error::CoordinatorError;
use crate::fingerprint::Fingerprint;
use config::{MOST_SETTINGS_BYTES, PromptRecord, read_whole};
use serde::{Deserialize, Serialize};
use service::{OwnedDirectory, RunDirectory, prompt_digest};
use std::collections::BTreeMap;

/// What `inputs.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InputRecord {
    /// Files of models by the key that names them.
    pub files: BTreeMap<String, Fingerprint>,
    /// The lists of prompts by what they are for. Earlier versions recorded none.
    #[serde(default)]
    pub prompts: Option<BTreeMap<String, PromptMark>>,
    /// Changes that were accepted, in order.
    #[serde(default)]
    pub accepted: Vec<AcceptedChange>,
}

/// A list of prompts, told from any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptMark {
    /// How many there are.
    pub count: usize,
    /// BLAKE3 of the list.
    pub blake3: String,
}

/// A change that somebody wished for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedChange {
    /// Start of the coordinator at which it was.
    pub generation: u64,
    /// In words.
    pub change: String,
}

impl PromptMark {
    /// That of a list.
    pub fn of(records: &[PromptRecord]) -> Self {
        Self { count: records.len(), blake3: prompt_digest(records) }
    }
}

impl InputRecord {
    /// Writes `inputs.json`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, directory: &OwnedDirectory) -> Result<(), CoordinatorError> {
        let text = serde_json::to_vec_pretty(self).expect("a record has a JSON form; else this is a bug");
        Ok(directory.write_file(&directory.inputs(), &text)?)
    }

    /// Reads `inputs.json`; nothing if it is lost or damaged.
    pub fn read(directory: &RunDirectory) -> Option<Self> {
        serde_json::from_slice(&read_whole(&directory.inputs(), MOST_SETTINGS_BYTES).ok()?).ok()
    }
}
