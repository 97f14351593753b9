//! A model, with the embeddings of the prompts it met last.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use flow::{FlowError, Schedule};
use models::lora::LoraConfig;
use models::saved_weights::SavedWeights;
use models::weights::WeightOptions;
use models::{
    AdapterMode, Conditioning, DecoderOptions, Guidance, LoadOptions, ModelError, TextToImageModel, to_rgb8,
};
use rewards::RgbImage;
use run_setup::NoiseLevels;
use tch::{Device, Kind, Tensor};

use crate::sampling::embedding_cache::EmbeddingCache;
use crate::sampling::truncated_prompts::TruncatedPrompts;

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
    /// Tokens of a prompt for the encoder of long texts: T5, or Qwen2.5-VL.
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

impl Embedding {
    /// Guidance of a strength to some prompts and, where there is one, away from another.
    pub fn guidance<'a>(positive: &'a Conditioning, negative: Option<&'a Self>, scale: f64) -> Guidance<'a> {
        Guidance { positive, negative: negative.map(|embedding| &embedding.conditioning), scale }
    }
}

/// A model, the guidance it is used with, and the prompts it knows.
pub struct GuidedModel {
    model: Box<dyn TextToImageModel>,
    noise_levels: NoiseLevels,
    device: Device,
    max_sequence_length: usize,
    cache: Option<EmbeddingCache>,
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
    /// Opens a folder in the diffusers layout for sampling with prompts of at most `max_sequence_length` tokens.
    ///
    /// # Errors
    /// If a file is missing or does not fit the others.
    pub fn open(dir: &Path, weights: WeightOptions, max_sequence_length: usize) -> Result<Self, ModelError> {
        let options = LoadOptions { weights, text_encoders: true, decoder: Some(DecoderOptions::WHOLE) };
        Self::open_with(dir, options, max_sequence_length, None)
    }

