//! Prompt files: `.txt` with one prompt per line, `.jsonl` with one object per line (`prompt` and free metadata, as
//! GenEval's), and folders of both as Flow-GRPO and Flow-Factory lay them out.

use crate::{DataSection, RewardSection};
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
    /// The whole row of a `.jsonl` file; an empty object for plain text.
    pub metadata: Value,
}

/// Why a prompt file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PromptFileError {
    /// The file cannot be read.
    #[error("cannot read the prompt file {path}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Some lines are malformed; all of them are named.
    #[error("the prompt file {path} is malformed: {problems}", path = path.display(), problems = problems.join("; "))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// One sentence per line at fault (the first ten).
        problems: Vec<String>,
    },
    /// A folder does not hold exactly one file of prompts for its purpose.
    #[error(
        "the folder {path} holds {}; `data.{split}` needs exactly one of {}, or name a file",
        if found.is_empty() { "no prompt file".to_owned() } else { found.join(" and ") },
        split.file_names().join(", "),
        path = path.display()
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
    #[error("the prompt file {path} holds no prompt; write one prompt per line", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// What prompts are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptSplit {
    /// Training.
    Train,
    /// Held-out evaluation, and choosing.
    Validation,
    /// Reporting.
    Test,
}

impl PromptSplit {
    /// How a folder's file of such prompts can be called.
    fn file_names(self) -> [String; 3] {
        [format!("{self}.txt"), format!("{self}.jsonl"), format!("{self}_metadata.jsonl")]
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
/// If the path is a folder with no such file or several.
pub fn prompt_file(path: &Path, split: PromptSplit) -> Result<PathBuf, PromptFileError> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let is_there = |name: &String| path.join(name).is_file();
    let found: Vec<String> = split.file_names().into_iter().filter(is_there).collect();
    match found.as_slice() {
        [name] => Ok(path.join(name)),
        _ => Err(PromptFileError::AmbiguousFolder { path: path.to_owned(), split, found }),
    }
}

impl DataSection {
    /// Reads the training prompts.
    ///
    /// # Errors
    /// As [`prompt_file`] and [`read_prompts`].
    pub fn train_prompts(&self) -> Result<Vec<PromptRecord>, PromptFileError> {
        read_prompts(&prompt_file(&self.train, PromptSplit::Train)?)
    }

    /// Whether there are prompts to choose by besides those that are reported.
    pub fn has_validation(&self) -> bool {
        !self.validation.as_os_str().is_empty()
    }

    /// The file of the prompts that are evaluated all along.
    ///
    /// # Errors
    /// As [`prompt_file`].
    pub fn evaluated_file(&self) -> Result<PathBuf, PromptFileError> {
        match self.has_validation() {
            true => prompt_file(&self.validation, PromptSplit::Validation),
            false => prompt_file(&self.test, PromptSplit::Test),
        }
    }

    /// Reads the prompts that are evaluated all along.
    ///
    /// # Errors
    /// As [`Self::evaluated_file`] and [`read_prompts`].
    pub fn evaluated_prompts(&self) -> Result<Vec<PromptRecord>, PromptFileError> {
        read_prompts(&self.evaluated_file()?)
    }

