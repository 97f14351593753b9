//! From a Flow-Factory YAML to a run config, with an account of every key: carried over, translated, or not and why.
//!
//! No key can vanish: whatever the translation has not accounted for is reported as not carried over.
//!
//! Source of their keys, defaults and meanings: X-GenGroup/Flow-Factory, `hparams/*.py` at a0b2bc5.

mod document;
mod report;
mod rewards;
mod sections;
mod training;
mod unused_keys;

pub use report::{Fate, ImportEntry, ImportReport};

use crate::RunConfig;
use crate::commented::commented_toml;
use document::Document;

/// A run config made from a Flow-Factory YAML.
#[derive(Clone, Debug)]
pub struct Import {
    /// The run; `validate` may still object, such as to a reward that this build lacks.
    pub config: RunConfig,
    /// The same as commented TOML.
    pub text: String,
    /// What became of every key.
    pub report: ImportReport,
}

/// Why a Flow-Factory YAML cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is no YAML.
    #[error("{file}:{line}:{column}: not valid YAML: {message}")]
    Malformed {
        /// Name of the file.
        file: String,
        /// Where, counted from 1; 0 if the parser does not say.
        line: u64,
        /// Where in the line, counted from 1.
        column: u64,
        /// What is wrong.
        message: String,
    },
    /// It is YAML, but not a run that can be repeated here.
    #[error("{file} cannot be imported:\n{}", problems.join("\n"))]
    Unsuitable {
        /// Name of the file.
        file: String,
        /// Everything that stands in the way, each with its key.
        problems: Vec<String>,
    },
}

/// Translates a Flow-Factory YAML; `file` is its name in messages.
///
/// # Errors
/// If the text is no YAML, a value has the wrong type, or the trainer or the model is none that exists here.
pub fn import_flow_factory(yaml: &str, file: &str) -> Result<Import, ImportError> {
    let document = Document::parse(yaml, file)?;
    let unsuitable = |problems| ImportError::Unsuitable { file: file.to_owned(), problems };
    let (config, report) = sections::translate(document).map_err(unsuitable)?;
    let header = format!(
        "Imported from {file} (Flow-Factory). What each key came from stands above it; what could not be carried\nover \
         stands in the report that `coordinator import` printed. Keys that are left out have their defaults."
    );
    let text = commented_toml(&config, &header, &report.comments());
    Ok(Import { config, text, report })
}

#[cfg(test)]
mod tests;
