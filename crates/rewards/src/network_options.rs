//! What scorers with a network have in common: its element type, its batches, the folders of its files.

use std::path::{Path, PathBuf};

use models::ModelError;
use models::weights::WeightOptions;
use serde::Deserialize;
use tch::Kind;

use crate::error::RewardError;
use crate::resources::Resources;

/// Element types of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkDtype {
    /// 32 bits.
    Float32,
    /// 16 bits.
    Bfloat16,
}

impl NetworkDtype {
    /// How a network of this element type is opened.
    pub(crate) fn weights(self, resources: &Resources) -> WeightOptions {
        let kind = match self {
            Self::Float32 => Kind::Float,
            Self::Bfloat16 => Kind::BFloat16,
        };
        WeightOptions::new(kind, resources.device).from_source(resources.source.clone())
    }
}

/// Refuses batches of nothing.
pub(crate) fn check_batch_size(name: &str, batch_size: usize) -> Result<(), RewardError> {
    match batch_size {
        0 => {
            let (name, allowed) = (name.to_owned(), "at least 1");
            Err(RewardError::OptionRange { name, key: "batch_size", value: 0.0, allowed })
        }
        _ => Ok(()),
    }
}

/// The folder of a model.
///
/// # Errors
/// If it is not found; the error says how to get it.
pub(crate) fn find_model(
    name: &'static str,
    model: &Path,
    resources: &Resources,
) -> Result<PathBuf, RewardError> {
    (resources.find_model)(model).map_err(|problem| RewardError::ModelLookup { name, problem })
}

/// Names the reward in an error of its network.
pub(crate) fn named(name: &'static str) -> impl Fn(ModelError) -> RewardError + Copy {
    move |problem| RewardError::Model { name, problem: Box::new(problem) }
}

/// Names the reward and the prompt that its network does not take.
pub(crate) fn prompt_error(name: &'static str, prompt: &str, problem: ModelError) -> RewardError {
    RewardError::Prompt { name, prompt: prompt.to_owned(), problem: Box::new(problem) }
}
