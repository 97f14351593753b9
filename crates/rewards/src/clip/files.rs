//! Where the files of a CLIP model are.

use std::path::{Path, PathBuf};

use models::tokenizer::Tokenizer;

use super::image_processor::PREPROCESSOR_FILE;
use crate::error::RewardError;
use crate::network_options::find_model;
use crate::resources::Resources;

/// Folders of a CLIP model's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClipFiles {
    /// Configuration and tensors.
    pub model: PathBuf,
    /// `preprocessor_config.json`.
    pub preprocessor: PathBuf,
    /// The tokenizer's files.
    pub tokenizer: PathBuf,
}

/// Where published files are looked for.
pub(crate) struct Published {
    pub model: &'static str,
    /// Tokenizer and preprocessor.
    pub processor: &'static str,
}

impl ClipFiles {
    /// Finds the folders that are asked for, or else the published ones.
    ///
    /// # Errors
    /// If one is not found.
    pub fn find(
        name: &'static str,
        (model, processor): (Option<&Path>, Option<&Path>),
        published: &Published,
        resources: &Resources,
    ) -> Result<Self, RewardError> {
        let find = |model: &Path| find_model(name, model, resources);
        let model = find(model.unwrap_or(Path::new(published.model)))?;
        let processor_for = |has_its_own: bool| match processor {
            Some(processor) => find(processor),
            None if has_its_own => Ok(model.clone()),
            None => find(Path::new(published.processor)),
        };
        Ok(Self {
            preprocessor: processor_for(model.join(PREPROCESSOR_FILE).is_file())?,
            tokenizer: processor_for(Tokenizer::is_in(&model))?,
            model,
        })
    }
}
