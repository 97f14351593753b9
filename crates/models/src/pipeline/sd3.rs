//! Stable Diffusion 3 and 3.5.

mod text;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::{Kind, Tensor};

use self::text::TextEncoders;
use super::guided::both_velocities;
use super::image_sizes::ImageSizes;
use super::model_index::ModelIndex;
use super::text_encoders::CLIP_LENGTH;
use super::{
    Conditioning, Guidance, LoadOptions, PromptTokens, TextToImageModel, decode_with, latent_size, opened,
};
use crate::autoencoder_kl::{AutoencoderKlConfig, AutoencoderKlDecoder};
use crate::network::{Network, Query};
use crate::sd3::{Sd3Config, Sd3Transformer};
use crate::weights::WeightOptions;
use crate::{ModelError, json_file};

#[derive(Deserialize)]
struct TrainTimesteps {
    num_train_timesteps: f64,
}

/// One opened folder.
struct Sd3 {
    scheduler_config: serde_json::Value,
    /// The network counts time in these.
    num_train_timesteps: f64,
    transformer: Sd3Transformer,
    text_encoders: Option<TextEncoders>,
    decoder: Option<AutoencoderKlDecoder>,
    /// Pixels along the side of one latent.
    scale: i64,
    weights: WeightOptions,
    dir: PathBuf,
}

/// Opens a folder whose class is `StableDiffusion3Pipeline`.
pub(super) fn open(dir: &Path, options: LoadOptions) -> Result<Box<dyn TextToImageModel>, ModelError> {
    let index = ModelIndex::open(dir)?;
    index.require("transformer", "SD3Transformer2DModel")?;
    index.require("vae", "AutoencoderKL")?;
    let scheduler_path = dir.join("scheduler/scheduler_config.json");
    let timesteps: TrainTimesteps = json_file::read(&scheduler_path)?;
    let (vae_dir, vae) = (dir.join("vae"), AutoencoderKlConfig::open(&dir.join("vae"))?);
    let transformer = Sd3Transformer::open(&dir.join("transformer"), &options.weights)?;
    check_channels(dir, transformer.config(), &vae)?;
    let open_decoder = |decoder| AutoencoderKlDecoder::open(&vae_dir, &options.weights, decoder);
    let mut sd3 = Sd3 {
        scheduler_config: json_file::read(&scheduler_path)?,
        num_train_timesteps: timesteps.num_train_timesteps,
        scale: vae.scale(),
        transformer,
        text_encoders: None,
        decoder: options.decoder.map(open_decoder).transpose()?,
        weights: options.weights.clone(),
        dir: dir.to_owned(),
    };
    if options.text_encoders {
        sd3.open_text_encoders()?;
    }
    Ok(Box::new(sd3))
}

fn check_channels(dir: &Path, transformer: &Sd3Config, vae: &AutoencoderKlConfig) -> Result<(), ModelError> {
    let (channels, expected) = (vae.latent_channels, transformer.in_channels);
    if channels != expected {
        let reason = format!("{channels} differs from the transformer's `in_channels` {expected}");
        return Err(ModelError::config(&dir.join("vae/config.json"), "latent_channels", reason));
    }
    Ok(())
}

fn check_pooled(dir: &Path, transformer: &Sd3Config, encoders: &TextEncoders) -> Result<(), ModelError> {
    let (pooled, expected) = (encoders.pooled_width(), transformer.pooled_projection_dim);
    if pooled != expected {
        let reason = format!("{expected} differs from the {pooled} pooled features of both CLIP encoders");
        let path = dir.join("transformer/config.json");
        return Err(ModelError::config(&path, "pooled_projection_dim", reason));
    }
    Ok(())
}

/// CLIP's tokens of a text as its tokenizer's settings have it, without the tokenizer.
fn stated_clip_length(dir: &Path) -> usize {
    let settings = crate::json_file::read(&dir.join("tokenizer/tokenizer_config.json"));
    let stated = settings.ok().and_then(|settings: serde_json::Value| settings["model_max_length"].as_u64());
    stated.and_then(|length| usize::try_from(length).ok()).unwrap_or(CLIP_LENGTH)
}

impl Sd3 {
    fn sizes(&self) -> ImageSizes {
        let config = self.transformer.config();
        let patch = self.scale * config.patch_size;
        ImageSizes { patch, longest: Some(patch * config.pos_embed_max_size) }
    }

    fn text_encoders(&self) -> Result<&TextEncoders, ModelError> {
        opened(&self.text_encoders, "text encoders", &self.dir)
    }

