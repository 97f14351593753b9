//! Size of the image as a JPEG file, byte for byte what Pillow writes: 4:2:0, standard Huffman tables, JFIF header.
//!
//! Source: `jpeg_compressibility` and `jpeg_incompressibility` of Flow-GRPO's and TempFlow-GRPO's rewards (quality 95).

use scenes::RgbImage;
use serde::Deserialize;
use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

use crate::error::RewardError;
use crate::reward::{PromptRecord, Reward, Score, score_checked};

/// Options of the JPEG scorers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JpegOptions {
    /// Quality of the file, 1 to 100.
    pub quality: i32,
}

impl Default for JpegOptions {
    fn default() -> Self {
        Self { quality: 95 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Small,
    Large,
}

/// Rewards small files, or large ones; needs no metadata.
#[derive(Debug)]
pub struct JpegReward {
    goal: Goal,
    quality: i32,
}

impl JpegReward {
    /// The fewer bytes the better: `−bytes / 1000 / 500`.
    ///
    /// # Errors
    /// If the quality is out of range.
    pub fn compressibility(options: JpegOptions) -> Result<Self, RewardError> {
        Self::new(Goal::Small, options)
    }

    /// The more bytes the better: `bytes / 1000`.
    ///
    /// # Errors
    /// If the quality is out of range.
    pub fn incompressibility(options: JpegOptions) -> Result<Self, RewardError> {
        Self::new(Goal::Large, options)
    }

    fn new(goal: Goal, JpegOptions { quality }: JpegOptions) -> Result<Self, RewardError> {
        let reward = Self { goal, quality };
        if (1..=100).contains(&quality) {
            return Ok(reward);
        }
        let name = reward.name().to_owned();
        Err(RewardError::OptionRange { name, key: "quality", value: quality as f32, allowed: "1 to 100" })
    }
}

impl Reward for JpegReward {
    fn name(&self) -> &str {
        match self.goal {
            Goal::Small => "jpeg_compressibility",
            Goal::Large => "jpeg_incompressibility",
        }
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        score_checked(self.name(), images, prompts, |index, image, _| {
            let encoded =
                jpeg_bytes(image, self.quality).map_err(|problem| RewardError::Jpeg { index, problem })?;
            let kilobytes = encoded.len() as f32 / 1000.0;
            Ok(Score::from(match self.goal {
                Goal::Small => -kilobytes / 500.0,
                Goal::Large => kilobytes,
            }))
        })
    }
}

/// The image as a JPEG file of the given quality, 1 to 100.
///
/// # Errors
/// If the image is empty or larger than JPEG allows, or the quality out of range.
///
/// # Panics
/// If the buffer does not fit the image's size ([`RgbImage::check`]).
pub fn jpeg_bytes(image: &RgbImage, quality: i32) -> Result<Vec<u8>, turbojpeg::Error> {
    let mut compressor = Compressor::new()?;
    compressor.set_quality(quality)?;
    compressor.set_subsamp(Subsamp::Sub2x2)?;
    compressor.compress_to_vec(Image {
        pixels: image.pixels.as_slice(),
        width: image.width,
        pitch: image.width * 3,
        height: image.height,
        format: PixelFormat::RGB,
    })
}
