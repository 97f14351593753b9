//! `rollout-worker inspect`: what a model is, and what is wrong with its folder, without reading a single weight.
//!
//! The networks are built by their own constructors from tensors that hold no memory, so nothing is counted twice over.

use std::path::{Path, PathBuf};

use config::{AdapterInspection, ComponentInspection, Dtype, ImageInspection, ModelInspection};
use models::lora::LoraConfig;
use models::weights::{Inventory, TensorSource, WeightOptions};
use models::{DecoderOptions, LoadOptions, ModelError, TextToImageModel, pipeline};
use tch::Device;

use crate::guided_model::GuidanceSettings;
use crate::settings;

/// What is asked about.
#[derive(Clone, Debug)]
pub struct InspectOptions {
    /// Folder in the diffusers layout.
    pub model: PathBuf,
    /// Variant of the weight files.
    pub variant: Option<String>,
    /// Whether configurations are all there is.
    pub random_weights: bool,
    /// Element type of the base weights.
    pub dtype: Dtype,
    /// Height in pixels; the model's own if absent.
    pub height: Option<i64>,
    /// Width in pixels; the model's own if absent.
    pub width: Option<i64>,
    /// Guidance and text length.
    pub guidance: GuidanceSettings,
    /// The adapter.
    pub adapter: Option<LoraConfig>,
}

/// Looks at a model.
///
/// # Errors
/// If a file is missing or does not fit the others, the model cannot draw the size, or has no modules of the adapter's
/// names.
pub fn run(options: &InspectOptions) -> Result<ModelInspection, ModelError> {
    let inventory = Inventory::default();
    let source = match options.random_weights {
        true => TensorSource::Shapes(inventory.clone()),
        false => TensorSource::Headers(inventory.clone()),
    };
    let kind = settings::kind(options.dtype);
    let weights = WeightOptions {
        kind,
        device: Device::Cpu,
        variant: options.variant.as_deref().map(Into::into),
        source,
    };
    let load = LoadOptions { weights, text_encoders: true, decoder: Some(DecoderOptions::WHOLE) };
    let model = pipeline::open(&options.model, load)?;
    // Tokenizers alone say how many tokens their encoders take.
    model.token_ids("", options.guidance.max_sequence_length)?;
    let network = model.network();
    Ok(ModelInspection {
        folder: options.model.clone(),
        class: pipeline::class(&options.model)?,
        dtype: options.dtype,
        components: components(&inventory),
        n_blocks: network.n_blocks(),
        width: network.width(),
        decoder_width: decoder_width(&options.model)?,
        image: image(model.as_ref(), options)?,
        text_tokens: model.text_sequence_length(options.guidance.max_sequence_length),
        embedding_widths: model.embedding_widths(),
        rows_per_evaluation: 1 + usize::from(model.negative_prompt(options.guidance.scale).is_some()),
        adapter: options
            .adapter
            .as_ref()
            .map(|adapter| self::adapter(model.as_ref(), adapter))
            .transpose()?,
    })
}

/// A line for each tokenizer that is not there, which only weights that come from no file can do without.
///
/// # Errors
/// If `model_index.json` is missing or damaged.
pub fn stand_ins(model: &Path) -> Result<Vec<String>, ModelError> {
    let line = |name| format!("{name} has no files: the bytes of a prompt stand in for its tokens");
    Ok(pipeline::absent_tokenizers(model)?.into_iter().map(line).collect())
}

fn components(inventory: &Inventory) -> Vec<ComponentInspection> {
    let component = |(name, size): (String, models::weights::ComponentSize)| ComponentInspection {
        name,
        parameters: size.parameters,
        bytes: size.bytes,
        largest_tensor_bytes: size.largest_tensor_bytes,
    };
    inventory.components().into_iter().map(component).collect()
}

/// The second level of the decoder is the widest that works on all pixels: it is widened before it is narrowed.
fn decoder_width(model: &Path) -> Result<i64, ModelError> {
    let path = model.join("vae/config.json");
    let damaged = |reason: String| ModelError::Damaged { path: path.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|error| damaged(error.to_string()))?;
    let config: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let numbers = |key: &str| -> Option<Vec<i64>> {
        config.get(key)?.as_array()?.iter().map(serde_json::Value::as_i64).collect()
    };
    let widths = numbers("block_out_channels").or_else(|| {
        let base = config.get("base_dim")?.as_i64()?;
        Some(numbers("dim_mult")?.into_iter().map(|factor| base * factor).collect())
    });
    let widest = widths.iter().flatten().take(2).max().copied();
    widest.ok_or_else(|| damaged("it names no widths of its levels".to_owned()))
}

fn image(model: &dyn TextToImageModel, options: &InspectOptions) -> Result<ImageInspection, ModelError> {
    let (usual_height, usual_width) = model.usual_size();
    let (height, width) = (options.height.unwrap_or(usual_height), options.width.unwrap_or(usual_width));
    let latent_shape = model.latent_shape(height, width)?;
    Ok(ImageInspection { height, width, latent_shape, tokens: model.image_sequence_length(height, width) })
}

fn adapter(model: &dyn TextToImageModel, config: &LoraConfig) -> Result<AdapterInspection, ModelError> {
    let sizes = model.network().adapter_sizes(config)?;
    let parameters = sizes.iter().sum::<i64>() as u64;
    Ok(AdapterInspection { rank: config.rank, modules: sizes.len(), parameters })
}
