//! From a text and a noise to an image: what every model family offers, and how a folder is opened.
//!
//! A family is one file under `pipeline/` and one line in `FAMILIES`.

mod conditioning;
mod decoder;
mod family;
mod flux;
mod guided;
mod image_sizes;
mod model_index;
mod qwen_image;
mod rgb;
mod scheduler;
mod sd3;
mod text_encoders;

use std::collections::BTreeSet;
use std::path::Path;

use tch::{Kind, Tensor};

use self::model_index::ModelIndex;

pub use conditioning::Conditioning;
pub use rgb::to_rgb8;

use crate::ModelError;
use crate::gradient_checkpointing::{Activations, TrainingVelocity};
use crate::network::{Network, Query};
use crate::projection::AdapterMode;
use crate::tokenizer::{ByteTokenizer, TokenIds, Tokenizer};
use crate::weights::{Inventory, TensorSource, WeightOptions, variants_in};

/// A flow-matching text-to-image model: text encoders, velocity network with its adapter, decoder.
pub trait TextToImageModel {
    /// The contents of `scheduler/scheduler_config.json`.
    fn scheduler_config(&self) -> &serde_json::Value;

    /// Whether the family's pipeline hands its scheduler even noise levels, `1` to `1/steps`, to bend; else the scheduler
    /// makes its own.
    fn passes_noise_levels(&self) -> bool;

    /// The shape of one image's latents, without the batch axis.
    ///
    /// # Errors
    /// If the model cannot draw `height` × `width` pixels; the error names the sizes that fit.
    fn latent_shape(&self, height: i64, width: i64) -> Result<Vec<i64>, ModelError>;

    /// Height and width that the model was made for, in pixels.
    fn usual_size(&self) -> (i64, i64);

    /// How many text tokens the network sees of a prompt.
    fn text_sequence_length(&self, max_sequence_length: usize) -> usize;

    /// How many image tokens the network sees, which dynamic schedules depend on.
    fn image_sequence_length(&self, height: i64, width: i64) -> usize;

    /// Opens the text encoders, if they are not open.
    ///
    /// # Errors
    /// As [`open`].
    fn open_text_encoders(&mut self) -> Result<(), ModelError>;

    /// Frees the text encoders' memory; prompts cannot be encoded until they are opened again.
    fn drop_text_encoders(&mut self);

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

    /// Composes the velocity d(latents)/d(sigma) under guidance of what `evaluate` says about the network's answers to
    /// queries; guidance is applied in float32.
    ///
    /// Callers want [`Self::velocity`] or [`Self::training_velocity`].
    ///
    /// # Shapes
    /// - `latents`: `[B, …]` as [`Self::latent_shape`]; `sigmas`: `[B]`, f32, in `[0, 1]`
    /// - returns: as `latents`, f32
    ///
    /// # Panics
    /// If the shapes disagree.
    fn compose_velocity(
        &self,
        latents: &Tensor,
        sigmas: &Tensor,
        guidance: &Guidance,
        evaluate: &mut dyn FnMut(&Query) -> Tensor,
    ) -> Tensor;

    /// Predicts the velocity under guidance; `mode` says what the adapter has to do with it. Shapes and panics as
    /// [`Self::compose_velocity`].
    fn velocity(&self, latents: &Tensor, sigmas: &Tensor, guidance: &Guidance, mode: AdapterMode) -> Tensor {
        self.compose_velocity(latents, sigmas, guidance, &mut |query| self.network().forward(query, mode))
    }

    /// As [`Self::velocity`], with gradients to what is trained: the adapter or, where that was asked of its handles,
    /// the network itself.
    fn training_velocity(
        &self,
        latents: &Tensor,
        sigmas: &Tensor,
        guidance: &Guidance,
        activations: Activations,
    ) -> TrainingVelocity<'_> {
        TrainingVelocity::new(self.network(), activations, |evaluate| {
            self.compose_velocity(latents, sigmas, guidance, evaluate)
        })
    }

    /// The velocity network, which carries the adapter.
    fn network(&self) -> &dyn Network;

    /// As [`Self::network`], to change its adapter.
    fn network_mut(&mut self) -> &mut dyn Network;

    /// Time in the network's own units at sigma 1.
    fn timestep_scale(&self) -> f64;

    /// Latents in the layout that the family's reference pipeline passes to its network; unchanged where it is ours.
    fn pack(&self, latents: &Tensor) -> Tensor;

    /// Undoes [`Self::pack`] for latents of `latent_shape`.
    ///
    /// # Errors
    /// If `packed` has not as many elements.
    fn unpack(&self, packed: &Tensor, latent_shape: &[i64]) -> Result<Tensor, ModelError>;

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
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// How tensors are read, and where they go.
    pub weights: WeightOptions,
    /// Whether to load the text encoders; a learner that receives embeddings does without.
    pub text_encoders: bool,
    /// How the decoder draws, where it is to be loaded.
    pub decoder: Option<DecoderOptions>,
}

/// How latents become pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderOptions {
    /// Element type of the decoder, whatever that of the network; a model may insist on float32.
    pub kind: Kind,
    /// Side of the tiles, in pixels, that images larger than one are drawn in; images are drawn whole if absent.
    pub tile: Option<i64>,
}

impl DecoderOptions {
    /// Float32, images drawn whole.
    pub const WHOLE: Self = Self { kind: Kind::Float, tile: None };
}

