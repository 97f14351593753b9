//! What can be wrong with a model folder or an adapter, said so that the reader knows what to do about it.

use std::path::{Path, PathBuf};

use crate::stand_in;

/// Why a model, an adapter or one of their files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused to read or write a file.
    #[error("cannot access {}: {problem}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        problem: std::io::Error,
    },
    /// A file that the model needs is not there.
    #[error("{} is missing: {remedy}", path.display())]
    MissingFile {
        /// The file, or the first of the names it could have had.
        path: PathBuf,
        /// What to do about it.
        remedy: String,
    },
    /// A file is there but is not what its name promises.
    #[error("{} is damaged: {reason}; download or export it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// A file is of another kind than its place asks for, or holds what is not read here; it need not be damaged.
    #[error("{} {found}; {remedy}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is or holds, as in `is an HTML page`.
        found: String,
        /// What to do about it.
        remedy: String,
    },
    /// The tensors of a file are not the ones its configuration asks for; all differences at once.
    #[error("{} does not fit its configuration: {}", path.display(), differences(missing, unexpected, misshaped))]
    Tensors {
        /// The file or folder that holds the tensors.
        path: PathBuf,
        /// Names that the configuration asks for and the file lacks.
        missing: Vec<String>,
        /// Names in the file that the configuration has no use for.
        unexpected: Vec<String>,
        /// `name has shape [..], expected [..]`.
        misshaped: Vec<String>,
    },
    /// A configuration file holds a value that cannot be used.
    #[error("{}: {key}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key, dotted.
        key: String,
        /// What is wrong with its value, and which values work.
        reason: String,
    },
    /// A component is of a class that this crate does not implement.
    #[error("{}: class {found} is not supported; supported: {supported}", path.display())]
    UnsupportedClass {
        /// The file that names the class.
        path: PathBuf,
        /// The class it names.
        found: String,
        /// The classes that work.
        supported: String,
    },
    /// An adapter cannot be attached to or loaded into this model.
    #[error("adapter: {0}")]
    Adapter(String),
    /// What was handed to a network does not fit it.
    #[error("{0}")]
    Input(String),
}

impl ModelError {
    /// Wraps an operating-system error with the file it happened on.
    pub fn io(path: &Path, problem: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), problem }
    }

    /// Says what is wrong inside a file; or what the file is, where its first bytes tell that it is another one than was
    /// meant.
    pub fn damaged(path: &Path, reason: impl std::fmt::Display) -> Self {
        match stand_in::recognised(path) {
            Some((found, remedy)) => Self::foreign(path, found, remedy),
            None => Self::Damaged { path: path.to_owned(), reason: reason.to_string() },
        }
    }

    /// Says what a file is or holds that is not read here, and what to do about it.
    pub fn foreign(path: &Path, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Foreign { path: path.to_owned(), found: found.into(), remedy: remedy.into() }
    }

    /// The same error about the tensors of another file or folder, where it is about tensors.
    #[must_use]
    pub fn of_file(self, file: &Path) -> Self {
        match self {
            Self::Tensors { missing, unexpected, misshaped, .. } => {
                Self::Tensors { path: file.to_owned(), missing, unexpected, misshaped }
            }
            other => other,
        }
    }

    /// Says what is wrong with one key of a configuration file.
    pub fn config(path: &Path, key: &str, reason: impl Into<String>) -> Self {
        Self::Config { path: path.to_owned(), key: key.to_owned(), reason: reason.into() }
    }
}

/// How many names of one kind an error spells out before it only counts.
const NAMES_SHOWN: usize = 20;

fn differences(missing: &[String], unexpected: &[String], misshaped: &[String]) -> String {
    [("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{} {what}: {}", names.len(), abbreviated(names)))
        .collect::<Vec<_>>()
        .join("; ")
}

fn abbreviated(names: &[String]) -> String {
    let shown = names.iter().take(NAMES_SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_differences_are_named_together_and_long_lists_are_counted() {
        let error = ModelError::Tensors {
            path: "a/model.safetensors".into(),
            missing: (0..22).map(|i| format!("m{i}")).collect(),
            unexpected: vec!["u".into()],
            misshaped: vec!["w has shape [2], expected [3]".into()],
        };
        assert_eq!(
            error.to_string(),
            format!(
                "a/model.safetensors does not fit its configuration: 22 missing: {} and 2 more; 1 unexpected: u; \
                 1 mis-shaped: w has shape [2], expected [3]",
                (0..20).map(|i| format!("m{i}")).collect::<Vec<_>>().join(", ")
            )
        );
    }
}
