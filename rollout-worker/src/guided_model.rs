//! A model under fixed guidance, with the embeddings of the prompts it met last.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use flow::{FlowError, Schedule, SchedulerConfig};
use models::lora::LoraConfig;
use models::weights::WeightOptions;
use models::{AdapterMode, Conditioning, Guidance, LoadOptions, ModelError, TextToImageModel, to_rgb8};
use rewards::RgbImage;
use tch::{Device, Kind, Tensor};

use crate::truncated_prompts::TruncatedPrompts;

/// Embeddings that are kept; a prompt's tasks come one after another, so few are enough.
const KEPT_EMBEDDINGS: usize = 64;
/// Latent elements that are decoded at once: two images of SD3 at 512 pixels, or many small ones. Fixed, since
/// convolutions round differently in different batches.
const DECODED_AT_ONCE: usize = 2 * 16 * 64 * 64;

/// How a model is asked for velocities.
#[derive(Clone, Debug, PartialEq)]
pub struct GuidanceSettings {
    /// Strength of classifier-free guidance; none at 1 or less.
    pub scale: f64,
    /// Tokens of the T5 part of a prompt.
    pub max_sequence_length: usize,
}

/// What of a prompt goes into the network.
#[derive(Debug)]
pub struct Embedding {
    /// One row.
    pub conditioning: Conditioning,
    /// Name of the embedding on the wire.
    pub digest: [u8; 32],
}

/// A model, the guidance it is used with, and the prompts it knows.
pub struct GuidedModel {
    model: Box<dyn TextToImageModel>,
    scheduler: SchedulerConfig,
    device: Device,
    guidance: GuidanceSettings,
    embeddings: HashMap<String, (Rc<Embedding>, u64)>,
    truncated: TruncatedPrompts,
    lookups: u64,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The decoder is missing or failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The decoder produced a NaN or an infinity.
    #[error("image {index} has pixels that are not finite")]
    NonFinite {
        /// Position among the images asked for.
        index: usize,
    },
}

impl GuidedModel {
    /// Opens a folder in the diffusers layout for sampling.
    ///
    /// # Errors
    /// If a file is missing or does not fit the others.
    pub fn open(dir: &Path, weights: WeightOptions, guidance: GuidanceSettings) -> Result<Self, ModelError> {
        let device = weights.device;
        let options = LoadOptions { weights, text_encoders: true, decoder: true };
        let model = models::pipeline::open(dir, options)?;
        let scheduler = serde_json::from_value(model.scheduler_config().clone())
            .map_err(|e| ModelError::damaged(&dir.join("scheduler/scheduler_config.json"), e))?;
        let (embeddings, truncated) = (HashMap::new(), TruncatedPrompts::default());
        Ok(Self { model, scheduler, device, guidance, embeddings, truncated, lookups: 0 })
    }

    /// Height and width that the model was made for, in pixels.
    pub fn usual_size(&self) -> (i64, i64) {
        self.model.usual_size()
    }

    /// The prompts met so far that are longer than a text encoder takes.
    pub fn truncated(&self) -> &TruncatedPrompts {
        &self.truncated
    }

    /// Where its tensors live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Attaches an adapter that changes nothing until [`Self::load_adapter`] fills it.
    ///
    /// # Errors
    /// If rank or alpha is not positive, or a target names no linear module.
    pub fn attach_adapter(&mut self, config: &LoraConfig) -> Result<(), ModelError> {
        self.model.network_mut().attach_adapter(config, &mut |_, length| vec![0.0; length])
    }

    /// Replaces the adapter's values.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape.
    pub fn load_adapter(&mut self, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
        self.model.network_mut().load_adapter(tensors)
    }

    /// The shape of one image's latents.
    ///
    /// # Errors
    /// If the model cannot draw images of this size; the error names the sizes that fit.
    pub fn latent_shape(&self, height: i64, width: i64) -> Result<Vec<i64>, ModelError> {
        self.model.latent_shape(height, width)
    }