type Open = fn(&Path, LoadOptions, &WeightOptions) -> Result<Box<dyn TextToImageModel>, ModelError>;

const INDEX: &str = "model_index.json";
/// Beginnings of the names of weight files, as diffusers and transformers have them.
const WEIGHT_FILE_STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// `_class_name` of `model_index.json`, and who opens it.
const FAMILIES: &[(&str, Open)] = &[
    ("StableDiffusion3Pipeline", family::open::<sd3::Sd3>),
    ("FluxPipeline", family::open::<flux::Flux>),
    ("QwenImagePipeline", family::open::<qwen_image::QwenImage>),
];

/// Opens a folder in the diffusers layout.
///
/// # Errors
/// If a file is missing or does not fit the others, the family is not among those supported, no component has the variant
/// asked for, or the device cannot compute in the element type.
pub fn open(dir: &Path, options: LoadOptions) -> Result<Box<dyn TextToImageModel>, ModelError> {
    let network = options.weights.clone();
    open_with_network(dir, options, &network)
}

/// Opens a folder for its prompts alone, which text encoders, opened when asked for, can then be embedded by. The network
/// takes no memory and must not be evaluated; there is no decoder.
///
/// # Errors
/// As [`open`].
pub fn open_for_prompts(dir: &Path, weights: WeightOptions) -> Result<Box<dyn TextToImageModel>, ModelError> {
    let source = TensorSource::Shapes(Inventory::default());
    let network = WeightOptions { source, ..weights.clone() };
    open_with_network(dir, LoadOptions { weights, text_encoders: false, decoder: None }, &network)
}

fn open_with_network(
    dir: &Path,
    options: LoadOptions,
    network: &WeightOptions,
) -> Result<Box<dyn TextToImageModel>, ModelError> {
    let class = class(dir)?;
    let family = FAMILIES.iter().find(|(name, _)| *name == class);
    let (_, open_family) = family.ok_or_else(|| ModelError::UnsupportedClass {
        path: dir.join(INDEX),
        found: class,
        supported: FAMILIES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    })?;
    check_kind(&options.weights)?;
    check_variant(dir, &options.weights)?;
    open_family(dir, options, network)
}

/// The class that `model_index.json` of a folder names.
///
/// # Errors
/// If the file is missing or damaged.
pub fn class(dir: &Path) -> Result<String, ModelError> {
    let path = dir.join(INDEX);
    if !path.exists() {
        let remedy =
            "give the folder of a pipeline in the diffusers layout, or a repository `org/name`".to_owned();
        return Err(ModelError::MissingFile { path, remedy });
    }
    let index: serde_json::Value = crate::json_file::read(&path)?;
    Ok(index["_class_name"].as_str().unwrap_or_default().to_owned())
}

/// The tokenizers that `model_index.json` names but whose files are not there; weights that come from no file do without.
///
/// # Errors
/// If `model_index.json` is missing or damaged.
pub fn absent_tokenizers(dir: &Path) -> Result<Vec<String>, ModelError> {
    let mut names = ModelIndex::open(dir)?.components();
    names.retain(|name| name.starts_with("tokenizer") && !Tokenizer::is_in(&dir.join(name)));
    Ok(names)
}

/// Opens the tokenizer of a text encoder; `vocab_size` bounds the ids of what stands in for an absent one.
fn open_tokenizer(
    dir: &Path,
    index: &ModelIndex,
    component: &str,
    vocab_size: i64,
    weights: &WeightOptions,
) -> Result<Tokenizer, ModelError> {
    let folder = dir.join(component);
    if weights.source.is_without_files() && !Tokenizer::is_in(&folder) {
        return Ok(Tokenizer::Bytes(ByteTokenizer::new(vocab_size)));
    }
    Tokenizer::open(&folder, index.class(component).unwrap_or_default())
}

fn check_kind(options: &WeightOptions) -> Result<(), ModelError> {
    let multiplied = Tensor::f_ones([8, 8], (options.kind, options.device)).and_then(|x| x.f_matmul(&x));
    multiplied.map(drop).map_err(|error| {
        ModelError::Input(format!(
            "the device {:?} cannot compute in {:?} ({error}); choose another `model.dtype`",
            options.device, options.kind
        ))
    })
}

/// A misspelt variant would otherwise read as one that no component happens to have.
fn check_variant(dir: &Path, options: &WeightOptions) -> Result<(), ModelError> {
    let Some(asked) = options.variant.as_deref().filter(|_| !options.source.is_without_files()) else {
        return Ok(());
    };
    let mut present = BTreeSet::new();
    for component in ModelIndex::open(dir)?.components() {
        let folder = dir.join(component);
        for stem in if folder.is_dir() { WEIGHT_FILE_STEMS.as_slice() } else { &[] } {
            present.extend(variants_in(&folder, stem)?);
        }
    }
    if present.contains(asked) {
        return Ok(());
    }
    let present = match present.is_empty() {
        true => "none".to_owned(),
        false => present.into_iter().collect::<Vec<_>>().join(", "),
    };
    Err(ModelError::Input(format!(
        "no component of {} has weight files of the variant `{asked}`; variants present: {present}",
        dir.display()
    )))
}

fn misshaped(what: &str, found: &[i64], expected: &str) -> ModelError {
    ModelError::Input(format!(
        "the {what} have shape {found:?}, which does not fit the model; expected {expected}"
    ))
}
