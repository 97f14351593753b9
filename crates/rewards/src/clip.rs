//! What scorers made of CLIP share: how alike a picture and its prompt are, times a number.
//!
//! Pictures go through the network in batches of the caller's cut by `batch_size`, prompts one by one, so that a score
//! depends on nothing but the batch and that option. Features of prompts are kept, since many pictures share one.

mod files;
mod image_processor;
mod open_clip_text;
mod prompts;
mod tensor_images;

use std::ops::Range;
use std::path::PathBuf;

use models::clip::ClipModel;
use scenes::RgbImage;
use serde::Deserialize;
use tch::{Kind, Tensor};

pub(crate) use files::{ClipFiles, Published};
pub(crate) use image_processor::{ClipImageProcessor, ClipSizes, PREPROCESSOR_FILE};
pub(crate) use open_clip_text::clean;
pub(crate) use prompts::PromptEmbeddings;
pub(crate) use tensor_images::{Framing, Normalization, TensorImages};

use crate::error::RewardError;
use crate::network_options::{NetworkDtype, check_batch_size, prompt_error};
use crate::resources::Resources;
use crate::reward::{PromptRecord, Reward, Score, check_batch, check_finite};

/// Options of the scorers made of CLIP.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipOptions {
    /// Folder or `org/name` of the network; the published one if not given.
    pub model: Option<PathBuf>,
    /// Folder or `org/name` of tokenizer and preprocessor; if not given, the model's own folder where it has them, else
    /// the published one.
    pub processor: Option<PathBuf>,
    /// Element type of the network.
    pub dtype: NetworkDtype,
    /// Most pictures that the network sees at once.
    pub batch_size: usize,
}

impl Default for ClipOptions {
    fn default() -> Self {
        Self { model: None, processor: None, dtype: NetworkDtype::Float32, batch_size: DEFAULT_BATCH_SIZE }
    }
}

pub(crate) const DEFAULT_BATCH_SIZE: usize = 16;

impl ClipOptions {
    /// Finds the folders of the scorer called `name`.
    ///
    /// # Errors
    /// If the batch size is 0, or a folder is not found.
    pub(crate) fn find_files(
        &self,
        name: &'static str,
        published: &Published,
        resources: &Resources,
    ) -> Result<ClipFiles, RewardError> {
        check_batch_size(name, self.batch_size)?;
        ClipFiles::find(name, (self.model.as_deref(), self.processor.as_deref()), published, resources)
    }
}

/// How pictures become what the network sees.
pub(crate) enum Preprocessing {
    /// As `transformers` does it, with Pillow.
    Pillow(ClipImageProcessor),
    /// As `torchvision` does it on tensors.
    Tensors(TensorImages),
}

/// A size that a scorer does not take, by the sizes that it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnsuitableSize(pub &'static str);

/// What the network sees of pictures; `start` is the position of the first one.
///
/// # Shapes
/// `[B, 3, S, S]`, float32, on the CPU or the network's device.
fn pixel_values(
    name: &'static str,
    preprocessing: &Preprocessing,
    images: &[RgbImage],
    start: usize,
) -> Result<Tensor, RewardError> {
    let process = |(index, image): (usize, &RgbImage)| {
        let processed = match preprocessing {
            Preprocessing::Pillow(processor) => processor.process(image),
            Preprocessing::Tensors(images) => images.process(image),
        };
        let RgbImage { width, height, .. } = *image;
        processed.map_err(|UnsuitableSize(allowed)| RewardError::ImageSize {
            index,
            width,
            height,
            name,
            allowed,
        })
    };
    Ok(Tensor::stack(&(start..).zip(images).map(process).collect::<Result<Vec<_>, _>>()?, 0))
}