    /// As [`Self::open`], as `options` say. With a cache of its embeddings, text encoders may be left out: they are
    /// opened where a prompt is not in it.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(
        dir: &Path,
        options: LoadOptions,
        max_sequence_length: usize,
        cache: Option<EmbeddingCache>,
    ) -> Result<Self, ModelError> {
        let device = options.weights.device;
        let model = models::pipeline::open(dir, options)?;
        Self::of_model(dir, model, device, (max_sequence_length, cache))
    }

    /// Opens a folder to embed prompts, by [`Self::cache_prompts`], and for nothing else: the network takes no memory.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_for_prompts(
        dir: &Path,
        weights: WeightOptions,
        max_sequence_length: usize,
        cache: EmbeddingCache,
    ) -> Result<Self, ModelError> {
        let device = weights.device;
        let model = models::pipeline::open_for_prompts(dir, weights)?;
        Self::of_model(dir, model, device, (max_sequence_length, Some(cache)))
    }

    /// The cache, and which of the prompts embedded so far were cut off.
    pub fn into_embedded(self) -> (Option<EmbeddingCache>, TruncatedPrompts) {
        (self.cache, self.truncated)
    }

    /// Counts prompts that were cut off when they were embedded before.
    pub fn remember_truncated(&mut self, truncated: TruncatedPrompts) {
        self.truncated = truncated;
    }

    fn of_model(
        dir: &Path,
        model: Box<dyn TextToImageModel>,
        device: Device,
        (max_sequence_length, cache): (usize, Option<EmbeddingCache>),
    ) -> Result<Self, ModelError> {
        let noise_levels = NoiseLevels::of(model.as_ref())
            .map_err(|error| ModelError::Input(format!("{}: {error}", dir.display())))?;
        let (embeddings, truncated) = (HashMap::new(), TruncatedPrompts::default());
        Ok(Self {
            model,
            noise_levels,
            device,
            max_sequence_length,
            cache,
            embeddings,
            truncated,
            lookups: 0,
        })
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

    /// Replaces the values of all parameters of the network.
    ///
    /// # Errors
    /// If a name is missing, unexpected or of another shape.
    pub fn load_parameters(&mut self, tensors: &[(String, Tensor)]) -> Result<(), ModelError> {
        self.model.network_mut().load_parameters(tensors)
    }

    /// Puts what was trained into the network, an adapter or all of its tensors.
    ///
    /// # Errors
    /// If it was trained of another network.
    pub fn load_saved(&mut self, saved: &SavedWeights) -> Result<(), ModelError> {
        saved.load_into(self.model.network_mut())
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
    /// If the scheduler's settings do not suit the number of steps.
    pub fn schedule(&self, steps: usize, height: i64, width: i64) -> Result<Schedule, FlowError> {
        let sequence_length = self.model.image_sequence_length(height, width);
        self.noise_levels.schedule(steps, sequence_length)
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
        let embedding = Rc::new(self.read_or_encode(prompt)?);
        if self.cache.is_some() {
            // Opened for a prompt that the cache had lost, they would stay beside everything else.
            self.model.drop_text_encoders();
        }
        self.make_room();
        self.embeddings.insert(prompt.to_owned(), (embedding.clone(), self.lookups));
        Ok(embedding)
    }

    /// Embeds what guidance of a strength leads away from; `None` without such guidance.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn embed_negative(&mut self, guidance_scale: f64) -> Result<Option<Rc<Embedding>>, ModelError> {
        self.model.negative_prompt(guidance_scale).map(|prompt| self.embed(prompt)).transpose()
    }

    /// Sees to it that the cache has these prompts and what guidance of these strengths leads away from, then frees the
    /// text encoders; returns how many were missing. Without a cache it does nothing. `progressed` is called before each.
    ///
    /// # Errors
    /// As [`Self::embed`].
    pub fn cache_prompts(
        &mut self,
        prompts: &[String],
        guidance_scales: &[f64],
        progressed: &dyn Fn(),
    ) -> Result<usize, ModelError> {
        let negative: Vec<&str> =
            guidance_scales.iter().filter_map(|scale| self.model.negative_prompt(*scale)).collect();
        let mut n_missing = 0;
        for prompt in prompts.iter().map(String::as_str).chain(negative) {
            progressed();
            // Asked anew for each: other workers are filling it as well.
            if self.cache.as_ref().is_some_and(|cache| !cache.has(prompt)) {
                self.read_or_encode(prompt)?;
                n_missing += 1;
            }
        }
        if self.cache.is_some() {
            self.model.drop_text_encoders();
        }
        Ok(n_missing)
    }

    fn read_or_encode(&mut self, prompt: &str) -> Result<Embedding, ModelError> {
        if let Some((conditioning, digest)) = self.cache.as_ref().and_then(|cache| cache.read(prompt)) {
            return Ok(Embedding { conditioning, digest });
        }
        if self.cache.is_some() {
            self.model.open_text_encoders()?;
        }
        let max_length = self.max_sequence_length;
        self.truncated.note(prompt, &self.model.token_ids(prompt, max_length)?);
        let conditioning = self.model.encode_prompts(&[prompt.to_owned()], max_length)?;
        let digest = conditioning.digest();
        let written = self.cache.as_ref().map(|cache| cache.write(prompt, &conditioning, &digest));
        if let Some(Err(error)) = written {
            tracing::warn!("an embedding is not cached: {error}");
        }
        Ok(Embedding { conditioning, digest })
    }

    /// Velocities of latents that all stand at noise level `sigma`.
    ///
    /// # Shapes
    /// - `latents`: `[B, …]`; `guidance`: B rows or one that are led to, one row that is led away from
    /// - returns: as `latents`, f32
    pub fn velocity(&self, latents: &Tensor, sigma: f32, guidance: &Guidance) -> Tensor {
        let sigmas = Tensor::full(latents.size()[0], f64::from(sigma), (Kind::Float, self.device));
        tch::no_grad(|| self.model.velocity(latents, &sigmas, guidance, AdapterMode::Frozen))
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
            let (height, width) = (decoded.size()[2] as usize, decoded.size()[3] as usize);
            images.extend(to_rgb8(&decoded).into_iter().map(|pixels| RgbImage { width, height, pixels }));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::embedding_cache::EmbeddingSettings;

    const GUIDANCE_SCALE: f64 = 2.0;
    const MAX_SEQUENCE_LENGTH: usize = 8;

    fn golden() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/sd3")
    }

    /// A model whose text encoders are opened only if the cache below `root` lacks a prompt.
    fn with_cache(root: &Path) -> GuidedModel {
        let weights = WeightOptions::new(Kind::Float, Device::Cpu);
        let settings = EmbeddingSettings {
            weights: WeightOptions::new(Kind::Float, Device::Cpu),
            max_sequence_length: MAX_SEQUENCE_LENGTH,
        };
        let cache = EmbeddingCache::open(root, &golden(), &settings).unwrap();
        let options = LoadOptions { weights, text_encoders: false, decoder: None };
        GuidedModel::open_with(&golden(), options, MAX_SEQUENCE_LENGTH, Some(cache)).unwrap()
    }

    #[test]
    fn cached_embeddings_are_the_fresh_ones_to_the_last_bit_and_need_no_encoders() {
        let root = tempfile::tempdir().unwrap();
        let prompts = ["a red circle".to_owned(), "two dogs".to_owned(), "a red circle".to_owned()];
        let weights = WeightOptions::new(Kind::Float, Device::Cpu);
        let mut fresh = GuidedModel::open(&golden(), weights, MAX_SEQUENCE_LENGTH).unwrap();
        let cache_prompts =
            |model: &mut GuidedModel, scales: &[f64]| model.cache_prompts(&prompts, scales, &|| ()).unwrap();
        assert_eq!(cache_prompts(&mut with_cache(root.path()), &[1.0]), 2, "without guidance");
        let mut cached = with_cache(root.path());
        assert_eq!(cache_prompts(&mut cached, &[1.0, GUIDANCE_SCALE]), 1, "the negative one");
        assert_eq!(cache_prompts(&mut cached, &[GUIDANCE_SCALE, GUIDANCE_SCALE]), 0);
        for prompt in &prompts {
            let (one, other) = (fresh.embed(prompt).unwrap(), cached.embed(prompt).unwrap());
            assert_eq!((one.digest, one.digest), (other.digest, other.conditioning.digest()));
        }
        let negative = cached.embed_negative(GUIDANCE_SCALE).unwrap().unwrap();
        assert_eq!(negative.digest, fresh.embed_negative(GUIDANCE_SCALE).unwrap().unwrap().digest);
        assert!(fresh.embed_negative(1.0).unwrap().is_none());
        assert!(cached.model.encode_prompts(&prompts, 8).is_err(), "no encoder was opened");

        let late = "a prompt that no file has";
        assert_eq!(cached.embed(late).unwrap().digest, fresh.embed(late).unwrap().digest);
        assert!(with_cache(root.path()).cache.unwrap().has(late));
    }
}
