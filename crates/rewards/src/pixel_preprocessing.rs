//! What image processors of `transformers` make of bytes, as `preprocessor_config.json` says.
//!
//! Source: `transformers` 4.57, `models/clip/image_processing_clip.py` and `models/qwen2_vl/image_processing_qwen2_vl.py`.

use std::path::Path;

use models::{ModelError, json_file};
use serde::Deserialize;

/// Red, green and blue.
pub(crate) const COLORS: usize = 3;
const LEVELS: usize = 256;
/// Pillow's number of the cubic filter.
const BICUBIC: i64 = 3;

/// What becomes of each byte, by colour.
pub(crate) type Levels = [[f32; LEVELS]; COLORS];

/// The keys that all image processors have; what the file leaves out has the value that `transformers` gives it.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(crate) struct PixelPreprocessing {
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
    resample: i64,
    rescale_factor: f64,
    /// Mean of each colour, black being 0 and white 1.
    pub image_mean: [f64; COLORS],
    /// Standard deviation of each colour.
    pub image_std: [f64; COLORS],
}

impl Default for PixelPreprocessing {
    fn default() -> Self {
        Self {
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
            resample: BICUBIC,
            rescale_factor: 1.0 / 255.0,
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
        }
    }
}

impl PixelPreprocessing {
    /// Reads `preprocessor_config.json` at `path`.
    ///
    /// # Errors
    /// If the file is missing or malformed, or asks for what is not implemented.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let file: Self = json_file::read(path)?;
        file.check().map_err(|(key, reason)| ModelError::config(path, key, reason))?;
        Ok(file)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let switches = [
            ("do_resize", self.do_resize),
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
        ];
        if let Some((key, _)) = switches.into_iter().find(|(_, on)| !on) {
            return Err((key, "false is not supported; use true".to_owned()));
        }
        if self.resample != BICUBIC {
            return Err(("resample", format!("{} is not supported; use {BICUBIC}, bicubic", self.resample)));
        }
        if self.image_std.contains(&0.0) {
            return Err(("image_std", "0 cannot be divided by".to_owned()));
        }
        Ok(())
    }

    /// What becomes of each byte.
    pub fn levels(&self) -> Box<Levels> {
        Box::new(std::array::from_fn(|color| {
            let (mean, std) = (self.image_mean[color] as f32, self.image_std[color] as f32);
            // The reference rescales in float64 and normalises in float32.
            std::array::from_fn(|level| ((level as f64 * self.rescale_factor) as f32 - mean) / std)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_implemented_is_named() {
        for (text, reason) in [
            (r#"{"do_resize": false}"#, "do_resize: false is not supported"),
            (r#"{"do_normalize": false}"#, "do_normalize: false is not supported"),
            (r#"{"resample": 2}"#, "resample: 2 is not supported"),
            (r#"{"image_std": [1, 0, 1]}"#, "image_std: 0"),
        ] {
            let file: PixelPreprocessing = serde_json::from_str(text).expect("well-formed");
            let (key, problem) = file.check().expect_err(text);
            assert!(format!("{key}: {problem}").starts_with(reason), "{problem}");
        }
        assert_eq!(PixelPreprocessing::default().check(), Ok(()));
    }
}
