//! Which checkpoints a run has, and which of them is marked as the best.

use service::RunDirectory;
use std::path::PathBuf;

/// Checkpoint directories with their versions, in rising order.
pub fn checkpoints(directory: &RunDirectory) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(directory.checkpoints()).into_iter().flatten().flatten();
    let numbered = |path: PathBuf| Some((version_of(path.file_name()?.to_str()?)?, path));
    let mut checkpoints: Vec<(u32, PathBuf)> = entries.filter_map(|entry| numbered(entry.path())).collect();
    checkpoints.sort();
    checkpoints
}

/// Version of the checkpoint that is marked as the best.
pub fn marked_best(directory: &RunDirectory) -> Option<u32> {
    version_of(config::read_settings(&directory.checkpoints().join("best")).ok()?.trim())
}

fn version_of(checkpoint: &str) -> Option<u32> {
    checkpoint.strip_prefix("iteration-")?.parse().ok()
}
