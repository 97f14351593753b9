//! The texts of the repository, for rules that a search in them can hold.

use std::path::PathBuf;

use crate::repository;

/// Where the workspace's own sources are.
const FOLDERS: [&str; 6] = ["proto", "crates", "rollout-worker", "learner", "coordinator", "tests"];

/// A file of the repository.
pub struct Source {
    /// From the root of the repository.
    pub path: String,
    /// What it holds.
    pub text: String,
}

impl Source {
    /// The lines before the tests that stand in the file, without comments and blank lines.
    pub fn code(&self) -> impl Iterator<Item = &str> {
        let lines = self.text.lines().map(str::trim).take_while(|line| *line != "#[cfg(test)]");
        lines.filter(|line| !line.is_empty() && !line.starts_with("//"))
    }
}

/// All files with this ending, but for what builds leave behind, in the order of their paths.
///
/// # Panics
/// If one cannot be read.
pub fn sources(ending: &str) -> Vec<Source> {
    let root = repository();
    let mut open: Vec<PathBuf> = FOLDERS.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            if !path.ends_with("target") {
                open.extend(std::fs::read_dir(&path).expect("a folder").flatten().map(|entry| entry.path()));
            }
        } else if path.extension().is_some_and(|extension| extension == ending) {
            let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
            found.push(Source { path: name, text: std::fs::read_to_string(&path).expect("text") });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}
