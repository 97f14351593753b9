//! One pipeline for all families: what a family has of its own is a [`Family`], all else stands here once.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor};

use super::decoder::{Draw, Vae};
use super::guided::both_velocities;
use super::image_sizes::ImageSizes;
use super::model_index::ModelIndex;
use super::scheduler::Scheduler;
use super::{Conditioning, Guidance, LoadOptions, PromptTokens, TextToImageModel, misshaped};
use crate::ModelError;
use crate::network::{Network, Query};
use crate::patches::{self, PACKED_SIDE, to_patches};
use crate::weights::WeightOptions;

/// What one family of models has of its own.
pub(super) trait Family {
    /// Class of its transformer.
    const TRANSFORMER: &'static str;
    /// Its velocity network.
    type Transformer: Network;
    /// What its images are decoded by.
    type Vae: Vae;
    /// What reads its prompts.
    type TextEncoders: EncodesPrompts;
    /// What errors call that.
    const TEXT_ENCODERS: &'static str;
    /// The prompt that guidance leads away from; none where the network was distilled to apply guidance itself, or to need
    /// none.
    const NEGATIVE_PROMPT: Option<&'static str>;
    /// Whether its reference pipeline packs latents before the network.
    const IS_PACKED: bool;

    /// Opens the transformer in `folder`.
    fn open_transformer(folder: &Path, weights: &WeightOptions) -> Result<Self::Transformer, ModelError>;

    /// What latents are to an opened transformer.
    fn latents(transformer: &Self::Transformer) -> Latents;

    /// Features of a text token and of the pooled text, 0 where there is none.
    fn embedding_widths(transformer: &Self::Transformer) -> (i64, i64);

    /// Opens the text encoders of the pipeline in `dir`, for a transformer that takes features of these widths.
    fn open_text_encoders(
        dir: &Path,
        widths: (i64, i64),
        weights: &WeightOptions,
    ) -> Result<Self::TextEncoders, ModelError>;

    /// As [`TextToImageModel::passes_noise_levels`].
    fn passes_noise_levels(scheduler: &Scheduler, dir: &Path) -> Result<bool, ModelError>;

    /// As [`TextToImageModel::timestep_scale`].
    fn timestep_scale(scheduler: &Scheduler) -> f64;

    /// Text tokens that the network sees beside the `max_sequence_length` asked for.
    fn further_text_tokens(_encoders: Option<&Self::TextEncoders>, _dir: &Path) -> usize {
        0
    }

    /// The guided velocity of that of the prompts and that of the negative prompt.
    fn guided(conditional: Tensor, unconditional: &Tensor, scale: f64) -> Tensor {
        unconditional + (conditional - unconditional) * scale
    }
}

/// What latents are to a transformer.
pub(super) struct Latents {
    /// Their channels.
    pub(super) channels: i64,
    /// What its configuration says of them, for errors.
    pub(super) stated_as: &'static str,
    /// Latents along the side of a patch.
    pub(super) patch: i64,
    /// Patches along the longest side, where positions end somewhere.
    pub(super) most_patches: Option<i64>,
    /// Side of the images that the model was made for.
    pub(super) usual_side: Side,
}

/// The length of a side.
#[derive(Clone, Copy)]
pub(super) enum Side {
    /// In pixels of the image.
    Pixels(i64),
    /// In pixels of the latent image.
    Latents(i64),
}

/// The text encoders of one folder.
pub(super) trait EncodesPrompts {
    /// As [`TextToImageModel::encode_prompts`].
    fn encode(&self, prompts: &[String], max_sequence_length: usize) -> Result<Conditioning, ModelError>;

    /// As [`TextToImageModel::token_ids`].
    fn token_ids(&self, prompt: &str, max_sequence_length: usize) -> Result<Vec<PromptTokens>, ModelError>;
}

