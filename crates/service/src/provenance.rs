//! What a folder of exported weights was made of.

use crate::{RunDirectory, ServiceError, durable};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Name of the note in the folder.
const PROVENANCE_FILE: &str = "provenance.json";

/// Folders of an adapter, or of a network trained as a whole.
pub const EXPORTED_FOLDERS: [&str; 3] = ["peft", "diffusers", "transformer"];

/// Says which checkpoint of a run a folder of weights was exported from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Iterations trained.
    pub version: u32,
    /// BLAKE3 of the averaged weights in the checkpoint, in hexadecimal digits.
    pub average: String,
}

impl Provenance {
    /// Every folder that a run has exported and that says what it was made of.
    pub fn of_exports(directory: &RunDirectory) -> Vec<(PathBuf, Self)> {
        let places = [directory.adapter(), directory.best_adapter()];
        let folders = places.iter().flat_map(|place| EXPORTED_FOLDERS.map(|folder| place.join(folder)));
        folders.filter_map(|folder| Self::read(&folder).map(|provenance| (folder, provenance))).collect()
    }

    /// That of a folder, if it says so.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(
            &config::read_whole(&folder.join(PROVENANCE_FILE), config::MOST_SETTINGS_BYTES).ok()?,
        )
        .ok()
    }

    /// Notes it in a folder.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn write(&self, folder: &Path) -> Result<(), ServiceError> {
        let text = serde_json::to_vec_pretty(self).expect("it is plain data; anything else is a bug");
        durable::write_file(&folder.join(PROVENANCE_FILE), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_says_what_it_was_made_of_or_nothing() {
        let folder = tempfile::tempdir().expect("a directory");
        assert_eq!(Provenance::read(folder.path()), None);
        let provenance = Provenance { version: 6, average: "ab".to_owned() };
        provenance.write(folder.path()).expect("written");
        assert_eq!(Provenance::read(folder.path()), Some(provenance));
        std::fs::write(folder.path().join(PROVENANCE_FILE), "{\"version\": 6").expect("written");
        assert_eq!(Provenance::read(folder.path()), None);
    }
}
