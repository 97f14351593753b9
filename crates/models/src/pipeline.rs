//! From a text and a noise to an image: what every model family offers, and how a folder is opened.
//!
//! A family is one file under `pipeline/` and one line in `FAMILIES`.

mod conditioning;
mod rgb;
mod sd3;

use std::path::Path;

use tch::{Device, Kind, Tensor};

pub use conditioning::Conditioning;
pub use rgb::{RgbImage, to_rgb8};

use crate::ModelError;
use crate::lora::{LoraConfig, NormalSource};
use crate::tokenizer::TokenIds;

/// A flow-matching text-to-image model: text encoders, velocity network with its adapter, decoder.
pub trait TextToImageModel {
    /// The contents of `scheduler/scheduler_config.json`.
    fn scheduler_config(&self) -> &serde_json::Value;

    /// The shape of one image's latents, without the batch axis.
    ///
    /// # Errors
    /// If the model cannot draw `height` × `width` pixels; the error names the sizes that fit.
    fn latent_shape(&self, height: i64, width: i64) -> Result<Vec<i64>, ModelError>;

    /// How many image tokens the network sees, which dynamic schedules depend on.
    fn image_sequence_length(&self, height: i64, width: i64) -> usize;

    /// Encodes each prompt by itself, so that its embedding does not depend on its neighbours to the last bit.
    ///
    /// # Errors
    /// If the folder was opened without text encoders, or `max_sequence_length` does not suit them.
    fn encode_prompts(
        &self,
        prompts: &[String],
        max_sequence_length: usize,
    ) -> Result<Conditioning, ModelError>;

    /// The tokens that each text encoder gets, and how many it does not get because they do not fit.
    ///
    /// # Errors
    /// As [`Self::encode_prompts`].
    fn token_ids(&self, prompt: &str, max_sequence_length: usize) -> Result<Vec<PromptTokens>, ModelError>;

    /// Predicts the velocity d(latents)/d(sigma), guided towards `positive` and away from `negative`.
    ///
    /// Without `negative`, or with a `guidance_scale` of at most 1, only `positive` is evaluated.
    ///
    /// # Shapes
    /// - `latents`: `[B, …]` as [`Self::latent_shape`]; `sigmas`: `[B]`, f32, in `[0, 1]`
    /// - `positive`, `negative`: B rows, or one for all
    /// - returns: as `latents`, f32
    ///
    /// # Panics
    /// If the shapes disagree.
    fn velocity(
        &self,
        latents: &Tensor,
        sigmas: &Tensor,
        positive: &Conditioning,
        negative: Option<&Conditioning>,
        guidance_scale: f64,
    ) -> Tensor;

    /// As [`Self::velocity`], with gradients to the adapter's parameters as they are now.
    fn velocity_for_training(
        &self,
        latents: &Tensor,
        sigmas: &Tensor,
        positive: &Conditioning,
        negative: Option<&Conditioning>,
        guidance_scale: f64,
    ) -> Tensor;

    /// As [`Self::velocity`], of the base model: the adapter takes no part.
    fn reference_velocity(
        &self,
        latents: &Tensor,
        sigmas: &Tensor,
        positive: &Conditioning,
        negative: Option<&Conditioning>,
        guidance_scale: f64,
    ) -> Tensor;

    /// Checks that [`Self::velocity`] can be asked about these: tensors that came from a file or another process.
    ///
    /// # Errors
    /// If a shape does not fit the model or the shapes do not fit each other.
    fn check_inputs(&self, latents: &Tensor, conditioning: &Conditioning) -> Result<(), ModelError>;

    /// How many features a token of the text has, and how many the pooled text has: 0 where the family has none.
    fn embedding_widths(&self) -> (i64, i64);

    /// Draws the images of finished latents.
    ///
    /// # Shapes
    /// - `latents`: `[B, …]` as [`Self::latent_shape`]
    /// - returns: `[B, 3, H, W]`, f32, in `[0, 1]`
    ///
    /// # Errors
    /// If the folder was opened without its decoder, or `latents` does not fit it.
    fn decode(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        Ok((self.decode_signed(latents)? / 2.0 + 0.5).clamp(0.0, 1.0))
    }

    /// As [`Self::decode`], but as the decoder draws: black is -1, white is 1, and nothing is clamped.
    ///
    /// # Errors
    /// As [`Self::decode`].
    fn decode_signed(&self, latents: &Tensor) -> Result<Tensor, ModelError>;

    /// Attaches a fresh adapter in place of any other; until trained or loaded it changes nothing.
    ///
    /// # Errors
    /// If rank or alpha is not positive, or a target names no linear module.
    fn attach_adapter(&mut self, config: &LoraConfig, normal: &mut NormalSource) -> Result<(), ModelError>;

    /// The adapter's tensors by name: float32 leaves in a fixed order, to be changed in place and then refreshed.
    fn adapter_parameters(&self) -> Vec<(String, Tensor)>;

    /// Copies values into the attached adapter, all or none, and refreshes.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape; all of them are told.
    fn load_adapter(&mut self, tensors: &[(String, Tensor)]) -> Result<(), ModelError>;

    /// Makes [`Self::velocity`] use the adapter as it is now; call it after every change.
    fn refresh_adapter(&mut self);
}

/// What one text encoder gets of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTokens {
    /// The encoder's tokenizer, as `model_index.json` names it.
    pub tokenizer: &'static str,
    /// Its ids, and how many were cut off.
    pub tokens: TokenIds,
}

/// How a model folder is opened, and which of its parts.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// The kind of the transformer's and the text encoders' weights.
    pub kind: Kind,
    /// Where the weights live.
    pub device: Device,
    /// Whether to load the text encoders; a learner that receives embeddings does without.
    pub text_encoders: bool,
    /// Whether to load the decoder.
    pub decoder: bool,
}

type Open = fn(&Path, LoadOptions) -> Result<Box<dyn TextToImageModel>, ModelError>;

/// `_class_name` of `model_index.json`, and who opens it.
const FAMILIES: &[(&str, Open)] = &[("StableDiffusion3Pipeline", sd3::open)];

/// Opens a folder in the diffusers layout.
///
/// # Errors
/// If a file is missing or does not fit the others, or the family is not among those supported.
pub fn open(dir: &Path, options: LoadOptions) -> Result<Box<dyn TextToImageModel>, ModelError> {
    let path = dir.join("model_index.json");
    let index: serde_json::Value = crate::json_file::read(&path)?;
    let class = index["_class_name"].as_str().unwrap_or_default();
    let family = FAMILIES.iter().find(|(name, _)| *name == class);
    let (_, open_family) = family.ok_or_else(|| ModelError::UnsupportedClass {
        path,
        found: class.to_owned(),
        supported: FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    })?;
    open_family(dir, options)
}
