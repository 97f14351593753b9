//! Images as Qwen2-VL wants them: resized to whole merge blocks, normalised, and cut into patches.
//!
//! Source: `transformers` 4.57, `models/qwen2_vl/image_processing_qwen2_vl.py`.

use std::path::Path;

use models::qwen2_vision::{PatchGrid, Qwen2VisionConfig};
use models::{ModelError, json_file};
use scenes::RgbImage;
use serde::Deserialize;
use tch::Tensor;

use crate::image_resampling::resize_bicubic;
use crate::pixel_preprocessing::{COLORS, Levels, PixelPreprocessing};

/// How many pixels an image may have after it was resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelBounds {
    /// Fewest.
    pub min: usize,
    /// Most.
    pub max: usize,
}

/// An image with no pixels, or with far more columns than rows or the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the longer side of the image is more than 200 times the shorter; give one that is less narrow")]
pub struct TooNarrow;

/// The size to which an image is resized: multiples of `factor`, about as wide for its height as before, within the bounds.
///
/// With the same least and most, as HPSv3 has it, this is also what `qwen-vl-utils` 0.0.8 gives.
///
/// # Errors
/// If the longer side is more than 200 times the shorter, or there is none.
pub fn smart_resize(
    (width, height): (usize, usize),
    factor: usize,
    bounds: PixelBounds,
) -> Result<(usize, usize), TooNarrow> {
    let (wide, high) = (width as f64, height as f64);
    if width == 0 || height == 0 || wide.max(high) / wide.min(high) > config::HPSV3_MOST_RATIO as f64 {
        return Err(TooNarrow);
    }
    let unit = factor as f64;
    let nearest = |side: f64| (side / unit).round_ties_even() as usize * factor;
    let (columns, rows) = (nearest(wide), nearest(high));
    Ok(if columns * rows > bounds.max {
        let shrink = (wide * high / bounds.max as f64).sqrt();
        let below = |side: f64| ((side / shrink / unit).floor() as usize * factor).max(factor);
        (below(wide), below(high))
    } else if columns * rows < bounds.min {
        let stretch = (bounds.min as f64 / (wide * high)).sqrt();
        let above = |side: f64| (side * stretch / unit).ceil() as usize * factor;
        (above(wide), above(high))
    } else {
        (columns, rows)
    })
}

/// The keys of `preprocessor_config.json` about sizes; what it leaves out has the value that `transformers` gives it.
#[derive(Deserialize)]
#[serde(default)]
struct SizeFile {
    min_pixels: Option<usize>,
    max_pixels: Option<usize>,
    size: Edges,
    patch_size: i64,
    temporal_patch_size: i64,
    merge_size: i64,
}

impl Default for SizeFile {
    fn default() -> Self {
        Self {
            min_pixels: None,
            max_pixels: None,
            size: Edges::default(),
            patch_size: 14,
            temporal_patch_size: 2,
            merge_size: 2,
        }
    }
}

/// The bounds as newer files have them: they are of areas, whatever the names say.
#[derive(Default, Deserialize)]
struct Edges {
    shortest_edge: Option<usize>,
    longest_edge: Option<usize>,
}

impl SizeFile {
    fn bounds(&self) -> PixelBounds {
        let min = self.min_pixels.or(self.size.shortest_edge).unwrap_or(56 * 56);
        PixelBounds { min, max: self.max_pixels.or(self.size.longest_edge).unwrap_or(28 * 28 * 1280) }
    }

    fn check(&self, vision: &Qwen2VisionConfig) -> Result<(), (&'static str, String)> {
        let sizes = [
            ("patch_size", self.patch_size, vision.patch_size),
            ("temporal_patch_size", self.temporal_patch_size, vision.temporal_patch_size),
            ("merge_size", self.merge_size, vision.spatial_merge_size),
            ("image_mean", COLORS as i64, vision.in_channels),
        ];
        if let Some((key, found, expected)) = sizes.into_iter().find(|(_, found, expected)| found != expected)
        {
            return Err((key, format!("{found}, but the vision tower of config.json takes {expected}")));
        }
        let PixelBounds { min, max } = self.bounds();
        match (1..=max).contains(&min) {
            true => Ok(()),
            false => Err(("min_pixels", format!("{min} is not between 1 and the {max} of max_pixels"))),
        }
    }
}

/// The patches of one image.
pub struct ImagePatches {
    /// `[patches, colours · frames · side²]`, float32, in the order of [`models::qwen2_vision`].
    pub values: Tensor,
    /// How they lie.
    pub grid: PatchGrid,
}

/// Makes patches of images.
#[derive(Debug)]
pub struct Qwen2VlImageProcessor {
    bounds: PixelBounds,
    levels: Box<Levels>,
    side: usize,
    frames: usize,
    merge_size: usize,
}

impl Qwen2VlImageProcessor {
    /// Reads `preprocessor_config.json`, which must suit the vision tower.
    ///
    /// # Errors
    /// If the file is missing or malformed, asks for what is not implemented, or belongs to another tower.
    pub fn open(path: &Path, vision: &Qwen2VisionConfig) -> Result<Self, ModelError> {
        let levels = PixelPreprocessing::read(path)?.levels();
        let file: SizeFile = json_file::read(path)?;
        file.check(vision).map_err(|(key, reason)| ModelError::config(path, key, reason))?;
        let [side, frames, merge_size] =
            [file.patch_size, file.temporal_patch_size, file.merge_size].map(|size| size as usize);
        Ok(Self { bounds: file.bounds(), levels, side, frames, merge_size })
    }

    /// Side of a merge block in pixels.
    fn factor(&self) -> usize {
        self.side * self.merge_size
    }

    /// Resizes an image, normalises it and cuts it into patches.
    ///
    /// # Errors
    /// As [`smart_resize`].
    ///
    /// # Panics
    /// If the buffer does not fit the image ([`RgbImage::check`]).
    pub fn process(&self, image: &RgbImage) -> Result<ImagePatches, TooNarrow> {
        let (width, height) = smart_resize((image.width, image.height), self.factor(), self.bounds)?;
        let image = resize_bicubic(image, width, height);
        let grid = PatchGrid { rows: (height / self.side) as i64, columns: (width / self.side) as i64 };
        let mut values = Vec::with_capacity(width * height * COLORS * self.frames);
        for block_row in (0..height).step_by(self.factor()) {
            for block_column in (0..width).step_by(self.factor()) {
                self.push_block(&image, (block_column, block_row), &mut values);
            }
        }
        let values = Tensor::from_slice(&values).view([grid.patches(), -1]);
        Ok(ImagePatches { values, grid })
    }

    /// Adds the patches of the merge block whose first pixel is at column `x` and row `y`.
    fn push_block(&self, image: &RgbImage, (x, y): (usize, usize), values: &mut Vec<f32>) {
        for top in (y..y + self.factor()).step_by(self.side) {
            for left in (x..x + self.factor()).step_by(self.side) {
                for (color, levels) in self.levels.iter().enumerate() {
                    let start = values.len();
                    for row in top..top + self.side {
                        let pixels =
                            &image.pixels[(row * image.width + left) * COLORS..][..self.side * COLORS];
                        let bytes = pixels.iter().skip(color).step_by(COLORS);
                        values.extend(bytes.map(|byte| levels[usize::from(*byte)]));
                    }
                    let end = values.len();
                    for _ in 1..self.frames {
                        values.extend_from_within(start..end);
                    }
                }
            }
        }
    }
}
