//! Batches of images, and the checks that every remote scorer owes.

use std::io::Cursor;

use base64::prelude::{BASE64_STANDARD, Engine};
use image::ImageFormat;
use scenes::RgbImage;

use super::error::RemoteError;
use super::server_url::ServerUrl;
use super::unfinished::Unfinished;
use crate::error::RewardError;
use crate::reward::{PromptRecord, Score, check_batch, check_finite};

/// Neighbouring images with their prompts.
#[derive(Clone, Copy)]
pub(super) struct Batch<'a> {
    /// Position of the first one among all.
    pub(super) start: usize,
    pub(super) images: &'a [RgbImage],
    pub(super) prompts: &'a [PromptRecord],
}

/// Whose scores they are.
pub(super) struct Scorer<'a> {
    pub(super) name: &'static str,
    pub(super) url: &'a ServerUrl,
    pub(super) unfinished: &'a Unfinished,
}

impl Scorer<'_> {
    /// An error of this scorer.
    pub(super) fn error(&self, problem: RemoteError) -> RewardError {
        let (name, url) = (self.name.to_owned(), self.url.shown(""));
        RewardError::Remote { name, url, problem: Box::new(problem) }
    }

    /// Runs `score_batch` over batches of at most `batch_size` images, as even as can be, which gives a score for each image
    /// or fails. Those that were scored are not scored again when the same images come again after a failure.
    ///
    /// # Errors
    /// If the lists differ in length, an image is empty or broken, `score_batch` fails, or a score is not finite.
    pub(super) fn score_in_batches(
        &self,
        images: &[RgbImage],
        prompts: &[PromptRecord],
        batch_size: usize,
        mut score_batch: impl FnMut(Batch) -> Result<Vec<Score>, RewardError>,
    ) -> Result<Vec<Score>, RewardError> {
        check_images(self.name, images, prompts)?;
        let mut scores = self.unfinished.take(images, prompts);
        for (start, length) in even_parts(images.len(), batch_size) {
            let part = start..start + length;
            if scores[part.clone()].iter().all(Option::is_some) {
                continue;
            }
            let batch = Batch { start, images: &images[part.clone()], prompts: &prompts[part.clone()] };
            match score_batch(batch).and_then(|found| self.finite(start, found)) {
                Ok(found) => {
                    scores[part].iter_mut().zip(found).for_each(|(score, found)| *score = Some(found))
                }
                Err(error) => {
                    self.unfinished.keep(images, prompts, scores);
                    return Err(error);
                }
            }
        }
        let scores: Option<Vec<Score>> = scores.into_iter().collect();
        Ok(scores.expect("every protocol gives a score for each image, or fails; else this is a bug"))
    }

    /// Lets the scores of a batch that begins at `start` pass only if they are finite.
    fn finite(&self, start: usize, scores: Vec<Score>) -> Result<Vec<Score>, RewardError> {
        let mut numbered = scores.iter().enumerate();
        numbered.try_for_each(|(index, score)| check_finite(self.name, start + index, score)).map(|()| scores)
    }
}

/// Lets images pass that are as many as their prompts, whole, and not empty.
pub(super) fn check_images(
    name: &'static str,
    images: &[RgbImage],
    prompts: &[PromptRecord],
) -> Result<(), RewardError> {
    check_batch(images, prompts)?;
    for (index, image) in images.iter().enumerate() {
        let (width, height) = (image.width, image.height);
        if image.pixels.is_empty() {
            let allowed = "images with at least one pixel";
            return Err(RewardError::ImageSize { index, width, height, name, allowed });
        }
    }
    Ok(())
}

/// Starts and lengths of the fewest parts of at most `most`; the first ones are longer by one where it does not work out.
///
/// Source: `numpy.array_split`, which cuts the batches of Flow-GRPO's remote rewards.
fn even_parts(length: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let n_parts = length.div_ceil(most);
    let (short, n_long) = (length.checked_div(n_parts).unwrap_or(0), length % n_parts.max(1));
    (0..n_parts).map(move |part| (part * short + part.min(n_long), short + usize::from(part < n_long)))
}

/// The image as a PNG file, in base64.
///
/// # Errors
/// If the encoder refuses it.
pub(super) fn png_base64(index: usize, image: &RgbImage) -> Result<String, RewardError> {
    let refuse = |problem| RewardError::Png { index, problem };
    let (width, height) = (image.width as u32, image.height as u32);
    let mut file = Cursor::new(Vec::new());
    let pixels = image.pixels.as_slice();
    image::write_buffer_with_format(
        &mut file,
        pixels,
        width,
        height,
        image::ExtendedColorType::Rgb8,
        ImageFormat::Png,
    )
    .map_err(refuse)?;
    Ok(BASE64_STANDARD.encode(file.into_inner()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_even_as_numpys() {
        let parts = |length, most| even_parts(length, most).collect::<Vec<_>>();
        assert_eq!(parts(0, 64), []);
        assert_eq!(parts(64, 64), [(0, 64)]);
        // numpy.array_split(range(65), 2), numpy.array_split(range(7), 3)
        assert_eq!(parts(65, 64), [(0, 33), (33, 32)]);
        assert_eq!(parts(7, 3), [(0, 3), (3, 2), (5, 2)]);
    }
}
