//! `transformer/config.json` of a pipeline: read and checked in the same way whatever the family.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::ModelError;
use crate::json_file;

/// A key whose value cannot work, and why.
pub(crate) type Misfit = (&'static str, String);

/// The shape of a velocity network by diffusers' key names; keys that mean nothing to it are ignored.
pub(crate) trait TransformerConfig: DeserializeOwned {
    /// The class that such files are for.
    const CLASS_NAME: &'static str;

    /// The class that this file is for.
    fn class_name(&self) -> &str;

    /// The first key whose value cannot work.
    fn check(&self) -> Result<(), Misfit>;
}

/// Reads and checks a configuration file.
///
/// # Errors
/// If the file is missing or malformed, is of another class, or holds a value that cannot work.
pub(crate) fn read<C: TransformerConfig>(path: &Path) -> Result<C, ModelError> {
    let config: C = json_file::read(path)?;
    if config.class_name() != C::CLASS_NAME {
        return Err(ModelError::UnsupportedClass {
            path: path.to_owned(),
            found: config.class_name().to_owned(),
            supported: C::CLASS_NAME.to_owned(),
        });
    }
    config.check().map_err(|(key, reason)| ModelError::config(path, key, reason))?;
    Ok(config)
}

/// Checks that the features which the axes of a position turn are pairs, and all of a head's.
pub(crate) fn check_axes(axes: [i64; 3], head_width: i64) -> Result<(), Misfit> {
    let are_pairs = axes.iter().all(|axis| *axis >= 0 && axis % 2 == 0);
    match are_pairs && axes.iter().sum::<i64>() == head_width {
        true => Ok(()),
        false => {
            let reason = format!("{axes:?} must be even and add up to `attention_head_dim` {head_width}");
            Err(("axes_dims_rope", reason))
        }
    }
}
