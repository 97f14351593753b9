//! `rollout-worker inspect`: what a model is, and what is wrong with its folder, without reading a single weight.
//!
//! The networks are built by their own constructors from tensors that hold no memory, so nothing is counted twice over.

use std::path::{Path, PathBuf};

use config::{
    AdapterInspection, ComponentInspection, Dtype, ImageInspection, ModelInspection, StepInspection,
};
use flow::FlowError;
use models::adapter_file::SavedAdapter;
use models::lora::LoraConfig;
use models::weights::{Inventory, TensorSource, WeightOptions};
use models::{DecoderOptions, LoadOptions, ModelError, TextToImageModel, pipeline};
use run_setup::{NoiseLevels, StepSettings, TrainedStepsError, element_type};
use tch::Device;

use crate::sampling::guided_model::GuidanceSettings;

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
    /// Guidance of held-out images.
    pub evaluation_guidance_scale: f64,
    /// Side in pixels of the tiles that images are decoded in; whole if absent.
    pub tile: Option<i64>,
    /// Numbers of denoising steps, each of which must have a schedule.
    pub schedule_steps: Vec<usize>,
    /// Of how many denoising steps which are trained, and how.
    pub steps: Option<(usize, StepSettings)>,
    /// What would be trained; none for the whole network.
    pub adapter: Option<LoraConfig>,
    /// What training of the adapter goes on from.
    pub start_from: Option<PathBuf>,
}

/// Looks at a model.
///
/// # Errors
/// If a file is missing or does not fit the others, the model cannot draw the size, has no schedule of so many steps, or no
/// modules of the adapter's names.
pub fn run(options: &InspectOptions) -> Result<ModelInspection, ModelError> {
    let inventory = Inventory::default();
    let source = match options.random_weights {
        true => TensorSource::Shapes(inventory.clone()),
        false => TensorSource::Headers(inventory.clone()),
    };
    let kind = element_type(options.dtype);
    let weights = WeightOptions {
        kind,
        device: Device::Cpu,
        variant: options.variant.as_deref().map(Into::into),
        source,
    };
    let decoder = DecoderOptions { tile: options.tile, ..DecoderOptions::WHOLE };
    let load = LoadOptions { weights, text_encoders: true, decoder: Some(decoder) };
    let model = pipeline::open(&options.model, load)?;
    let image = image(model.as_ref(), options)?;
    let unsuitable =
        |error: TrainedStepsError| ModelError::Input(format!("{}: {error}", options.model.display()));
    let noise_levels = NoiseLevels::of(model.as_ref()).map_err(|error| unsuitable(error.into()))?;
    check_schedules(&noise_levels, options, image.tokens).map_err(|error| unsuitable(error.into()))?;
    let steps = options.steps.as_ref().map(|steps| trained_steps(&noise_levels, image.tokens, steps));
    let steps = steps.transpose().map_err(unsuitable)?.unwrap_or_default();
    // Tokenizers alone say how many tokens their encoders take.
    model.token_ids("", options.guidance.max_sequence_length)?;
    let network = model.network();
    let rows_per_evaluation = |scale| 1 + usize::from(model.negative_prompt(scale).is_some());
    Ok(ModelInspection {
        folder: options.model.clone(),
        class: pipeline::class(&options.model)?,
        dtype: options.dtype,
        components: components(&inventory),
        n_blocks: network.n_blocks(),
        width: network.width(),
        decoder_width: decoder_width(&options.model)?,
        image,
        text_tokens: model.text_sequence_length(options.guidance.max_sequence_length),
        embedding_widths: model.embedding_widths(),
        rows_per_evaluation: rows_per_evaluation(options.guidance.scale),
        rows_per_held_out_evaluation: rows_per_evaluation(options.evaluation_guidance_scale),
        adapter: options
            .adapter
            .as_ref()
            .map(|adapter| self::adapter(model.as_ref(), adapter, options.start_from.as_deref()))
            .transpose()?,
        steps,
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

/// Lays out the noise levels as a run does.
fn check_schedules(
    noise_levels: &NoiseLevels,
    options: &InspectOptions,
    tokens: usize,
) -> Result<(), FlowError> {
    options.schedule_steps.iter().try_for_each(|steps| noise_levels.schedule(*steps, tokens).map(drop))
}

/// Every step that can be drawn for training, with its weight among them.
fn trained_steps(
    noise_levels: &NoiseLevels,
    tokens: usize,
    (steps, settings): &(usize, StepSettings),
) -> Result<Vec<StepInspection>, TrainedStepsError> {
    let drawable = settings.drawable(&noise_levels.schedule(*steps, tokens)?)?;
    let inspected = drawable.into_iter();
    Ok(inspected
        .map(|step| StepInspection { step: step.step, sigma: step.coefficients.sigma, weight: step.weight })
        .collect())
}

fn adapter(
    model: &dyn TextToImageModel,
    config: &LoraConfig,
    start_from: Option<&Path>,
) -> Result<AdapterInspection, ModelError> {
    let sizes = model.network().adapter_sizes(config)?;
    let parameters = sizes.iter().sum::<i64>() as u64;
    let start =
        start_from.map(|path| SavedAdapter::to_go_on_from(path, config, model.network())).transpose()?;
    let left_out = start.map(|start| start.left_out).unwrap_or_default();
    Ok(AdapterInspection { rank: config.rank, modules: sizes.len(), parameters, left_out })
}
