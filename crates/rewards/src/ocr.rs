//! Whether an image shows the words that its prompt puts in quotes.
//!
//! ```text
//! target = what stands between the first two `"` of the prompt      both without spaces, in lower case
//! score  = 1                                          if the target is part of what is read
//!          1 − min(edits from read to target, n) / n  otherwise, n being the target's length
//! ```
//!
//! Lengths and edits are counted in Unicode characters. Only `"` counts as a quote: typographic ones stand in prompts
//! that are not about writing. After a single `"` the target is all the rest. A prompt without a target scores 0.
//!
//! An image that cannot be read for a technical reason is an error here, where the reference scores it 0: a broken
//! installation must not look like a policy that cannot write.
//!
//! Source: `OcrScorer` of Flow-GRPO (October 2025), with PaddleOCR in the place of Tesseract.

pub(crate) mod tesseract;

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use scenes::RgbImage;
use serde::Deserialize;

use crate::error::RewardError;
use crate::reward::{PromptRecord, Reward, Score, check_batch};
pub use tesseract::OcrError;
use tesseract::{Page, Tesseract};

const NAME: &str = "ocr";

/// Options of the scorer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OcrOptions {
    /// The Tesseract program, version 5 or newer: a name to look for in `PATH`, or a path.
    pub program: PathBuf,
    /// Its language, or several as `eng+deu`.
    pub language: String,
    /// Its page segmentation mode, 3 to 13: 11 is text anywhere in the image, 6 one block of text.
    pub page_segmentation: u8,
    /// How long it may take for 32 images, in seconds.
    pub timeout_seconds: f64,
}

impl Default for OcrOptions {
    fn default() -> Self {
        Self {
            program: "tesseract".into(),
            language: "eng".to_owned(),
            page_segmentation: 11,
            timeout_seconds: 300.0,
        }
    }
}

/// Rewards images that show what their prompts quote; needs no metadata.
#[derive(Debug)]
pub struct OcrReward {
    tesseract: Tesseract,
    has_warned: Cell<bool>,
}

impl OcrReward {
    /// Looks for the program and its language.
    ///
    /// # Errors
    /// If an option is out of range, or the program or its language is missing.
    pub fn new(options: OcrOptions) -> Result<Self, RewardError> {
        let out_of_range = |key, value, allowed| {
            Err(RewardError::OptionRange { name: NAME.to_owned(), key, value, allowed })
        };
        if !(3..=13).contains(&options.page_segmentation) {
            return out_of_range("page_segmentation", f32::from(options.page_segmentation), "3 to 13");
        }
        if !(options.timeout_seconds > 0.0 && options.timeout_seconds <= LONGEST_TIMEOUT) {
            return out_of_range(
                "timeout_seconds",
                options.timeout_seconds as f32,
                "more than 0, at most a day",
            );
        }
        Ok(Self { tesseract: Tesseract::open(options)?, has_warned: Cell::new(false) })
    }

    /// What every prompt wants written; tells of the first that wants nothing.
    fn targets(&self, prompts: &[PromptRecord]) -> Vec<Option<String>> {
        let targets: Vec<_> = prompts.iter().map(|record| target(&record.prompt)).collect();
        let without = prompts.iter().zip(&targets).find(|(_, target)| target.is_none());
        if let Some((record, _)) = without.filter(|_| !self.has_warned.replace(true)) {
            tracing::warn!(
                "prompt `{}` has no words in double quotes; reward `{NAME}` scores such prompts 0",
                record.prompt
            );
        }
        targets
    }
}

/// A day, in seconds.
const LONGEST_TIMEOUT: f64 = 86_400.0;
/// How long a machine that cannot run the program, or is too slow, is given to recover.
const PATIENCE: Duration = Duration::from_secs(300);

