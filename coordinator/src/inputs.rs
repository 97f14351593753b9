//! What a run reads beside its config, and that it goes on with what it began with.
//!
//! Prompts are compared with the copies in the run directory, which all other processes read, or with the digests of those
//! that are lost; files of models with what `inputs.json` tells of them. A change is refused by name, and so is what nothing
//! is left to compare with, unless it is wished for; then it is noted there for good.

use crate::catalog::Catalog;
use crate::checkpoint_list::checkpoints;
use crate::cli::UpArgs;
use crate::config_file::missing_model;
use crate::error::CoordinatorError;
use crate::fingerprint::Fingerprint;
use crate::input_record::{AcceptedChange, InputRecord, PromptMark};
use crate::kept_inputs::{KeptInputs, KeptPrompts};
use crate::living_members::LivingMembers;
use crate::opening::OpenRun;
use crate::placement::MembersHere;
use crate::run_record::RunRecord;
use config::{PromptLists, PromptRecord, PromptSplit, RunConfig, prompts_as_json_lines};
use service::{Hub, RunDirectory, write_prompts};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Changes of one folder that are named one by one.
const NAMED_CHANGES: usize = 4;
/// The key of the model.
const MODEL: &str = "model.path";
/// That of the adapter that training goes on from, which the learner gets from here.
const START_FROM: &str = "adapter.start_from";
const FLAG: &str = "--accept-changed-data";

/// What a run would read if it started now.
pub struct Inputs<'a> {
    lists: &'a PromptLists,
    /// Files of models by the key that names them.
    files: BTreeMap<String, Fingerprint>,
    /// Keys that name what is not here, and needs not be.
    unseen: Vec<String>,
}

/// What has become of a run's inputs since it began.
#[derive(Debug, Default)]
struct Comparison {
    /// What is another.
    changes: Vec<String>,
    /// What cannot be compared any more.
    losses: Vec<String>,
    /// What was lost and is made good.
    notices: Vec<String>,
}

impl<'a> Inputs<'a> {
    /// Looks at everything that the config of a catalog names, for a run that has these members here.
    ///
    /// # Errors
    /// If a file of a model cannot be read.
    pub fn of(catalog: &'a Catalog, hub: &Hub, here: MembersHere) -> Result<Self, CoordinatorError> {
        let config = catalog.config();
        let mut inputs = Self { lists: catalog.prompt_lists(), files: BTreeMap::new(), unseen: Vec::new() };
        // Where it is missing and the run may begin all the same, nobody computes here.
        match missing_model(&config.model.path, hub) {
            Some(_) => inputs.unseen.push(MODEL.to_owned()),
            None => {
                let model = resolve(hub, &config.model.path)?;
                inputs.files.insert(MODEL.to_owned(), Fingerprint::of_pipeline(&model)?);
            }
        }
        for (key, path) in other_model_paths(config) {
            match found(hub, &key, &path) {
                Ok(found) => drop(inputs.files.insert(key, Fingerprint::of(&found)?)),
                // Of rewards, workers alone have need.
                Err(_) if !here.workers && key != START_FROM => inputs.unseen.push(key),
                Err(error) => return Err(error),
            }
        }
        Ok(inputs)
    }

    /// Finds out whether the run in a directory can go on with these, without touching anything.
    ///
    /// # Errors
    /// A usage error if something is not what the run began with, or nothing is left to tell, and nobody has wished for that;
    /// if a folder stands in place of `inputs.json`; or if members live that know only what was before.
    pub fn check(&self, args: &UpArgs, directory: &RunDirectory) -> Result<(), CoordinatorError> {
        let record = directory.inputs();
        if record.is_dir() {
            return Err(CoordinatorError::Usage(format!(
                "{} is a folder, where the digests of what the run reads should be; move it away, and try again",
                record.display()
            )));
        }
        let Comparison { changes, losses, notices: _ } = self.compare(args, directory);
        let listed = [&changes[..], &losses].concat().join("\n  ");
        if listed.is_empty() {
            return Ok(());
        }
        if !args.accept_changed_data {
            let run = directory.path().display();
            let problem = match changes.is_empty() {
                true => format!("{run} has lost what tells whether it would go on with what it began with"),
                false => format!("{run} did not begin with what it would go on with"),
            };
            return Err(CoordinatorError::Usage(format!(
                "{problem}:\n  {listed}\nput it back, or go on knowingly by `{FLAG}`"
            )));
        }
        let living = LivingMembers::everywhere(directory, &args.options.ssh);
        match living.is_empty() {
            true => Ok(()),
            false => Err(CoordinatorError::Usage(format!(
                "{living} still live and know what was before; end them first by `{}`, or put it back:\n  {listed}",
                living.end_command()
            ))),
        }
    }

