//! Qwen-Image.

mod guidance;
mod text;

use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use self::text::PromptEncoder;
use super::guided::both_velocities;
use super::image_sizes::ImageSizes;
use super::model_index::ModelIndex;
use super::scheduler::Scheduler;
use super::{
    Conditioning, Guidance, LoadOptions, PromptTokens, TextToImageModel, decode_with, latent_size, opened,
};
use crate::ModelError;
use crate::autoencoder_kl_qwen_image::{AutoencoderKlQwenImageConfig, AutoencoderKlQwenImageDecoder};
use crate::network::{Network, Query};
use crate::patches::{self, PACKED_SIDE, from_patches, to_patches};
use crate::qwen_image::QwenImageTransformer;
use crate::weights::WeightOptions;

/// Pixels along the side of the images that Qwen-Image was made for; its configuration does not say.
const USUAL_SIDE: i64 = 1328;

/// One opened folder.
struct QwenImage {
    scheduler: Scheduler,
    transformer: QwenImageTransformer,
    text_encoder: Option<PromptEncoder>,
    decoder: Option<AutoencoderKlQwenImageDecoder>,
    /// Pixels along the side of one latent.
    scale: i64,
    weights: WeightOptions,
    dir: PathBuf,
}

/// Opens a folder whose class is `QwenImagePipeline`.
pub(super) fn open(dir: &Path, options: LoadOptions) -> Result<Box<dyn TextToImageModel>, ModelError> {
    let index = ModelIndex::open(dir)?;
    index.require("transformer", "QwenImageTransformer2DModel")?;
    index.require("vae", "AutoencoderKLQwenImage")?;
    let scheduler = Scheduler::open(dir, &index)?;
    let vae_dir = dir.join("vae");
    let vae = AutoencoderKlQwenImageConfig::open(&vae_dir)?;
    let transformer = QwenImageTransformer::open(&dir.join("transformer"), &options.weights)?;
    let (channels, expected) = (vae.z_dim, transformer.config().out_channels);
    if channels != expected {
        let reason = format!("{channels} differs from the transformer's `out_channels` {expected}");
        return Err(ModelError::config(&vae_dir.join("config.json"), "z_dim", reason));
    }
    let open_decoder = |decoder| AutoencoderKlQwenImageDecoder::open(&vae_dir, &options.weights, decoder);
    let mut qwen_image = QwenImage {
        scheduler,
        scale: vae.scale(),
        transformer,
        text_encoder: None,
        decoder: options.decoder.map(open_decoder).transpose()?,
        weights: options.weights.clone(),
        dir: dir.to_owned(),
    };
    if options.text_encoders {
        qwen_image.open_text_encoders()?;
    }
    Ok(Box::new(qwen_image))
}

impl QwenImage {
    fn sizes(&self) -> ImageSizes {
        ImageSizes { patch: self.scale * PACKED_SIDE, longest: None }
    }

    fn text_encoder(&self) -> Result<&PromptEncoder, ModelError> {
        opened(&self.text_encoder, "text encoder", &self.dir)
    }

    fn predict(
        &self,
        latents: &Tensor,
        sigmas: &Tensor,
        text: &Conditioning,
        evaluate: &mut dyn FnMut(&Query) -> Tensor,
    ) -> Tensor {
        let kind = self.weights.kind;
        let text = text.expand(latents.size()[0]);
        let query = Query {
            latents: &latents.to_kind(kind),
            timestep: &(sigmas * self.timestep_scale()),
            text: &text.text.to_kind(kind),
            pooled: None,
            text_mask: text.text_mask.as_ref(),
            guidance_scale: 1.0,
        };
        evaluate(&query).to_kind(Kind::Float)
    }
}

impl TextToImageModel for QwenImage {
    fn scheduler_config(&self) -> &serde_json::Value {
        self.scheduler.config()
    }

    fn passes_noise_levels(&self) -> bool {
        true
    }