/// One opened folder.
struct Pipeline<F: Family> {
    scheduler: Scheduler,
    passes_noise_levels: bool,
    transformer: F::Transformer,
    text_encoders: Option<F::TextEncoders>,
    decoder: Option<Draw>,
    latents: Latents,
    /// Pixels along the side of one latent.
    scale: i64,
    weights: WeightOptions,
    dir: PathBuf,
}

/// Opens a folder of the family; the network's tensors are read as `network` says.
pub(super) fn open<F: Family + 'static>(
    dir: &Path,
    options: LoadOptions,
    network: &WeightOptions,
) -> Result<Box<dyn TextToImageModel>, ModelError> {
    let index = ModelIndex::open(dir)?;
    index.require("transformer", F::TRANSFORMER)?;
    index.require("vae", F::Vae::CLASS_NAME)?;
    let scheduler = Scheduler::open(dir, &index)?;
    let vae_dir = dir.join("vae");
    let vae = F::Vae::open(&vae_dir)?;
    let transformer = F::open_transformer(&dir.join("transformer"), network)?;
    let latents = F::latents(&transformer);
    let (channels, expected) = (vae.channels(), latents.channels);
    if channels != expected {
        let reason = format!("{channels} differs from {} {expected}", latents.stated_as);
        return Err(ModelError::config(&vae_dir.join("config.json"), F::Vae::CHANNELS_KEY, reason));
    }
    let open_decoder = |decoder| F::Vae::open_decoder(&vae_dir, &options.weights, decoder);
    let mut pipeline = Pipeline::<F> {
        passes_noise_levels: F::passes_noise_levels(&scheduler, dir)?,
        scheduler,
        transformer,
        text_encoders: None,
        decoder: options.decoder.map(open_decoder).transpose()?,
        latents,
        scale: vae.scale(),
        weights: options.weights.clone(),
        dir: dir.to_owned(),
    };
    if options.text_encoders {
        pipeline.open_text_encoders()?;
    }
    Ok(Box::new(pipeline))
}

impl<F: Family> Pipeline<F> {
    fn sizes(&self) -> ImageSizes {
        let patch = self.scale * self.latents.patch;
        ImageSizes { patch, longest: self.latents.most_patches.map(|patches| patch * patches) }
    }

    /// A part that the folder may have been opened without.
    fn opened<'a, T>(&self, part: &'a Option<T>, name: &str) -> Result<&'a T, ModelError> {
        part.as_ref()
            .ok_or_else(|| ModelError::Input(format!("{} was opened without its {name}", self.dir.display())))
    }

    fn text_encoders(&self) -> Result<&F::TextEncoders, ModelError> {
        self.opened(&self.text_encoders, F::TEXT_ENCODERS)
    }

    /// The velocity of `latents` at these times of the network for one text.
    fn predict(
        &self,
        (latents, times): (&Tensor, &Tensor),
        text: &Conditioning,
        guidance_scale: f64,
        evaluate: &mut dyn FnMut(&Query) -> Tensor,
    ) -> Tensor {
        let kind = self.weights.kind;
        let text = text.expand(latents.size()[0]);
        let pooled = text.pooled.as_ref().map(|pooled| pooled.to_kind(kind));
        let query = Query {
            latents: &latents.to_kind(kind),
            timestep: times,
            text: &text.text.to_kind(kind),
            pooled: pooled.as_ref(),
            text_mask: text.text_mask.as_ref(),
            guidance_scale,
        };
        evaluate(&query).to_kind(Kind::Float)
    }
}

impl<F: Family> TextToImageModel for Pipeline<F> {
    fn scheduler_config(&self) -> &Value {
        self.scheduler.config()
    }

    fn passes_noise_levels(&self) -> bool {
        self.passes_noise_levels
    }

    fn latent_shape(&self, height: i64, width: i64) -> Result<Vec<i64>, ModelError> {
        self.sizes().check(height, width, &self.dir)?;
        Ok(vec![self.latents.channels, height / self.scale, width / self.scale])
    }

