//! The reward of the shipped task: which coloured shapes are in the picture, and does the prompt ask for them?
//!
//! Looks at pixels only: every pixel takes the nearest palette colour, connected pixels of a colour make a region, a
//! region that fits a shape's template is a detection, and GenEval's rules turn detections into a score.

mod detect;
mod geneval;
mod segment;
mod template;

use scenes::{PromptSpec, RgbImage};
use serde::Deserialize;

pub use detect::{Detection, detect};

use crate::error::RewardError;
use crate::reward::{PromptRecord, Reward, Score, score_checked};
use geneval::{Thresholds, judge};

/// Options of the shapes scorer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShapesOptions {
    /// Confidence above which a detection counts, 0 to 1.
    pub threshold: f32,
    /// The same for prompts of the tag `counting`.
    pub counting_threshold: f32,
}

impl Default for ShapesOptions {
    /// GenEval's thresholds.
    fn default() -> Self {
        Self { threshold: 0.3, counting_threshold: 0.9 }
    }
}

/// Scores pictures of coloured shapes by GenEval's rules.
#[derive(Debug)]
pub struct ShapesReward {
    thresholds: Thresholds,
}

impl ShapesReward {
    /// Takes the options.
    ///
    /// # Errors
    /// If a threshold is outside `[0, 1)`.
    pub fn new(options: ShapesOptions) -> Result<Self, RewardError> {
        let ShapesOptions { threshold, counting_threshold } = options;
        for (key, value) in [("threshold", threshold), ("counting_threshold", counting_threshold)] {
            if !(0.0..1.0).contains(&value) {
                let name = NAME.to_owned();
                return Err(RewardError::OptionRange {
                    name,
                    key,
                    value,
                    allowed: "0 or more and less than 1",
                });
            }
        }
        Ok(Self { thresholds: Thresholds { default: threshold, counting: counting_threshold } })
    }
}

const NAME: &str = "shapes";

impl Reward for ShapesReward {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        score_checked(NAME, images, prompts, |index, image, record| {
            let spec = read_spec(record)?;
            check_size(index, image)?;
            Ok(judge(&detect(image), &spec, &self.thresholds))
        })
    }
}

fn check_size(index: usize, image: &RgbImage) -> Result<(), RewardError> {
    let (width, height) = (image.width, image.height);
    if width == height && config::SHAPES_SIDES.contains(&width) {
        return Ok(());
    }
    Err(RewardError::ImageSize {
        index,
        width,
        height,
        name: NAME,
        allowed: "square images of side 16 to 64",
    })
}

fn read_spec(record: &PromptRecord) -> Result<PromptSpec, RewardError> {
    let spec: PromptSpec = serde_path_to_error::deserialize(&record.metadata).map_err(|error| {
        let (prompt, key) = (record.prompt.clone(), error.path().to_string());
        RewardError::Metadata { prompt, key, problem: error.into_inner() }
    })?;
    let refuse = |key: String, problem: &str| {
        Err(RewardError::MetadataValue { prompt: record.prompt.clone(), key, problem: problem.to_owned() })
    };
    if spec.include.is_empty() {
        return refuse("include".to_owned(), "is empty; name at least one class");
    }
    for (idx, want) in spec.include.iter().enumerate() {
        if want.count == 0 {
            return refuse(format!("include[{idx}].count"), "is 0; use 1 or more, or `exclude`");
        }
        if want.position.is_some_and(|(_, target)| target >= idx) {
            return refuse(format!("include[{idx}].position"), "must refer to an earlier entry of `include`");
        }
    }
    Ok(spec)
}
