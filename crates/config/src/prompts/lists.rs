//! All prompts of a run, and the form in which its directory keeps them.

use super::{PromptRecord, PromptSplit};
use serde_json::Value;
use std::collections::BTreeMap;

/// The prompts of a run by what they are for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptLists(BTreeMap<PromptSplit, Vec<PromptRecord>>);

impl PromptLists {
    /// Those prompts; no others.
    pub fn new(lists: impl IntoIterator<Item = (PromptSplit, Vec<PromptRecord>)>) -> Self {
        Self(lists.into_iter().collect())
    }

    /// The prompts for a purpose; none if the run has no such list.
    pub fn of(&self, split: PromptSplit) -> &[PromptRecord] {
        self.0.get(&split).map_or(&[], Vec::as_slice)
    }

    /// Every list that there is.
    pub fn iter(&self) -> impl Iterator<Item = (PromptSplit, &[PromptRecord])> {
        self.0.iter().map(|(split, records)| (*split, records.as_slice()))
    }
}

/// A list as JSON lines, the same whatever format it was read from: equal texts are equal prompts with equal metadata.
pub fn prompts_as_json_lines(records: &[PromptRecord]) -> String {
    let line = |record: &PromptRecord| {
        let mut row = record.metadata.clone();
        if let Value::Object(fields) = &mut row {
            fields.insert("prompt".to_owned(), Value::String(record.text.clone()));
        }
        format!("{row}\n")
    };
    records.iter().map(line).collect()
}
