//! FLUX.1.

mod text;

use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor};

use self::text::TextEncoders;
use super::image_sizes::ImageSizes;
use super::model_index::ModelIndex;
use super::scheduler::Scheduler;
use super::{
    Conditioning, Guidance, LoadOptions, PromptTokens, TextToImageModel, decode_with, latent_size, opened,
};
use crate::ModelError;
use crate::autoencoder_kl::{AutoencoderKlConfig, AutoencoderKlDecoder};
use crate::flux::FluxTransformer;
use crate::network::{Network, Query};
use crate::patches::{self, PACKED_SIDE, to_patches};
use crate::weights::WeightOptions;

/// One opened folder.
struct Flux {
    scheduler: Scheduler,
    passes_noise_levels: bool,
    transformer: FluxTransformer,
    text_encoders: Option<TextEncoders>,
    decoder: Option<AutoencoderKlDecoder>,
    /// Pixels along the side of one latent.
    scale: i64,
    weights: WeightOptions,
    dir: PathBuf,
}

/// Opens a folder whose class is `FluxPipeline`.
pub(super) fn open(dir: &Path, options: LoadOptions) -> Result<Box<dyn TextToImageModel>, ModelError> {
    let index = ModelIndex::open(dir)?;
    index.require("transformer", "FluxTransformer2DModel")?;
    index.require("vae", "AutoencoderKL")?;
    let scheduler = Scheduler::open(dir, &index)?;
    let (vae_dir, vae) = (dir.join("vae"), AutoencoderKlConfig::open(&dir.join("vae"))?);
    let transformer = FluxTransformer::open(&dir.join("transformer"), &options.weights)?;
    let (channels, expected) = (vae.latent_channels, transformer.config().latent_channels());
    if channels != expected {
        let reason =
            format!("{channels} differs from a quarter of the transformer's `in_channels`, {expected}");
        return Err(ModelError::config(&vae_dir.join("config.json"), "latent_channels", reason));
    }
    let open_decoder = |decoder| AutoencoderKlDecoder::open(&vae_dir, &options.weights, decoder);
    let mut flux = Flux {
        passes_noise_levels: passes_noise_levels(&scheduler, dir)?,
        scheduler,
        transformer,
        text_encoders: None,
        decoder: options.decoder.map(open_decoder).transpose()?,
        scale: vae.scale(),
        weights: options.weights.clone(),
        dir: dir.to_owned(),
    };
    if options.text_encoders {
        flux.open_text_encoders()?;
    }
    Ok(Box::new(flux))
}

/// Of all pipelines, this one alone looks for `use_flow_sigmas`, with which it leaves the grid to the scheduler.
fn passes_noise_levels(scheduler: &Scheduler, dir: &Path) -> Result<bool, ModelError> {
    let key = "use_flow_sigmas";
    match scheduler.config().get(key) {
        None | Some(Value::Null) => Ok(true),
        Some(Value::Bool(leaves_them)) => Ok(!leaves_them),
        Some(other) => {
            let reason = format!("{other} is not supported; write true or false");
            Err(ModelError::config(&dir.join("scheduler/scheduler_config.json"), key, reason))
        }
    }
}

impl Flux {
    fn sizes(&self) -> ImageSizes {
        ImageSizes { patch: self.scale * PACKED_SIDE, longest: None }
    }

    fn text_encoders(&self) -> Result<&TextEncoders, ModelError> {
        opened(&self.text_encoders, "text encoders", &self.dir)
    }
}

impl TextToImageModel for Flux {
    fn scheduler_config(&self) -> &serde_json::Value {
        self.scheduler.config()
    }

    fn passes_noise_levels(&self) -> bool {
        self.passes_noise_levels
    }

    fn latent_shape(&self, height: i64, width: i64) -> Result<Vec<i64>, ModelError> {
        self.sizes().check(height, width, &self.dir)?;
        Ok(vec![self.transformer.config().latent_channels(), height / self.scale, width / self.scale])
    }

    fn image_sequence_length(&self, height: i64, width: i64) -> usize {
        self.sizes().patches(height, width)
    }

    fn open_text_encoders(&mut self) -> Result<(), ModelError> {
        if self.text_encoders.is_none() {
            let index = ModelIndex::open(&self.dir)?;
            let config = self.transformer.config();
            self.text_encoders = Some(TextEncoders::open(&self.dir, &index, config, &self.weights)?);
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

    /// None: the network was distilled to apply guidance itself, or to need none.
    fn negative_prompt(&self, _: f64) -> Option<&'static str> {
        None
    }

    fn compose_velocity(
        &self,
        latents: &Tensor,
        sigmas: &Tensor,
        guidance: &Guidance,
        evaluate: &mut dyn FnMut(&Query) -> Tensor,
    ) -> Tensor {
        let kind = self.weights.kind;
        let text = guidance.positive.expand(latents.size()[0]);
        let pooled = text.pooled.as_ref().expect("FLUX conditioning has pooled features; else this is a bug");
        let query = Query {
            latents: &latents.to_kind(kind),
            timestep: &(sigmas * self.timestep_scale()),
            text: &text.text.to_kind(kind),
            pooled: Some(&pooled.to_kind(kind)),
            text_mask: None,
            guidance_scale: guidance.scale,
        };
        evaluate(&query).to_kind(Kind::Float)
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
        let channels = self.transformer.config().latent_channels();
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
