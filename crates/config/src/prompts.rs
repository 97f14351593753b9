//! Prompt files: `.txt` with one prompt per line, `.jsonl` with one object per line (`prompt` and free metadata, as
//! GenEval's).

use crate::RewardSection;
use serde_json::Value;
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
    #[error("cannot read the prompt file {path} (`data.train` or `data.test`)", path = path.display())]
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
    /// The file has no prompt.
    #[error("the prompt file {path} holds no prompt; write one prompt per line", path = path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
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
const NEEDED_METADATA: [(&str, [&str; 2]); 1] = [("shapes", ["tag", "include"])];

/// Finds out before a run starts whether prompts carry what its rewards look at.
///
/// # Errors
/// [`PromptFileError::Malformed`] with every prompt that lacks a key (the first ten).
pub fn check_metadata(
    path: &Path,
    records: &[PromptRecord],
    rewards: &[RewardSection],
) -> Result<(), PromptFileError> {
    let needed = NEEDED_METADATA.iter().filter(|(name, _)| rewards.iter().any(|reward| reward.name == *name));
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
        let reward = |name: &str| [RewardSection { name: name.to_owned(), weight: 1.0 }];
        let path = Path::new("a.jsonl");
        assert!(check_metadata(path, &records, &reward("jpeg_compressibility")).is_ok());
        let message = check_metadata(path, &records, &reward("shapes")).expect_err("lacking").to_string();
        assert!(message.contains("`a cat` has no `include`"), "{message}");
    }

    #[test]
    fn an_empty_file_is_refused() {
        assert!(matches!(read("a.txt", "\n \n"), Err(PromptFileError::Empty { .. })));
    }
}
