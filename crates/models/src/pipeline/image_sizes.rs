//! Which sizes a model draws.

use std::path::Path;

use crate::ModelError;

/// Sides that are whole numbers of patches.
pub(super) struct ImageSizes {
    /// Pixels along the side of one patch.
    pub(super) patch: i64,
    /// Pixels along the longest side, where positions end somewhere.
    pub(super) longest: Option<i64>,
}

impl ImageSizes {
    /// Checks a size in pixels for the model in `dir`.
    pub(super) fn check(&self, height: i64, width: i64, dir: &Path) -> Result<(), ModelError> {
        let (patch, longest) = (self.patch, self.longest.unwrap_or(i64::MAX));
        let fits = |side: i64| side >= patch && side <= longest && side % patch == 0;
        if fits(height) && fits(width) {
            return Ok(());
        }
        let nearest = |side: i64| (side.saturating_add(patch / 2) / patch * patch).clamp(patch, longest);
        let range = self.longest.map_or(String::new(), |longest| format!(" from {patch} to {longest}"));
        Err(ModelError::Input(format!(
            "{} cannot draw {height}×{width} pixels (height × width); its sides are multiples of {patch}{range}, the \
             nearest being {}×{}",
            dir.display(),
            nearest(height),
            nearest(width),
        )))
    }

    /// How many patches an image has.
    pub(super) fn patches(&self, height: i64, width: i64) -> usize {
        ((height / self.patch) * (width / self.patch)) as usize
    }
}
