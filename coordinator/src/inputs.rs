//! What a run reads beside its config, and that it goes on with what it began with.
//!
//! Prompts are compared with the copies in the run directory, which all other processes read; files of models with what
//! `inputs.json` tells of them. A change is refused by name, unless it is wished for; then it is noted there for good.

use crate::catalog::Catalog;
use crate::cli::UpArgs;
use crate::error::CoordinatorError;
use crate::fingerprint::Fingerprint;
use crate::opening::OpenRun;
use crate::run_record::RunRecord;
use config::{PromptLists, PromptRecord, PromptSplit, RunConfig, prompts_as_json_lines, read_prompts};
use serde::{Deserialize, Serialize};
use service::{Hub, RunDirectory, durable, write_prompts};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Changes of one folder that are named one by one.
const NAMED_CHANGES: usize = 4;
const FLAG: &str = "--accept-changed-data";

/// What a run would read if it started now.
pub struct Inputs<'a> {
    lists: &'a PromptLists,
    /// Files of models by the key that names them.
    files: BTreeMap<String, Fingerprint>,
}

/// What `inputs.json` holds.
#[derive(Debug, Default, Serialize, Deserialize)]
struct InputRecord {
    files: BTreeMap<String, Fingerprint>,
    /// Changes that were accepted, in order.
    #[serde(default)]
    accepted: Vec<AcceptedChange>,
}

impl InputRecord {
    fn write(&self, directory: &RunDirectory) -> Result<(), CoordinatorError> {
        let text = serde_json::to_vec_pretty(self).expect("a record has a JSON form; else this is a bug");
        Ok(durable::write_file(&directory.inputs(), &text)?)
    }
}

/// A change that somebody wished for.
#[derive(Debug, Serialize, Deserialize)]
struct AcceptedChange {
    /// Start of the coordinator at which it was.
    generation: u64,
    change: String,
}

impl<'a> Inputs<'a> {
    /// Looks at everything that the config of a catalog names.
    ///
    /// # Errors
    /// If a file of a model cannot be read.
    pub fn of(catalog: &'a Catalog, hub: &Hub) -> Result<Self, CoordinatorError> {
        let config = catalog.config();
        let mut files = BTreeMap::new();
        files.insert("model.path".to_owned(), Fingerprint::of_pipeline(&resolve(hub, &config.model.path)?)?);
        for (key, path) in other_model_paths(config) {
            let found = if path.exists() { path } else { resolve(hub, &path)? };
            if !found.exists() {
                let problem = format!("`{key}`: there is no {}", config::place(&found));
                return Err(CoordinatorError::Usage(problem));
            }
            files.insert(key, Fingerprint::of(&found)?);
        }
        Ok(Self { lists: catalog.prompt_lists(), files })
    }

    /// Finds out whether the run in a directory can go on with these, without touching anything.
    ///
    /// # Errors
    /// A usage error if something is not what the run began with and nobody has wished for that, or if members live that
    /// know only what was before.
    pub fn check(&self, args: &UpArgs, directory: &RunDirectory) -> Result<(), CoordinatorError> {
        let changes = if args.resume { self.changes(directory)? } else { Vec::new() };
        if changes.is_empty() {
            return Ok(());
        }
        let listed = changes.join("\n  ");
        if !args.accept_changed_data {
            return Err(CoordinatorError::Usage(format!(
                "{} did not begin with what it would go on with:\n  {listed}\nput it back, or go on knowingly by `{FLAG}`",
                directory.path().display()
            )));
        }
        let living = RunRecord::read(directory).map(|record| record.living_members()).unwrap_or_default();
        match living.is_empty() {
            true => Ok(()),
            false => Err(CoordinatorError::Usage(format!(
                "{} still live and know what was before; end them first, or put it back:\n  {listed}",
                living.join(", ")
            ))),
        }
    }

    /// Records what the opened run reads, and returns the changes that this accepts.
    ///
    /// # Errors
    /// As [`Inputs::check`], and if a file cannot be written.
    pub fn settle(&self, args: &UpArgs, opened: &OpenRun) -> Result<Vec<String>, CoordinatorError> {
        let (directory, generation) = (&opened.directory, opened.record.generation);
        self.check(args, directory)?;
        let changes = if args.resume { self.changes(directory)? } else { Vec::new() };
        let earlier = if args.resume { recorded(directory)? } else { None };
        let mut record = earlier.unwrap_or_default();
        let accepted = changes.iter().map(|change| AcceptedChange { generation, change: change.clone() });
        record.accepted.extend(accepted);
        if !changes.is_empty() {
            // Before the copies, which no longer tell of the change.
            record.write(directory)?;
        }
        for split in PromptSplit::ALL {
            match self.lists.of(split) {
                [] => remove(&directory.prompts(split))?,
                records => write_prompts(directory, split, records)?,
            }
        }
        record.files.clone_from(&self.files);
        // After the copies, of which it says that they are complete.
        record.write(directory)?;
        Ok(changes)
    }