/// Scores pictures in order, as many at once as `batch_size` says; `score` gets what the network sees of some of them, and
/// their positions.
pub(crate) fn score_in_batches(
    name: &'static str,
    (images, batch_size): (&[RgbImage], usize),
    preprocessing: &Preprocessing,
    score: impl Fn(&Tensor, Range<usize>) -> Result<Tensor, RewardError>,
) -> Result<Vec<Score>, RewardError> {
    let mut scores: Vec<Score> = Vec::with_capacity(images.len());
    for batch in images.chunks(batch_size) {
        let start = scores.len();
        let pixel_values = pixel_values(name, preprocessing, batch, start)?;
        let values = Vec::<f32>::try_from(score(&pixel_values, start..start + batch.len())?);
        for value in values.expect("a scorer gives one number for each picture; else this is a bug") {
            let score = Score::from(value);
            check_finite(name, scores.len(), &score)?;
            scores.push(score);
        }
    }
    Ok(scores)
}

/// Rewards pictures by the cosine of the angle between their features and those of their prompts, times a factor.
///
/// Letters: B pictures or prompts, P features, S side of a picture as the network sees it.
pub struct ClipReward {
    pub(crate) name: &'static str,
    pub(crate) model: ClipModel,
    pub(crate) prompts: PromptEmbeddings,
    pub(crate) preprocessing: Preprocessing,
    pub(crate) factor: f64,
    pub(crate) batch_size: usize,
}

impl ClipReward {
    /// The ids of a prompt's tokens, start and end included, cut to the model's length.
    ///
    /// # Errors
    /// If the tokenizer refuses the text, or gives an id that the network does not know.
    pub fn token_ids(&self, prompt: &str) -> Result<Vec<i64>, RewardError> {
        self.prompts.token_ids(prompt).map_err(|problem| prompt_error(self.name, prompt, problem))
    }

    /// What the network sees of pictures.
    ///
    /// # Shapes
    /// `[B, 3, S, S]`, float32.
    ///
    /// # Errors
    /// If the scorer does not take a picture's size.
    ///
    /// # Panics
    /// If there is none, or a buffer does not fit its picture ([`RgbImage::check`]).
    pub fn pixel_values(&self, images: &[RgbImage]) -> Result<Tensor, RewardError> {
        pixel_values(self.name, &self.preprocessing, images, 0)
    }

    /// Features of prompts, each of length 1.
    ///
    /// # Shapes
    /// `[B, P]`, float32.
    ///
    /// # Errors
    /// As [`Self::token_ids`].
    ///
    /// # Panics
    /// If there is none.
    pub fn text_embeds(&self, prompts: &[PromptRecord]) -> Result<Tensor, RewardError> {
        let row = |PromptRecord { prompt, .. }: &PromptRecord| {
            self.prompts
                .embed(&self.model, prompt)
                .map_err(|problem| prompt_error(self.name, prompt, problem))
        };
        Ok(Tensor::cat(&prompts.iter().map(row).collect::<Result<Vec<_>, _>>()?, 0))
    }

    /// Features of pictures, each of length 1.
    ///
    /// # Shapes
    /// `[B, 3, S, S]` → `[B, P]`, float32.
    ///
    /// # Panics
    /// If the shape is another.
    pub fn image_embeds(&self, pixel_values: &Tensor) -> Tensor {
        self.model.vision.image_embeds(pixel_values)
    }

    /// The scores of pictures and prompts by their features.
    ///
    /// # Shapes
    /// Both `[B, P]` → `[B]`.
    pub fn compare(&self, text_embeds: &Tensor, image_embeds: &Tensor) -> Tensor {
        (text_embeds * image_embeds).sum_dim_intlist([-1_i64].as_slice(), false, Kind::Float) * self.factor
    }
}

impl Reward for ClipReward {
    fn name(&self) -> &str {
        self.name
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        check_batch(images, prompts)?;
        score_in_batches(self.name, (images, self.batch_size), &self.preprocessing, |pixel_values, range| {
            Ok(self.compare(&self.text_embeds(&prompts[range])?, &self.image_embeds(pixel_values)))
        })
    }
}
