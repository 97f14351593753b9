//! What is in a prompt file, told by the ending of its name.

use std::path::Path;

/// How a file holds prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PromptFormat {
    /// One prompt a line.
    Text,
    /// A list of strings or objects, or one of them a line.
    Json,
    /// A table with a column `prompt`, its fields separated by this byte.
    Table {
        /// A comma or a tab.
        delimiter: u8,
    },
}

/// Endings of prompt files in lower case, and what they mean.
const ENDINGS: [(&str, PromptFormat); 6] = [
    ("txt", PromptFormat::Text),
    ("jsonl", PromptFormat::Json),
    ("ndjson", PromptFormat::Json),
    ("json", PromptFormat::Json),
    ("csv", PromptFormat::Table { delimiter: b',' }),
    ("tsv", PromptFormat::Table { delimiter: b'\t' }),
];

/// The endings of prompt files, for messages.
pub(super) const KNOWN_ENDINGS: &str = ".txt (one prompt a line), .jsonl, .ndjson or .json (strings or objects with `prompt`), .csv or .tsv (with a column \
     `prompt`)";

impl PromptFormat {
    /// The format of a file; a name without an ending stands for plain text.
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.extension() {
            None => Some(Self::Text),
            Some(ending) => Self::of_ending(ending.to_str()?),
        }
    }

    /// The format that an ending stands for, in any case.
    pub(super) fn of_ending(ending: &str) -> Option<Self> {
        let is_meant = |(known, _): &&(&str, Self)| known.eq_ignore_ascii_case(ending);
        ENDINGS.iter().find(is_meant).map(|(_, format)| *format)
    }
}
