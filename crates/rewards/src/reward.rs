//! The interface of a scorer.

use std::collections::BTreeMap;
use std::time::Duration;

use scenes::RgbImage;
use serde_json::Value;

use crate::error::RewardError;

/// A prompt as it was read from its file.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRecord {
    /// The words.
    pub prompt: String,
    /// The whole JSONL row, or `null` where the prompts came as plain text.
    pub metadata: Value,
}

/// The score of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// What training maximises.
    pub value: f32,
    /// More numbers for the log, by name; a name is absent where it does not apply to the prompt.
    pub extras: BTreeMap<String, f32>,
}

impl From<f32> for Score {
    fn from(value: f32) -> Self {
        Self { value, extras: BTreeMap::new() }
    }
}

/// Scores images against their prompts.
pub trait Reward {
    /// The scorer's name, as it stands in a config.
    fn name(&self) -> &str;

    /// Scores every image against the prompt at the same position.
    ///
    /// # Errors
    /// If the lists differ in length, an image or its metadata does not suit the scorer, or a score is not finite.
    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError>;

    /// How long a task is held for a scorer whose failures [may pass](RewardError::may_pass) before it is given up.
    fn patience(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether its server is there and is who it should be, as far as that can be seen without asking for a score; every step
    /// may take `patience`. What computes here has no server.
    ///
    /// # Errors
    /// If not.
    fn greet_server(&self, _patience: Duration) -> Result<(), RewardError> {
        Ok(())
    }
}

/// Runs `score_one` over a batch, with the checks that every scorer owes: lengths, buffers, finite scores.
///
/// # Errors
/// If the lists differ in length, a buffer does not fit its image, `score_one` fails, or a score is not finite.
pub fn score_checked(
    name: &str,
    images: &[RgbImage],
    prompts: &[PromptRecord],
    mut score_one: impl FnMut(usize, &RgbImage, &PromptRecord) -> Result<Score, RewardError>,
) -> Result<Vec<Score>, RewardError> {
    check_batch(images, prompts)?;
    let mut scores = Vec::with_capacity(images.len());
    for (index, (image, prompt)) in images.iter().zip(prompts).enumerate() {
        let score = score_one(index, image, prompt)?;
        check_finite(name, index, &score)?;
        scores.push(score);
    }
    Ok(scores)
}

/// Lets a batch pass only with one prompt for each image, and buffers that fit their images.
pub(crate) fn check_batch(images: &[RgbImage], prompts: &[PromptRecord]) -> Result<(), RewardError> {
    if images.len() != prompts.len() {
        return Err(RewardError::Lengths { images: images.len(), prompts: prompts.len() });
    }
    let check = |(index, image): (usize, &RgbImage)| {
        image.check().map_err(|problem| RewardError::Image { index, problem })
    };
    images.iter().enumerate().try_for_each(check)
}

/// Lets scores pass only if there is one for each image.
pub fn check_count(name: &str, n_images: usize, scores: &[Score]) -> Result<(), RewardError> {
    match scores.len() {
        n_scores if n_scores == n_images => Ok(()),
        scores => Err(RewardError::ScoreCount { name: name.to_owned(), images: n_images, scores }),
    }
}

/// Lets a score pass only if it and all its extras are finite.
pub(crate) fn check_finite(name: &str, index: usize, score: &Score) -> Result<(), RewardError> {
    let values = std::iter::once(score.value).chain(score.extras.values().copied());
    match values.into_iter().find(|value| !value.is_finite()) {
        Some(value) => Err(RewardError::NotFinite { name: name.to_owned(), index, value }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> PromptRecord {
        PromptRecord { prompt: "a circle".to_owned(), metadata: Value::Null }
    }

    #[test]
    fn nan_never_leaves_and_names_its_image() {
        let images = vec![RgbImage::filled(2, 2, [0; 3]); 3];
        let prompts = vec![record(); 3];
        let error = score_checked("odd", &images, &prompts, |index, _, _| {
            Ok(Score::from(if index == 1 { f32::NAN } else { 0.5 }))
        });
        assert_eq!(error.unwrap_err().to_string(), "reward `odd` of image 1 is NaN; a score must be finite");
    }

    #[test]
    fn infinite_extra_is_refused_too() {
        let extras = BTreeMap::from([("part".to_owned(), f32::INFINITY)]);
        let error = score_checked("odd", &[RgbImage::filled(2, 2, [0; 3])], &[record()], |_, _, _| {
            Ok(Score { value: 1.0, extras: extras.clone() })
        });
        assert!(matches!(error, Err(RewardError::NotFinite { index: 0, .. })));
    }

    #[test]
    fn lists_of_different_length_and_broken_buffers_are_refused() {
        let good = RgbImage::filled(2, 2, [0; 3]);
        let none = score_checked("odd", std::slice::from_ref(&good), &[], |_, _, _| Ok(Score::from(0.0)));
        assert!(matches!(none, Err(RewardError::Lengths { images: 1, prompts: 0 })));
        let broken = RgbImage { pixels: vec![0; 3], ..good };
        let error = score_checked("odd", &[broken], &[record()], |_, _, _| Ok(Score::from(0.0)));
        assert_eq!(error.unwrap_err().to_string(), "image 0: image of 2 x 2 needs 12 bytes of RGB, got 3");
    }
}