    fn usual_size(&self) -> (i64, i64) {
        let side = match self.latents.usual_side {
            Side::Pixels(side) => side,
            Side::Latents(side) => side * self.scale,
        };
        (side, side)
    }

    fn text_sequence_length(&self, max_sequence_length: usize) -> usize {
        F::further_text_tokens(self.text_encoders.as_ref(), &self.dir) + max_sequence_length
    }

    fn image_sequence_length(&self, height: i64, width: i64) -> usize {
        self.sizes().patches(height, width)
    }

    fn open_text_encoders(&mut self) -> Result<(), ModelError> {
        if self.text_encoders.is_none() {
            let encoders = F::open_text_encoders(&self.dir, self.embedding_widths(), &self.weights)?;
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
        F::NEGATIVE_PROMPT.filter(|_| guidance_scale > 1.0)
    }

    fn compose_velocity(
        &self,
        latents: &Tensor,
        sigmas: &Tensor,
        guidance: &Guidance,
        evaluate: &mut dyn FnMut(&Query) -> Tensor,
    ) -> Tensor {
        // In float32, as schedulers lay out their time steps.
        let times = sigmas.to_kind(Kind::Float) * self.timestep_scale();
        let applied_by_network = if F::NEGATIVE_PROMPT.is_none() { guidance.scale } else { 1.0 };
        let mut predict = |latents: &Tensor, times: &Tensor, text: &Conditioning| {
            self.predict((latents, times), text, applied_by_network, evaluate)
        };
        let Some(negative) = guidance.negative.filter(|_| F::NEGATIVE_PROMPT.is_some()) else {
            return predict(latents, &times, guidance.positive);
        };
        let (conditional, unconditional) =
            both_velocities((latents, &times), guidance.positive, negative, &mut predict);
        F::guided(conditional, &unconditional, guidance.scale)
    }

    fn network(&self) -> &dyn Network {
        &self.transformer
    }

    fn network_mut(&mut self) -> &mut dyn Network {
        &mut self.transformer
    }

    fn timestep_scale(&self) -> f64 {
        F::timestep_scale(&self.scheduler)
    }

    fn pack(&self, latents: &Tensor) -> Tensor {
        if F::IS_PACKED { to_patches(latents, PACKED_SIDE) } else { latents.shallow_clone() }
    }

    fn unpack(&self, packed: &Tensor, latent_shape: &[i64]) -> Result<Tensor, ModelError> {
        let found = packed.size();
        match F::IS_PACKED {
            true => patches::unpack(packed, latent_shape),
            false if found.get(1..) == Some(latent_shape) => Ok(packed.shallow_clone()),
            false => Err(misshaped("latents", &found, &format!("[rows, …] with {latent_shape:?}"))),
        }
    }

    fn check_inputs(&self, latents: &Tensor, conditioning: &Conditioning) -> Result<(), ModelError> {
        let size = latents.size();
        let (rows, height, width) = match *size.as_slice() {
            [rows, channels, height, width] if channels == self.latents.channels => (rows, height, width),
            [_, _, _, _] => {
                return Err(misshaped("latents", &size, &format!("{} channels", self.latents.channels)));
            }
            _ => return Err(misshaped("latents", &size, "[rows, channels, height, width]")),
        };
        self.transformer.check_size(height, width)?;
        conditioning.check_shapes(rows, self.embedding_widths())
    }

    fn embedding_widths(&self) -> (i64, i64) {
        F::embedding_widths(&self.transformer)
    }

    fn decode_signed(&self, latents: &Tensor) -> Result<Tensor, ModelError> {
        let draw = self.opened(&self.decoder, "decoder")?;
        let (size, channels) = (latents.size(), self.latents.channels);
        if size.len() != 4 || size[1] != channels {
            return Err(misshaped("latents", &size, &format!("[rows, {channels}, height, width]")));
        }
        Ok(tch::no_grad(|| draw(latents)))
    }
}