    /// Everything that is not as the run in a directory has it. What that has no record of is taken as it is.
    fn changes(&self, directory: &RunDirectory) -> Result<Vec<String>, CoordinatorError> {
        let (mut changes, record) = (Vec::new(), recorded(directory)?);
        // Written last, the record says that all copies were made.
        let is_complete = record.is_some() && directory.prompt_folder().is_dir();
        for split in PromptSplit::ALL {
            let Some(then) = copy(directory, split)?.or(is_complete.then(Vec::new)) else { continue };
            let change = change_of_list(&then, self.lists.of(split));
            changes.extend(change.map(|change| format!("`{}`: {change}", split.key())));
        }
        let Some(record) = record else { return Ok(changes) };
        for (key, now) in &self.files {
            let Some(then) = record.files.get(key) else { continue };
            let mut found = then.changes(now);
            let more = found.len().saturating_sub(NAMED_CHANGES);
            found.truncate(NAMED_CHANGES);
            found.extend((more > 0).then(|| format!("and {more} more files")));
            if !found.is_empty() {
                changes.push(format!("`{key}`: {}", found.join(", ")));
            }
        }
        Ok(changes)
    }
}

/// The folder of a model by its name, if it is one.
fn resolve(hub: &Hub, model: &Path) -> Result<PathBuf, CoordinatorError> {
    hub.resolve(model).map_err(|error| CoordinatorError::Usage(error.to_string()))
}

/// Files and folders beside the model that decide what is trained. Published models that a reward takes by itself are not
/// among them, nor what only evaluations are scored by: that may change.
fn other_model_paths(config: &RunConfig) -> Vec<(String, PathBuf)> {
    let start_from = &config.adapter.start_from;
    let adapter =
        (!start_from.as_os_str().is_empty()).then(|| ("adapter.start_from".to_owned(), start_from.clone()));
    let is_trained = |key: &str| key.starts_with("rewards[") && !key.ends_with(".program");
    let rewards = config.reward_paths().into_iter().filter(|(key, _)| is_trained(key));
    adapter.into_iter().chain(rewards).collect()
}

fn remove(path: &Path) -> Result<(), CoordinatorError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(CoordinatorError::File { action: "remove", path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn recorded(directory: &RunDirectory) -> Result<Option<InputRecord>, CoordinatorError> {
    let path = directory.inputs();
    let bytes = match config::read_whole(&path, config::MOST_SETTINGS_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CoordinatorError::File { action: "read", path, source }),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        CoordinatorError::Usage(format!(
            "{} is damaged ({error}); remove it to go on with the model's files as they are",
            path.display()
        ))
    })
}

/// The prompts that a run keeps for a purpose, if it does.
fn copy(directory: &RunDirectory, split: PromptSplit) -> Result<Option<Vec<PromptRecord>>, CoordinatorError> {
    let path = directory.prompts(split);
    if !path.exists() {
        return Ok(None);
    }
    read_prompts(&path).map(Some).map_err(|error| {
        let error = format!("{:#}", anyhow::Error::from(error));
        CoordinatorError::Usage(format!("{error}; remove {} to take the prompts as they are", path.display()))
    })
}

fn change_of_list(then: &[PromptRecord], now: &[PromptRecord]) -> Option<String> {
    if prompts_as_json_lines(then) == prompts_as_json_lines(now) {
        return None;
    }
    let is_same = |(then, now): &(&PromptRecord, &PromptRecord)| {
        prompts_as_json_lines(std::slice::from_ref(*then))
            == prompts_as_json_lines(std::slice::from_ref(*now))
    };
    let n_same = then.iter().zip(now).take_while(is_same).count();
    let text = |records: &[PromptRecord]| {
        records.get(n_same).map_or("nothing".to_owned(), |record| format!("\"{}\"", record.text))
    };
    let (old, new) = (text(then), text(now));
    let counts = match then.len() == now.len() {
        true => String::new(),
        false => format!("{} prompts, {} when the run began; ", now.len(), then.len()),
    };
    let difference = match old == new {
        true => format!("prompt {} {old} has other metadata", n_same + 1),
        false => format!("prompt {} was {old} and is {new}", n_same + 1),
    };
    Some(format!("{counts}{difference}"))
}

#[cfg(test)]
mod tests;