    /// Reads the prompts that are reported.
    ///
    /// # Errors
    /// As [`prompt_file`] and [`read_prompts`].
    pub fn test_prompts(&self) -> Result<Vec<PromptRecord>, PromptFileError> {
        read_prompts(&prompt_file(&self.test, PromptSplit::Test)?)
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
/// If the file cannot be read, holds no prompt, or has malformed lines (each named by its number).
pub fn read_prompts(path: &Path) -> Result<Vec<PromptRecord>, PromptFileError> {
    let unreadable = |source| PromptFileError::Unreadable { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let text = String::from_utf8(bytes)
        .map_err(|error| unreadable(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))?;
    let is_json = path.extension().is_some_and(|extension| extension == "jsonl");

    let mut records = Vec::new();
    let mut problems = Vec::new();
    for (line_idx, line) in text.lines().enumerate() {
        let line = line.trim().trim_start_matches('\u{feff}');
        if line.is_empty() {
            continue;
        }
        let parsed = if is_json { parse_row(line) } else { Ok((line.to_owned(), empty_object())) };
        match parsed {
            Ok((text, metadata)) => {
                records.push(PromptRecord { index: records.len() as u32, text, metadata });
            }
            Err(problem) => problems.push(format!("line {}: {problem}", line_idx + 1)),
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

/// Metadata keys that a reward looks at, by its name.
const NEEDED_METADATA: [(&str, [&str; 2]); 2] =
    [("shapes", ["tag", "include"]), ("geneval", ["tag", "include"])];

/// Finds out before a run starts whether prompts carry what its rewards look at.
///
/// # Errors
/// [`PromptFileError::Malformed`] with every prompt that lacks a key (the first ten).
pub fn check_metadata(
    path: &Path,
    records: &[PromptRecord],
    rewards: &[RewardSection],
) -> Result<(), PromptFileError> {
    let needed =
        NEEDED_METADATA.iter().filter(|(name, _)| rewards.iter().any(|reward| reward.scorer() == *name));
    let mut problems = Vec::new();
    for (name, keys) in needed {
        for record in records {
            if let Some(key) = keys.iter().find(|key| record.metadata.get(key).is_none()) {
                problems.push(format!(
                    "prompt {} `{}` has no `{key}`, which reward `{name}` needs; use GenEval's JSONL",
                    record.index + 1,
                    record.text
                ));
            }
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

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

fn parse_row(line: &str) -> Result<(String, Value), String> {
    let row: Value = serde_json::from_str(line).map_err(|error| format!("not JSON ({error})"))?;
    let Value::Object(fields) = &row else {
        return Err("not a JSON object; write {\"prompt\": \"…\"}".to_owned());
    };
    match fields.get("prompt") {
        Some(Value::String(prompt)) => Ok((prompt.clone(), row)),
        Some(_) => Err("`prompt` is not a string".to_owned()),
        None => Err("has no `prompt`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Vec<PromptRecord>, PromptFileError> {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("writable");
        read_prompts(&path)
    }

    #[test]
    fn plain_text_is_one_prompt_per_line_without_blank_ones() {
        let records = read("a.txt", "\u{feff}a cat \n\n  a dog\r\n").expect("valid");
        assert_eq!(records.iter().map(|record| record.text.as_str()).collect::<Vec<_>>(), ["a cat", "a dog"]);
        assert_eq!(records[1].index, 1);
    }

    #[test]
    fn json_lines_keep_their_metadata() {
        let records = read("a.jsonl", "{\"prompt\": \"a cat\", \"tag\": \"colors\"}\n").expect("valid");
        assert_eq!(records[0].metadata["tag"], "colors");
    }

    #[test]
    fn every_malformed_line_is_named() {
        let error = read("a.jsonl", "{\"prompt\": 3}\n\n{\n{\"text\": \"x\"}\n[]\n").expect_err("malformed");
        let message = error.to_string();
        for expected in ["line 1", "line 3", "line 4", "line 5"] {
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn prompts_without_what_a_reward_needs_are_named_before_anything_starts() {
        let records = read("a.jsonl", "{\"prompt\": \"a cat\", \"tag\": \"colors\"}\n").expect("valid");
        let reward = |name: &str| [RewardSection::new(name)];
        let path = Path::new("a.jsonl");
        assert!(check_metadata(path, &records, &reward("jpeg_compressibility")).is_ok());
        let message = check_metadata(path, &records, &reward("shapes")).expect_err("lacking").to_string();
        assert!(message.contains("`a cat` has no `include`"), "{message}");
    }

    #[test]
    fn a_folder_means_its_one_file_for_the_split() {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let path = folder.path();
        let write = |name: &str| std::fs::write(path.join(name), "a cat\n").expect("writable");
        write("train.txt");
        write("test_metadata.jsonl");
        assert_eq!(prompt_file(path, PromptSplit::Train).expect("one"), path.join("train.txt"));
        assert_eq!(prompt_file(path, PromptSplit::Test).expect("one"), path.join("test_metadata.jsonl"));
        write("train.jsonl");
        let message = prompt_file(path, PromptSplit::Train).expect_err("two").to_string();
        assert!(message.contains("holds train.txt and train.jsonl"), "{message}");
        std::fs::remove_file(path.join("test_metadata.jsonl")).expect("removable");
        let message = prompt_file(path, PromptSplit::Test).expect_err("none").to_string();
        assert!(
            message.contains("holds no prompt file; `data.test` needs exactly one of test.txt"),
            "{message}"
        );
    }

    #[test]
    fn what_prompts_carry_in_vain_is_told() {
        let rows = "{\"prompt\": \"a\", \"negative_prompt\": \"blurry\", \"images\": []}\n\
                    {\"prompt\": \"b\", \"negative_prompt\": \"\", \"image\": \"b.png\"}\n";
        let records = read("a.jsonl", rows).expect("valid");
        let notes = unused_prompt_keys(Path::new("a.jsonl"), &records);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].starts_with("a.jsonl: `negative_prompt` of 1 prompts is not used"), "{notes:?}");
        assert!(notes[1].contains("`image`"), "{notes:?}");
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert!(matches!(read("a.txt", "\n \n"), Err(PromptFileError::Empty { .. })));
    }
}
