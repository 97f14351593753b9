//! Scores of a batch that a server did not finish, kept so that asking again asks only for those that are missing.
//!
//! Which images are asked about together does not change by it: parts of a batch that have all their scores are left out
//! whole.

use std::sync::{Mutex, PoisonError};

use scenes::RgbImage;

use crate::reward::{PromptRecord, Score};

/// The batch that was left unfinished last, if there is one.
#[derive(Default)]
pub(super) struct Unfinished(Mutex<Option<Kept>>);

struct Kept {
    batch: blake3::Hash,
    scores: Vec<Option<Score>>,
}

impl Unfinished {
    /// What is known already of this batch, by image.
    pub(super) fn take(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Vec<Option<Score>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match kept {
            Some(kept) if kept.batch == digest(images, prompts) => kept.scores,
            _ => vec![None; images.len()],
        }
    }

    /// Keeps what is known of a batch that has failed.
    pub(super) fn keep(&self, images: &[RgbImage], prompts: &[PromptRecord], scores: Vec<Option<Score>>) {
        let kept = Kept { batch: digest(images, prompts), scores };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
    }
}

fn digest(images: &[RgbImage], prompts: &[PromptRecord]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (RgbImage { width, height, pixels }, PromptRecord { prompt, metadata }) in images.iter().zip(prompts)
    {
        let metadata = metadata.to_string();
        for size in [*width, *height, prompt.len(), metadata.len()] {
            hasher.update(&(size as u64).to_le_bytes());
        }
        hasher.update(pixels).update(prompt.as_bytes()).update(metadata.as_bytes());
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_batch_finds_what_was_kept_and_only_once() {
        let images = [[0; 3], [9; 3]].map(|color| RgbImage::filled(2, 2, color));
        let record =
            |prompt: &str| PromptRecord { prompt: prompt.to_owned(), metadata: serde_json::Value::Null };
        let prompts = ["a", "b"].map(record);
        let unfinished = Unfinished::default();
        let known = vec![None, Some(Score::from(0.5))];
        for (other_images, other_prompts) in [
            (images.clone(), ["a", "c"].map(record)),
            ([images[1].clone(), images[0].clone()], prompts.clone()),
        ] {
            unfinished.keep(&images, &prompts, known.clone());
            assert_eq!(unfinished.take(&other_images, &other_prompts), [None, None]);
        }
        unfinished.keep(&images, &prompts, known.clone());
        assert_eq!(unfinished.take(&images, &prompts), known);
        assert_eq!(unfinished.take(&images, &prompts), [None, None]);
    }
}