    /// The noise levels for images of a size.
    ///
    /// # Errors
    /// If the scheduler's settings are not supported or do not suit the number of steps.
    pub fn schedule(&self, steps: usize, height: i64, width: i64) -> Result<Schedule, FlowError> {
        let sequence_length = self.model.image_sequence_length(height, width);
        Schedule::new(&self.scheduler, steps, sequence_length)
    }

    /// Embeds a prompt, or remembers how it was embedded before.
    ///
    /// # Errors
    /// If the model cannot encode it.
    pub fn embed(&mut self, prompt: &str) -> Result<Rc<Embedding>, ModelError> {
        self.lookups += 1;
        if let Some((embedding, used)) = self.embeddings.get_mut(prompt) {
            *used = self.lookups;
            return Ok(embedding.clone());
        }
        let max_sequence_length = self.guidance.max_sequence_length;
        self.truncated.note(prompt, &self.model.token_ids(prompt, max_sequence_length)?);
        let conditioning = self.model.encode_prompts(&[prompt.to_owned()], max_sequence_length)?;
        let embedding = Rc::new(Embedding { digest: conditioning.digest(), conditioning });
        self.make_room();
        self.embeddings.insert(prompt.to_owned(), (embedding.clone(), self.lookups));
        Ok(embedding)
    }

    /// Embeds what guidance leads away from; `None` without guidance.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn embed_negative(&mut self) -> Result<Option<Rc<Embedding>>, ModelError> {
        self.model.negative_prompt(self.guidance.scale).map(|prompt| self.embed(prompt)).transpose()
    }

    /// Velocities of latents that all stand at noise level `sigma`.
    ///
    /// # Shapes
    /// - `latents`: `[B, …]`; `positive`: B rows or one; `negative`: one row
    /// - returns: as `latents`, f32
    pub fn velocity(
        &self,
        latents: &Tensor,
        sigma: f32,
        positive: &Conditioning,
        negative: Option<&Embedding>,
    ) -> Tensor {
        let sigmas = Tensor::full(latents.size()[0], f64::from(sigma), (Kind::Float, self.device));
        let negative = negative.map(|embedding| &embedding.conditioning);
        let guidance = Guidance { positive, negative, scale: self.guidance.scale };
        tch::no_grad(|| self.model.velocity(latents, &sigmas, &guidance, AdapterMode::Frozen))
    }

    /// Draws finished latents `[B, …]`.
    ///
    /// # Errors
    /// If decoding fails or gives values that are not finite.
    pub fn images(&self, latents: &Tensor) -> Result<Vec<RgbImage>, ImageError> {
        let n_images = latents.size()[0] as usize;
        let at_once = (DECODED_AT_ONCE * n_images / latents.numel().max(1)).max(1);
        let mut images = Vec::with_capacity(n_images);
        for batch in latents.split(at_once as i64, 0) {
            let decoded = self.model.decode(&batch)?;
            let finite = decoded.isfinite().flatten(1, -1).all_dim(1, false).to_kind(Kind::Int64);
            if i64::try_from(finite.min()).unwrap_or(0) == 0 {
                let index = images.len() + finite.argmin(0, false).int64_value(&[]) as usize;
                return Err(ImageError::NonFinite { index });
            }
            images.extend(to_rgb8(&decoded).into_iter().map(|image| RgbImage {
                width: image.width,
                height: image.height,
                pixels: image.pixels,
            }));
        }
        Ok(images)
    }

    fn make_room(&mut self) {
        if self.embeddings.len() < KEPT_EMBEDDINGS {
            return;
        }
        let oldest =
            self.embeddings.iter().min_by_key(|(_, (_, used))| *used).map(|(prompt, _)| prompt.clone());
        if let Some(prompt) = oldest {
            self.embeddings.remove(&prompt);
        }
    }
}
