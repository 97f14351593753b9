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

/// Version of a checkpoint by its name; `None` for names that no checkpoint has.
pub fn version_of(checkpoint: &str) -> Option<u32> {
    let number = checkpoint.strip_prefix("iteration-")?;
    // A number may begin with a plus, the name of a checkpoint may not.
    number.bytes().all(|byte| byte.is_ascii_digit()).then(|| number.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_what_follows_in_digits() {
        assert_eq!(["iteration-7", "iteration-000012"].map(version_of), [Some(7), Some(12)]);
        for other in ["iteration-", "iteration-+7", "iteration--7", "iteration-7.partial", "best", "7"] {
            assert_eq!(version_of(other), None, "{other}");
        }
        assert_eq!(version_of("iteration-99999999999"), None);
    }
}
