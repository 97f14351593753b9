//! CLIP's image processor: resize, crop, normalise, to the bit as `transformers` does it with Pillow and numpy.
//!
//! Letters: S side of the cropped picture in pixels.
//!
//! Source: `transformers` 4.57, `models/clip/image_processing_clip.py`.

use std::path::Path;

use models::{ModelError, json_file};
use scenes::RgbImage;
use serde::Deserialize;
use serde_json::Value;
use tch::Tensor;

use super::UnsuitableSize;
use crate::image_resampling::{Area, resize_bicubic_area};
use crate::pixel_preprocessing::{COLORS, Levels, PixelPreprocessing};

/// Name of the file that describes it.
pub(crate) const PREPROCESSOR_FILE: &str = "preprocessor_config.json";
pub(crate) const NOT_EMPTY: UnsuitableSize = UnsuitableSize("pictures of at least one pixel");

/// The keys of `preprocessor_config.json` about sizes; what it leaves out has the value that `transformers` gives it.
#[derive(Deserialize)]
#[serde(default)]
struct SizeFile {
    do_center_crop: bool,
    size: Value,
    crop_size: Value,
}

impl Default for SizeFile {
    fn default() -> Self {
        Self { do_center_crop: true, size: Value::from(224), crop_size: Value::from(224) }
    }
}

/// What pictures are resized to before they are cropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcessedSize {
    /// The shorter side becomes so long, the longer one follows.
    ShorterEdge(usize),
    /// Width and height.
    Exact(usize, usize),
}

impl ProcessedSize {
    fn shortest(self) -> usize {
        match self {
            Self::ShorterEdge(edge) => edge,
            Self::Exact(width, height) => width.min(height),
        }
    }

    /// Width and height of a picture after resizing.
    pub fn of(self, width: usize, height: usize) -> (usize, usize) {
        match self {
            Self::ShorterEdge(edge) => shorter_edge_to(edge, width, height),
            Self::Exact(width, height) => (width, height),
        }
    }
}

/// The width and height of a picture whose shorter side becomes `edge`, the longer one cut to whole pixels.
fn shorter_edge_to(edge: usize, width: usize, height: usize) -> (usize, usize) {
    let longer = |longer: usize, shorter: usize| (edge as u128 * longer as u128 / shorter as u128) as usize;
    if width <= height { (edge, longer(height, width)) } else { (longer(width, height), edge) }
}

/// The sizes of pictures as `preprocessor_config.json` has them, checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClipSizes {
    pub size: ProcessedSize,
    /// S.
    pub side: usize,
}

impl ClipSizes {
    /// Reads `preprocessor_config.json` at `path`, which must make pictures of the network's `image_size`.
    ///
    /// # Errors
    /// If the file is missing or malformed, asks for what is not implemented, or belongs to another network.
    pub fn read(path: &Path, image_size: i64) -> Result<Self, ModelError> {
        let file: SizeFile = json_file::read(path)?;
        Self::check(&file, image_size).map_err(|(key, reason)| ModelError::config(path, key, reason))
    }

    fn check(file: &SizeFile, image_size: i64) -> Result<Self, (&'static str, String)> {
        if !file.do_center_crop {
            return Err(("do_center_crop", "false is not supported; use true".to_owned()));
        }
        let understood = |value: &Value| {
            format!("{value} is neither a number, nor `shortest_edge`, nor `height` and `width`")
        };
        let size = parse_size(&file.size).ok_or_else(|| ("size", understood(&file.size)))?;
        let crop = parse_crop(&file.crop_size).ok_or_else(|| ("crop_size", understood(&file.crop_size)))?;
        if crop.0 != crop.1 || crop.0 as i64 != image_size {
            let reason =
                format!("{} x {}, but the network takes {image_size} x {image_size}", crop.0, crop.1);
            return Err(("crop_size", reason));
        }
        if size.shortest() < crop.0 {
            return Err(("size", format!("{} is less than the {} of `crop_size`", size.shortest(), crop.0)));
        }
        Ok(Self { size, side: crop.0 })
    }
}

