//! Configuration files: read whole, with the key named where a value does not fit.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::ModelError;

/// Reads a JSON file that the model needs.
///
/// # Errors
/// If the file is missing or unreadable, is not JSON, or a key is missing or of the wrong type.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    let text = read_text(path)?;
    let mut parser = serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(&mut parser).map_err(|error| {
        let key = error.path().to_string();
        let source = error.into_inner();
        if source.is_data() {
            ModelError::config(path, &key, source.to_string())
        } else {
            ModelError::damaged(path, source)
        }
    })
}

/// Reads a text file that the model needs.
///
/// # Errors
/// If the file is missing, unreadable, or not UTF-8.
pub fn read_text(path: &Path) -> Result<String, ModelError> {
    if !path.is_file() {
        return Err(missing(path));
    }
    std::fs::read_to_string(path).map_err(|source| ModelError::io(path, source))
}

/// Says that `path` is missing, and where it would come from.
pub fn missing(path: &Path) -> ModelError {
    let folder = path.parent().unwrap_or(path).display();
    ModelError::MissingFile {
        path: path.to_owned(),
        remedy: format!("download or export the folder {folder} of the model again"),
    }
}