    fn latent_shape(&self, height: i64, width: i64) -> Result<Vec<i64>, ModelError> {
        self.sizes().check(height, width, &self.dir)?;
        Ok(vec![self.transformer.config().out_channels, height / self.scale, width / self.scale])
    }

    fn image_sequence_length(&self, height: i64, width: i64) -> usize {
        self.sizes().patches(height, width)
    }

    fn usual_size(&self) -> (i64, i64) {
        (USUAL_SIDE, USUAL_SIDE)
    }

    fn open_text_encoders(&mut self) -> Result<(), ModelError> {
        if self.text_encoder.is_some() {
            return Ok(());
        }
        let encoder = PromptEncoder::open(&self.dir, &ModelIndex::open(&self.dir)?, &self.weights)?;
        let (width, expected) = (encoder.width(), self.transformer.config().joint_attention_dim);
        if width != expected {
            let reason = format!("{width} differs from the transformer's `joint_attention_dim` {expected}");
            let path = self.dir.join("text_encoder/config.json");
            return Err(ModelError::config(&path, "hidden_size", reason));
        }
        self.text_encoder = Some(encoder);
        Ok(())
    }

    fn drop_text_encoders(&mut self) {
        self.text_encoder = None;
    }

    fn encode_prompts(
        &self,
        prompts: &[String],
        max_sequence_length: usize,
    ) -> Result<Conditioning, ModelError> {
        tch::no_grad(|| self.text_encoder()?.encode(prompts, max_sequence_length))
    }

    fn token_ids(&self, prompt: &str, max_sequence_length: usize) -> Result<Vec<PromptTokens>, ModelError> {
        self.text_encoder()?.token_ids(prompt, max_sequence_length)
    }

    /// A space: the model has not seen empty texts.
    fn negative_prompt(&self, guidance_scale: f64) -> Option<&'static str> {
        (guidance_scale > 1.0).then_some(" ")
    }

    fn compose_velocity(
        &self,
        latents: &Tensor,
        sigmas: &Tensor,
        guidance: &Guidance,
        evaluate: &mut dyn FnMut(&Query) -> Tensor,
    ) -> Tensor {
        let mut predict = |latents: &Tensor, sigmas: &Tensor, text: &Conditioning| {
            self.predict(latents, sigmas, text, evaluate)
        };
        let Some(negative) = guidance.negative else { return predict(latents, sigmas, guidance.positive) };
        let (conditional, unconditional) =
            both_velocities((latents, sigmas), guidance.positive, negative, &mut predict);
        let guided = guidance::rescaled(&self.pack(&conditional), &self.pack(&unconditional), guidance.scale);
        let size = latents.size();
        from_patches(&guided, (size[2], size[3]), PACKED_SIDE)
    }

    fn network(&self) -> &dyn Network {
        &self.transformer
    }

    fn network_mut(&mut self) -> &mut dyn Network {
        &mut self.transformer
    }

    fn timestep_scale(&self) -> f64 {
        self.scheduler.thousands_of_timesteps()
    }

    fn pack(&self, latents: &Tensor) -> Tensor {
        to_patches(latents, PACKED_SIDE)
    }

    fn unpack(&self, packed: &Tensor, latent_shape: &[i64]) -> Result<Tensor, ModelError> {
        patches::unpack(packed, latent_shape)
    }

    fn check_inputs(&self, latents: &Tensor, conditioning: &Conditioning) -> Result<(), ModelError> {
        let channels = self.transformer.config().out_channels;
        let (n_latents, height, width) = latent_size(latents, channels)?;
        self.transformer.check_size(height, width)?;
        conditioning.check_shapes(n_latents, self.embedding_widths())
    }

    fn embedding_widths(&self) -> (i64, i64) {
        (self.transformer.config().joint_attention_dim, 0)
    }

    fn decode_signed(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let decoder = opened(&self.decoder, "decoder", &self.dir)?;
        decode_with(latents, decoder.config().z_dim, |latents| decoder.decode(latents))
    }
}