    fn predict(
        &self,
        latents: &Tensor,
        timesteps: &Tensor,
        text: &Conditioning,
        evaluate: &mut dyn FnMut(&Query) -> Tensor,
    ) -> Tensor {
        let text = text.expand(latents.size()[0]);
        let pooled = text.pooled.as_ref().expect("SD3 conditioning has pooled features; else this is a bug");
        let (latents, text, pooled) = (
            latents.to_kind(self.weights.kind),
            text.text.to_kind(self.weights.kind),
            pooled.to_kind(self.weights.kind),
        );
        let query = Query {
            latents: &latents,
            timestep: timesteps,
            text: &text,
            pooled: Some(&pooled),
            text_mask: None,
            guidance_scale: 1.0,
        };
        evaluate(&query).to_kind(Kind::Float)
    }
}

impl TextToImageModel for Sd3 {
    fn scheduler_config(&self) -> &serde_json::Value {
        &self.scheduler_config
    }

    fn latent_shape(&self, height: i64, width: i64) -> Result<Vec<i64>, ModelError> {
        self.sizes().check(height, width, &self.dir)?;
        Ok(vec![self.transformer.config().in_channels, height / self.scale, width / self.scale])
    }

    fn usual_size(&self) -> (i64, i64) {
        let side = self.transformer.config().sample_size * self.scale;
        (side, side)
    }

    fn text_sequence_length(&self, max_sequence_length: usize) -> usize {
        let clip_length = match &self.text_encoders {
            Some(encoders) => encoders.clip_length(),
            None => stated_clip_length(&self.dir),
        };
        clip_length + max_sequence_length
    }

    fn image_sequence_length(&self, height: i64, width: i64) -> usize {
        self.sizes().patches(height, width)
    }

    fn open_text_encoders(&mut self) -> Result<(), ModelError> {
        if self.text_encoders.is_none() {
            let (index, config) = (ModelIndex::open(&self.dir)?, self.transformer.config());
            let encoders = TextEncoders::open(&self.dir, &index, config.joint_attention_dim, &self.weights)?;
            check_pooled(&self.dir, config, &encoders)?;
            self.text_encoders = Some(encoders);
        }
        Ok(())
    }

    fn drop_text_encoders(&mut self) {
        self.text_encoders = None;
    }

    fn encode_prompts(
        &self,
        prompts: &[String],
        max_sequence_length: usize,
    ) -> Result<Conditioning, ModelError> {
        tch::no_grad(|| self.text_encoders()?.encode(prompts, max_sequence_length))
    }

    fn token_ids(&self, prompt: &str, max_sequence_length: usize) -> Result<Vec<PromptTokens>, ModelError> {
        self.text_encoders()?.token_ids(prompt, max_sequence_length)
    }

    fn negative_prompt(&self, guidance_scale: f64) -> Option<&'static str> {
        (guidance_scale > 1.0).then_some("")
    }

    fn compose_velocity(
        &self,
        latents: &Tensor,
        sigmas: &Tensor,
        guidance: &Guidance,
        evaluate: &mut dyn FnMut(&Query) -> Tensor,
    ) -> Tensor {
        // In float32, as the scheduler lays out its time steps.
        let timesteps = sigmas.to_kind(Kind::Float) * self.num_train_timesteps;
        let mut predict = |latents: &Tensor, timesteps: &Tensor, text: &Conditioning| {
            self.predict(latents, timesteps, text, evaluate)
        };
        let Some(negative) = guidance.negative else {
            return predict(latents, &timesteps, guidance.positive);
        };
        let (conditional, unconditional) =
            both_velocities((latents, &timesteps), guidance.positive, negative, &mut predict);
        &unconditional + (conditional - &unconditional) * guidance.scale
    }

    fn network(&self) -> &dyn Network {
        &self.transformer
    }

    fn network_mut(&mut self) -> &mut dyn Network {
        &mut self.transformer
    }

    fn timestep_scale(&self) -> f64 {
        self.num_train_timesteps
    }

    fn check_inputs(&self, latents: &Tensor, conditioning: &Conditioning) -> Result<(), ModelError> {
        let channels = self.transformer.config().in_channels;
        let (n_latents, height, width) = latent_size(latents, channels)?;
        self.transformer.check_size(height, width)?;
        conditioning.check_shapes(n_latents, self.embedding_widths())
    }

    fn embedding_widths(&self) -> (i64, i64) {
        let config = self.transformer.config();
        (config.joint_attention_dim, config.pooled_projection_dim)
    }

    fn decode_signed(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let decoder = opened(&self.decoder, "decoder", &self.dir)?;
        decode_with(latents, decoder.config().latent_channels, |latents| decoder.decode(latents))
    }
}
