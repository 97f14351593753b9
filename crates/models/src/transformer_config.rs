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
    // Larger ones would add up to a number that there is not.
    let are_pairs = axes.iter().all(|axis| (0..=head_width).contains(axis) && axis % 2 == 0);
    match are_pairs && axes.iter().sum::<i64>() == head_width {
        true => Ok(()),
        false => {
            let reason = format!("{axes:?} must be even and add up to `attention_head_dim` {head_width}");
            Err(("axes_dims_rope", reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_that_add_up_to_a_head_only_by_running_over_are_refused() {
        assert!(check_axes([16, 56, 56], 128).is_ok());
        let largest = i64::MAX - 1;
        for axes in [[largest, largest, 132], [-2, 74, 56], [largest, 0, 0]] {
            assert!(check_axes(axes, 128).is_err(), "{axes:?}");
        }
    }
}
