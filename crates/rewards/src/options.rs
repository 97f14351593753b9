//! A scorer's options as its own type.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::RewardError;

/// Reads the options of the scorer called `name`; `null` stands for none.
pub(crate) fn parse_options<T: DeserializeOwned>(name: &str, options: &Value) -> Result<T, RewardError> {
    let options = if options.is_null() { json!({}) } else { options.clone() };
    serde_path_to_error::deserialize(options).map_err(|error| RewardError::Options {
        name: name.to_owned(),
        key: error.path().to_string(),
        problem: error.into_inner(),
    })
}
