//! Prompt files: plain text, JSON lists and lines (`prompt` and free metadata, as GenEval's), tables with a column `prompt`,
//! and folders of such files as Flow-GRPO and Flow-Factory lay them out.

mod decoding;
mod format;
mod lists;
mod rows;
mod table;

use crate::paths::place;
use crate::regular_file::{MOST_PROMPT_BYTES, read_whole};
use crate::{DataSection, RewardSection, TaskKind, scorers};
use format::{KNOWN_ENDINGS, PromptFormat};
pub use lists::{PromptLists, prompts_as_json_lines};
use serde_json::Value;
use std::fmt;
use std::path::{Path, PathBuf};

/// One prompt and what came with it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRecord {
    /// Position in the file, blank lines not counted.
    pub index: u32,
    /// The prompt.
    pub text: String,
    /// The whole object of a JSON file or row of a table; an empty object for plain text.
    pub metadata: Value,
}

/// Why a prompt file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptFileError {
    /// The file cannot be read.
    #[error("cannot read the prompt file {}", place(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Some lines are malformed; all of them are named.
    #[error("the prompt file {} is malformed: {problems}", place(path), problems = problems.join("; "))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// One sentence per line at fault (the first ten).
        problems: Vec<String>,
    },
    /// A folder does not hold exactly one file of prompts for its purpose.
    #[error(
        "the folder {} holds {}; {} needs exactly one file called `{split}` or `{split}_metadata` with an ending of {}, or \
         name a file",
        place(path),
        if found.is_empty() { "no prompt file".to_owned() } else { found.join(" and ") },
        split.key(),
        KNOWN_ENDINGS
    )]
    AmbiguousFolder {
        /// The folder.
        path: PathBuf,
        /// What the prompts are for.
        split: PromptSplit,
        /// The files that would do.
        found: Vec<String>,
    },
    /// The file has no prompt.
    #[error("the prompt file {} holds no prompt; write one prompt per line", place(path))]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The name of the file does not say what is in it.
    #[error(
        "the prompt file {} has an ending that says nothing of prompts; write {KNOWN_ENDINGS}",
        place(path)
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
}

impl PromptFileError {
    /// Whether there is nothing where prompts should be, rather than something that is at fault.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Unreadable { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Self::AmbiguousFolder { found, .. } => found.is_empty(),
            Self::Malformed { .. } | Self::Empty { .. } | Self::UnknownFormat { .. } => false,
        }
    }
}

/// What is wrong with a line of a prompt file.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    /// Its number, from 1.
    line: usize,
    message: String,
}

/// What prompts are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PromptSplit {
    /// Training.
    Train,
    /// Held-out evaluation, and choosing.
    Validation,
    /// Reporting.
    Test,
}

impl PromptSplit {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The key of the config that names the file.
    pub fn key(self) -> String {
        format!("data.{self}")
    }

    /// Whether a folder's file of this name holds such prompts.
    fn names(self, file: &Path) -> bool {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
        let ending = file.extension().and_then(|ending| ending.to_str());
        let is_stem = stem == self.to_string() || stem == format!("{self}_metadata");
        is_stem && ending.and_then(PromptFormat::of_ending).is_some()
    }
}

impl fmt::Display for PromptSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

/// The prompt file that a path of the config means: itself, or the one for the split in a folder.
///
/// # Errors
/// If the path is a folder with no such file or several, or cannot be listed.
pub fn prompt_file(path: &Path, split: PromptSplit) -> Result<PathBuf, PromptFileError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let unreadable = |source| PromptFileError::Unreadable { path: path.to_owned(), source };
    let entries =
        std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(unreadable)?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| split.names(file) && file.is_file());
    files.sort();
    if let [file] = files.as_slice() {
        return Ok(file.clone());
    }
    let name = |file: &PathBuf| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Err(PromptFileError::AmbiguousFolder {
        path: path.to_owned(),
        split,
        found: files.iter().map(name).collect(),
    })
}

impl DataSection {
    /// Whether there are prompts to choose by besides those that are reported.
    pub fn has_validation(&self) -> bool {
        !self.validation.as_os_str().is_empty()
    }

    /// The lists that the config names.
    pub fn splits(&self) -> Vec<PromptSplit> {
        let is_named = |split: &PromptSplit| *split != PromptSplit::Validation || self.has_validation();
        PromptSplit::ALL.into_iter().filter(is_named).collect()
    }

    /// Which prompts the tasks of a kind are of: evaluations are of the test prompts where there are none to choose by.
    pub fn split_of(&self, kind: TaskKind) -> PromptSplit {
        match kind {
            TaskKind::Train => PromptSplit::Train,
            TaskKind::Evaluate if self.has_validation() => PromptSplit::Validation,
            TaskKind::Evaluate | TaskKind::Test => PromptSplit::Test,
        }
    }