    /// Records what the opened run reads, and returns the changes that this accepts.
    ///
    /// # Errors
    /// As [`Inputs::check`], and if a file cannot be written.
    pub fn settle(&self, args: &UpArgs, opened: &mut OpenRun) -> Result<Vec<String>, CoordinatorError> {
        let (directory, generation) = (opened.directory.clone(), opened.record.generation);
        self.check(args, &directory)?;
        let Comparison { changes, losses, notices } = self.compare(args, &directory);
        let accepted = [changes, losses].concat();
        let mut record = match args.resume {
            true => KeptInputs::of(&directory).record.unwrap_or_default(),
            false => InputRecord::default(),
        };
        let noted = accepted.iter().map(|change| AcceptedChange { generation, change: change.clone() });
        record.accepted.extend(noted);
        // What was recorded where it was seen still holds.
        record.files.retain(|key, _| self.unseen.contains(key));
        record.files.extend(self.files.clone());
        let mark = |(split, records): (PromptSplit, _)| (split.to_string(), PromptMark::of(records));
        record.prompts = Some(self.lists.iter().map(mark).collect());
        // Before the copies: those that do not fit it are made anew of what does.
        record.write(&directory)?;
        opened.record.inputs = Some(record);
        opened.record.write(&directory)?;
        for split in PromptSplit::ALL {
            match self.lists.of(split) {
                [] => directory.remove_file(&directory.prompts(split))?,
                records => write_prompts(&directory, split, records)?,
            }
        }
        opened.notices.extend(notices);
        Ok(accepted)
    }

    /// Everything that is not as the run in a directory has it, if it goes on.
    fn compare(&self, args: &UpArgs, directory: &RunDirectory) -> Comparison {
        let mut found = Comparison::default();
        if !args.resume {
            return found;
        }
        let kept = KeptInputs::of(directory);
        for split in PromptSplit::ALL {
            found.compare_prompts(split, &kept, self.lists.of(split));
        }
        match &kept.record {
            Some(record) => found.changes.extend(self.changes_of_files(record)),
            None => {
                let keys: Vec<String> = self.files.keys().map(|key| format!("`{key}`")).collect();
                found.losses.push(format!(
                    "{}: neither {} nor {} tells any more what its files were",
                    keys.join(", "),
                    directory.inputs().display(),
                    directory.run_file().display()
                ));
            }
        }
        let has_begun_elsewhere = RunRecord::read(directory).is_ok_and(|record| record.has_begun_elsewhere());
        if checkpoints(directory).is_empty() && !directory.has_records() && !has_begun_elsewhere {
            // Nothing has been trained of what is lost, as where the first start was interrupted.
            found.losses.clear();
        }
        found.notices.extend(kept.notice);
        found
    }

    fn changes_of_files(&self, record: &InputRecord) -> Vec<String> {
        let changes = |(key, now): (&String, &Fingerprint)| {
            let mut found = record.files.get(key)?.changes(now);
            let more = found.len().saturating_sub(NAMED_CHANGES);
            found.truncate(NAMED_CHANGES);
            found.extend((more > 0).then(|| format!("and {more} more files")));
            (!found.is_empty()).then(|| format!("`{key}`: {}", found.join(", ")))
        };
        self.files.iter().filter_map(changes).collect()
    }
}

impl Comparison {
    fn compare_prompts(&mut self, split: PromptSplit, kept: &KeptInputs, now: &[PromptRecord]) {
        let (key, copy) = (split.key(), kept.copy_name(split));
        let changed = |change: String| format!("`{key}`: {change}");
        match kept.prompts(split) {
            KeptPrompts::Whole(then) => self.changes.extend(change_of_list(&then, now).map(changed)),
            KeptPrompts::Absent => self.changes.extend(change_of_list(&[], now).map(changed)),
            KeptPrompts::Lost(Some(mark)) if mark == PromptMark::of(now) => self.notices.push(format!(
                "{copy} is lost or damaged; it is made anew of `{key}`, which is what the run began with"
            )),
            KeptPrompts::Lost(Some(mark)) => self.changes.push(changed(format!(
                "these {} prompts are not the {} that the run began with, and which differ cannot be told, since {copy} is \
                 lost or damaged",
                now.len(),
                mark.count
            ))),
            KeptPrompts::Lost(None) if now.is_empty() => {}
            KeptPrompts::Lost(None) => self.losses.push(changed(format!(
                "{copy} is lost or damaged, and nothing else tells which prompts the run began with"
            ))),
        }
    }
}

/// Where a key's file or folder is.
fn found(hub: &Hub, key: &str, path: &Path) -> Result<PathBuf, CoordinatorError> {
    let found = if path.exists() { path.to_owned() } else { resolve(hub, path)? };
    match found.exists() {
        true => Ok(found),
        false => Err(CoordinatorError::Usage(format!("`{key}`: there is no {}", config::place(&found)))),
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
    let adapter = (!start_from.as_os_str().is_empty()).then(|| (START_FROM.to_owned(), start_from.clone()));
    let is_trained = |key: &str| key.starts_with("rewards[") && !key.ends_with(".program");
    let rewards = config.reward_paths().into_iter().filter(|(key, _)| is_trained(key));
    adapter.into_iter().chain(rewards).collect()
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