fn parse_size(size: &Value) -> Option<ProcessedSize> {
    let edge = size.as_u64().or_else(|| size.get("shortest_edge")?.as_u64());
    match edge {
        Some(edge) => Some(ProcessedSize::ShorterEdge(edge as usize)),
        None => parse_crop(size).map(|(width, height)| ProcessedSize::Exact(width, height)),
    }
}

/// Width and height; a number is both.
fn parse_crop(size: &Value) -> Option<(usize, usize)> {
    let side = |name| size.as_u64().or_else(|| size.get(name)?.as_u64()).map(|side| side as usize);
    Some((side("width")?, side("height")?))
}

/// Makes of a picture what the network sees.
#[derive(Debug)]
pub(crate) struct ClipImageProcessor {
    sizes: ClipSizes,
    levels: Box<Levels>,
}

impl ClipImageProcessor {
    /// Opens `preprocessor_config.json` in `dir`, which must make pictures of the network's `image_size`.
    ///
    /// # Errors
    /// If the file is missing or malformed, asks for what is not implemented, or belongs to another network.
    pub fn open(dir: &Path, image_size: i64) -> Result<Self, ModelError> {
        let path = dir.join(PREPROCESSOR_FILE);
        let levels = PixelPreprocessing::read(&path)?.levels();
        Ok(Self { sizes: ClipSizes::read(&path, image_size)?, levels })
    }

    /// Resizes a picture, cuts out its middle and normalises it.
    ///
    /// # Shapes
    /// `[3, S, S]`, float32.
    ///
    /// # Errors
    /// If the picture has no pixel.
    ///
    /// # Panics
    /// If the buffer does not fit the picture ([`RgbImage::check`]).
    pub fn process(&self, image: &RgbImage) -> Result<Tensor, UnsuitableSize> {
        if image.width == 0 || image.height == 0 {
            return Err(NOT_EMPTY);
        }
        let ClipSizes { size, side } = self.sizes;
        let (width, height) = size.of(image.width, image.height);
        let area = Area { left: (width - side) / 2, top: (height - side) / 2, width: side, height: side };
        let cropped = resize_bicubic_area(image, (width, height), area);
        let mut values = Vec::with_capacity(COLORS * side * side);
        for (color, levels) in self.levels.iter().enumerate() {
            let bytes = cropped.pixels.iter().skip(color).step_by(COLORS);
            values.extend(bytes.map(|byte| levels[usize::from(*byte)]));
        }
        let side = side as i64;
        Ok(Tensor::from_slice(&values).view([COLORS as i64, side, side]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<ClipSizes, String> {
        let file: SizeFile = serde_json::from_str(text).expect("well-formed");
        ClipSizes::check(&file, 224).map_err(|(key, reason)| format!("{key}: {reason}"))
    }

    #[test]
    fn sizes_are_understood_in_their_old_and_new_forms() {
        for text in [
            "{}",
            r#"{"size": 224, "crop_size": 224}"#,
            r#"{"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}"#,
        ] {
            assert_eq!(checked(text).expect("published").size, ProcessedSize::ShorterEdge(224));
        }
        let exact = checked(r#"{"size": {"height": 230, "width": 224}}"#).expect("no smaller");
        assert_eq!(exact.size, ProcessedSize::Exact(224, 230));
    }

    #[test]
    fn what_is_not_implemented_or_does_not_suit_the_network_is_named() {
        for (text, reason) in [
            (r#"{"do_center_crop": false}"#, "do_center_crop: false is not supported"),
            (r#"{"size": {"longest_edge": 224}}"#, "size: {\"longest_edge\":224} is neither"),
            (r#"{"crop_size": -1}"#, "crop_size: -1 is neither"),
            (r#"{"crop_size": 336}"#, "crop_size: 336 x 336, but the network takes 224 x 224"),
            (r#"{"size": 200}"#, "size: 200 is less than the 224 of `crop_size`"),
        ] {
            let error = checked(text).expect_err(text);
            assert!(error.starts_with(reason), "{error}");
        }
    }

    #[test]
    fn the_longer_side_is_cut_to_whole_pixels() {
        assert_eq!(shorter_edge_to(224, 100, 150), (224, 336));
        assert_eq!(shorter_edge_to(224, 1023, 767), (298, 224));
        assert_eq!(shorter_edge_to(224, 1, 1 << 40), (224, 224 << 40));
    }
}
