//! From a text and a noise to an image: what every model family offers, and how a folder is opened.
//!
//! A family is one file under `pipeline/` and one line in `FAMILIES`.

mod conditioning;
mod flux;
mod guided;
mod image_sizes;
mod model_index;
mod qwen_image;
mod rgb;
mod sd3;
mod text_encoders;

use std::path::Path;

use tch::Tensor;

pub use conditioning::Conditioning;
pub use rgb::{RgbImage, to_rgb8};

use crate::ModelError;
use crate::autoencoder_kl::AutoencoderKlDecoder;
use crate::network::Network;
use crate::projection::AdapterMode;
use crate::tokenizer::TokenIds;
use crate::weights::WeightOptions;

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

    /// The prompt that guidance of this strength leads away from; `None` if the network evaluates the prompt alone,
    /// because it applies guidance itself or there is none to apply.
    fn negative_prompt(&self, guidance_scale: f64) -> Option<&'static str>;

    /// Predicts the velocity d(latents)/d(sigma) under guidance; `mode` says what the adapter has to do with it.
    ///
    /// # Shapes
    /// - `latents`: `[B, …]` as [`Self::latent_shape`]; `sigmas`: `[B]`, f32, in `[0, 1]`
    /// - returns: as `latents`, f32
    ///
    /// # Panics
    /// If the shapes disagree.
    fn velocity(&self, latents: &Tensor, sigmas: &Tensor, guidance: &Guidance, mode: AdapterMode) -> Tensor;

    /// The velocity network, which carries the adapter.
    fn network(&self) -> &dyn Network;

    /// As [`Self::network`], to change its adapter.
    fn network_mut(&mut self) -> &mut dyn Network;

    /// Time in the network's own units at sigma 1.
    fn timestep_scale(&self) -> f64;

    /// Latents in the layout that the family's reference pipeline passes to its network; unchanged where it is ours.
    fn pack(&self, latents: &Tensor) -> Tensor {
        latents.shallow_clone()
    }

    /// Undoes [`Self::pack`] for latents of `latent_shape`.
    ///
    /// # Errors
    /// If `packed` has not as many elements.
    fn unpack(&self, packed: &Tensor, latent_shape: &[i64]) -> Result<Tensor, ModelError> {
        let found = packed.size();
        match found.get(1..) == Some(latent_shape) {
            true => Ok(packed.shallow_clone()),
            false => Err(misshaped("latents", &found, &format!("[rows, …] with {latent_shape:?}"))),
        }
    }

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

    /// As [`Self::decode`], but as the decoder draws: black is -1, white is 1, and nothing is clamped that the decoder
    /// leaves unclamped.
    ///
    /// # Errors
    /// As [`Self::decode`].
    fn decode_signed(&self, latents: &Tensor) -> Result<Tensor, ModelError>;
}

/// Towards what the velocity is steered, away from what, and how hard.
#[derive(Clone, Copy, Debug)]
pub struct Guidance<'a> {
    /// The prompts: as many rows as there are latents, or one for all.
    pub positive: &'a Conditioning,
    /// The negative prompt, likewise; where there is one ([`TextToImageModel::negative_prompt`]) it takes part.
    pub negative: Option<&'a Conditioning>,
    /// Strength.
    pub scale: f64,
}

impl<'a> Guidance<'a> {
    /// The velocity of the prompts themselves.
    pub fn none(positive: &'a Conditioning) -> Self {
        Self { positive, negative: None, scale: 1.0 }
    }
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
    /// How tensors are read, and where they go.
    pub weights: WeightOptions,
    /// Whether to load the text encoders; a learner that receives embeddings does without.
    pub text_encoders: bool,
    /// Whether to load the decoder.
    pub decoder: bool,
}

type Open = fn(&Path, LoadOptions) -> Result<Box<dyn TextToImageModel>, ModelError>;

/// `_class_name` of `model_index.json`, and who opens it.
const FAMILIES: &[(&str, Open)] = &[
    ("StableDiffusion3Pipeline", sd3::open),
    ("FluxPipeline", flux::open),
    ("QwenImagePipeline", qwen_image::open),
];

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

/// A part of a model that its folder may have been opened without.
fn opened<'a, T>(part: &'a Option<T>, name: &str, dir: &Path) -> Result<&'a T, ModelError> {
    part.as_ref().ok_or_else(|| ModelError::Input(format!("{} was opened without its {name}", dir.display())))
}

/// [`TextToImageModel::decode_signed`] of families that have this decoder.
fn decode_with(decoder: &AutoencoderKlDecoder, latents: &Tensor) -> Result<Tensor, ModelError> {
    let (size, channels) = (latents.size(), decoder.config().latent_channels);
    if size.len() != 4 || size[1] != channels {
        return Err(misshaped("latents", &size, &format!("[rows, {channels}, height, width]")));
    }
    Ok(tch::no_grad(|| decoder.decode(latents)))
}

fn misshaped(what: &str, found: &[i64], expected: &str) -> ModelError {
    ModelError::Input(format!(
        "the {what} have shape {found:?}, which does not fit the model; expected {expected}"
    ))
}