    /// The file or folder that the config names for such prompts.
    pub fn path(&self, split: PromptSplit) -> &Path {
        match split {
            PromptSplit::Train => &self.train,
            PromptSplit::Validation => &self.validation,
            PromptSplit::Test => &self.test,
        }
    }
}

/// Keys that other trainers read and this one does not, and why.
const UNUSED_KEYS: [(&str, &str); 6] = [
    ("negative_prompt", "guidance is against the model's own negative prompt"),
    ("image", TEXT_ALONE),
    ("images", TEXT_ALONE),
    ("video", TEXT_ALONE),
    ("videos", TEXT_ALONE),
    ("audio", TEXT_ALONE),
];
const TEXT_ALONE: &str = "pictures are drawn from text alone";

/// One sentence for every key that prompts carry and that has no effect here, for a user to be told.
pub fn unused_prompt_keys(path: &Path, records: &[PromptRecord]) -> Vec<String> {
    let carries = |record: &&PromptRecord, key: &str| match record.metadata.get(key) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    };
    let sentence = |(key, reason): (&str, &str)| {
        let n_records = records.iter().filter(|record| carries(record, key)).count();
        (n_records > 0)
            .then(|| format!("{}: `{key}` of {n_records} prompts is not used; {reason}", path.display()))
    };
    UNUSED_KEYS.into_iter().filter_map(sentence).collect()
}

/// Reads a prompt file.
///
/// # Errors
/// If the file cannot be read, is no regular file, its ending is unknown, it holds no prompt, or has malformed lines (each named by its number).
pub fn read_prompts(path: &Path) -> Result<Vec<PromptRecord>, PromptFileError> {
    let format = format_of(path)?;
    let bytes = read_whole(path, MOST_PROMPT_BYTES)
        .map_err(|source| PromptFileError::Unreadable { path: path.to_owned(), source })?;
    prompts_of(path, format, &bytes)
}

/// Reads the bytes of a prompt file; the path says which format they have, and names the file in errors.
///
/// # Errors
/// As [`read_prompts`], but that nothing is read from a disk.
pub fn parse_prompts(path: &Path, bytes: &[u8]) -> Result<Vec<PromptRecord>, PromptFileError> {
    prompts_of(path, format_of(path)?, bytes)
}

fn format_of(path: &Path) -> Result<PromptFormat, PromptFileError> {
    PromptFormat::of(path).ok_or_else(|| PromptFileError::UnknownFormat { path: path.to_owned() })
}

fn prompts_of(path: &Path, format: PromptFormat, bytes: &[u8]) -> Result<Vec<PromptRecord>, PromptFileError> {
    let named = |problem: Problem| format!("line {}: {}", problem.line, problem.message);
    let text = decoding::decode(bytes)
        .map_err(|problems| malformed(path, problems.into_iter().map(named).collect()))?;
    let (mut records, mut problems) = (Vec::new(), Vec::new());
    for row in rows::rows(&text, format) {
        match row {
            Ok((text, metadata)) => {
                records.push(PromptRecord { index: records.len() as u32, text, metadata });
            }
            Err(problem) => problems.push(named(problem)),
        }
    }
    if !problems.is_empty() {
        return Err(malformed(path, problems));
    }
    if records.is_empty() {
        return Err(PromptFileError::Empty { path: path.to_owned() });
    }
    Ok(records)
}

/// Finds out before a run starts whether prompts carry what its rewards look at.
///
/// # Errors
/// [`PromptFileError::Malformed`] with every prompt that lacks a key (the first ten).
pub fn check_metadata(
    path: &Path,
    records: &[PromptRecord],
    rewards: &[RewardSection],
) -> Result<(), PromptFileError> {
    let mut problems = Vec::new();
    let is_used = |name: &&str| rewards.iter().any(|reward| reward.scorer() == *name);
    for name in scorers::needing_metadata().filter(is_used) {
        for record in records {
            let lack = match (record.metadata.get("tag"), record.metadata.get("include")) {
                (None, _) => "has no `tag`",
                (_, None) => "has no `include`",
                (_, Some(include)) if !include.is_array() => "has an `include` that is no list",
                _ => continue,
            };
            problems.push(format!(
                "prompt {} `{}` {lack}, which reward `{name}` needs; use GenEval's JSONL",
                record.index + 1,
                record.text
            ));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(malformed(path, problems)) }
}

/// All problems of a file, after the first ten only their number.
fn malformed(path: &Path, mut problems: Vec<String>) -> PromptFileError {
    let more = problems.len().saturating_sub(10);
    problems.truncate(10);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    PromptFileError::Malformed { path: path.to_owned(), problems }
}

#[cfg(test)]
mod tests;