impl Reward for OcrReward {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        check_batch(images, prompts)?;
        let targets = self.targets(prompts);
        let mut pages = Vec::new();
        for (index, image) in images.iter().enumerate().filter(|(index, _)| targets[*index].is_some()) {
            let RgbImage { width, height, .. } = *image;
            if width.min(height) < config::OCR_SHORTEST_SIDE {
                let allowed = "at least 8 pixels on either side";
                return Err(RewardError::ImageSize { index, width, height, name: NAME, allowed });
            }
            pages.push(Page::of(image));
        }
        let mut readings = self.tesseract.read(&pages)?.into_iter();
        let score_one = |target: &Option<String>| match target {
            None => Score::from(0.0),
            Some(target) => {
                let reading = readings.next().expect("there is one for every page; else this is a bug");
                Score::from(reading.iter().map(|text| similarity(text, target)).fold(0.0, f32::max))
            }
        };
        Ok(targets.iter().map(score_one).collect())
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }
}

/// What a prompt wants written, as it is compared; none where that is nothing.
fn target(prompt: &str) -> Option<String> {
    let quoted = prompt.split('"').nth(1)?;
    Some(comparable(quoted)).filter(|target| !target.is_empty())
}

/// A text without spaces, in lower case.
fn comparable(text: &str) -> String {
    text.split_whitespace().collect::<String>().to_lowercase()
}

/// How well a text matches a target that is [`comparable`] already, 0 to 1.
fn similarity(text: &str, target: &str) -> f32 {
    let text = comparable(text);
    if text.contains(target) {
        return 1.0;
    }
    let length = target.chars().count();
    let edits = strsim::levenshtein(&text, target).min(length);
    (1.0 - edits as f64 / length as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_stands_between_the_first_two_quotes() {
        let targets = [
            ("a sign that says \"Grand  Opening\"", Some("grandopening")),
            ("\"One\" beside \"Two\"", Some("one")),
            ("a shop called \"Ünder 3 Øre", Some("ünder3øre")),
            ("a sign that says “Hello”", None),
            ("no quotes", None),
            ("an empty \"\" sign, then \"more\"", None),
            ("only spaces \" \t\"", None),
        ];
        for (prompt, expected) in targets {
            assert_eq!(target(prompt).as_deref(), expected, "{prompt}");
        }
    }

    #[test]
    fn scores_are_those_of_the_formula() {
        // Edits counted by hand.
        let cases = [
            ("OPEN", "open", 1.0),
            ("we are open today", "open", 1.0),
            ("opn", "open", 0.75),
            ("", "open", 0.0),
            ("something else altogether", "open", 0.0),
            ("oben", "open", 0.75),
            ("grand openning", "grandopening", 1.0 - 1.0 / 12.0),
            ("føø", "foo", 1.0 - 2.0 / 3.0),
        ];
        for (text, target, expected) in cases {
            assert!((similarity(text, target) - expected).abs() < 1e-6, "{text} for {target}");
        }
    }

    /// All texts of up to five letters of two, and one of two bytes, against all such targets.
    #[test]
    fn a_score_is_1_exactly_where_the_target_is_part_of_the_text() {
        let mut texts = vec![String::new()];
        for length in 0..5 {
            let longest: Vec<String> =
                texts.iter().filter(|text| text.chars().count() == length).cloned().collect();
            texts.extend(
                longest.iter().flat_map(|text| ['a', 'b', 'é'].map(|letter| format!("{text}{letter}"))),
            );
        }
        for target in texts.iter().filter(|target| (1..=3).contains(&target.chars().count())) {
            for text in &texts {
                let score = similarity(text, target);
                assert!((0.0..=1.0).contains(&score), "{score}");
                assert_eq!(score == 1.0, text.contains(target), "{text} for {target}: {score}");
            }
        }
    }

    #[test]
    fn more_of_a_target_never_scores_less() {
        let target = "grandopening";
        let scores: Vec<f32> =
            (0..=target.len()).map(|length| similarity(&target[..length], target)).collect();
        assert!(scores.windows(2).all(|pair| pair[0] < pair[1]), "{scores:?}");
        assert_eq!((scores[0], scores[12]), (0.0, 1.0));
    }
}
