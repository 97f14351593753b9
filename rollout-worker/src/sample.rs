//! `rollout-worker sample`: images of a file of prompts, as PNG files.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use config::{Dtype, PromptRecord};
use flow::Schedule;
use models::Conditioning;
use models::weights::{TensorSource, WeightOptions};
use rewards::RgbImage;
use tch::Device;

use crate::bad_input::BadInput;
use crate::guided_model::{Embedding, GuidanceSettings, GuidedModel};
use crate::image_file;
use crate::settings;
use crate::task_noise::TaskNoise;
use crate::wavefront::{Noise, sample_deterministically};

/// Rows of one network call.
const ROWS_AT_ONCE: usize = 16;

/// What is to be drawn, and how.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// Pipeline folder in the diffusers layout.
    pub model: PathBuf,
    /// Variant of the weight files.
    pub variant: Option<String>,
    /// Draws the weights from the seed, to measure by configurations alone.
    pub random_weights: bool,
    /// Element type of the base weights.
    pub dtype: Dtype,
    /// Adapter as PEFT folder or diffusers file.
    pub adapter: Option<PathBuf>,
    /// `.txt` or `.jsonl`.
    pub prompts: PathBuf,
    /// Folder of the images; made if it is not there.
    pub out: PathBuf,
    /// Denoising steps.
    pub steps: usize,
    /// Guidance and text length.
    pub guidance: GuidanceSettings,
    /// Seed of all noises.
    pub seed: u64,
    /// Height in pixels; the model's own if absent.
    pub height: Option<i64>,
    /// Width in pixels; the model's own if absent.
    pub width: Option<i64>,
    /// Images of each prompt.
    pub images_per_prompt: u32,
    /// Where to draw.
    pub device: Device,
}

/// What was drawn.
#[derive(Clone, Debug)]
pub struct SampleReport {
    /// Number of images.
    pub images: usize,
    /// Guided network evaluations, rows counted one by one.
    pub network_evaluations: usize,
    /// Time from noise to pixels, without opening the model or embedding the prompts.
    pub duration: Duration,
    /// How many prompts were longer than a text encoder takes, if any were.
    pub truncated: Option<String>,
    /// What the adapter's file has for other parts of the pipeline, which are drawn with as they are.
    pub left_out: Vec<String>,
}

/// One image to be drawn.
struct Row<'a> {
    prompt: &'a PromptRecord,
    image: u32,
}

/// Draws and writes all images. The noise of an image is that of a run's evaluation with the same seed.
///
/// # Errors
/// [`BadInput`] if model, adapter, prompts or size cannot be used; else if drawing or writing fails.
pub fn run(options: &SampleOptions) -> anyhow::Result<SampleReport> {
    let prompts = config::read_prompts(&options.prompts).map_err(BadInput::from_error)?;
    let (mut model, left_out) = open(options).map_err(BadInput::from_error)?;
    let (usual_height, usual_width) = model.usual_size();
    let (height, width) = (options.height.unwrap_or(usual_height), options.width.unwrap_or(usual_width));
    let latent_shape = model.latent_shape(height, width).map_err(BadInput::from_error)?;
    let schedule = model.schedule(options.steps, height, width).map_err(BadInput::from_error)?;
    std::fs::create_dir_all(&options.out).with_context(|| format!("creating {}", options.out.display()))?;
    let images = prompts
        .iter()
        .flat_map(|prompt| (0..options.images_per_prompt).map(move |image| Row { prompt, image }));
    let rows: Vec<Row> = images.collect();
    let mut duration = Duration::ZERO;
    for rows in rows.chunks(ROWS_AT_ONCE) {
        for row in rows {
            model.embed(&row.prompt.text).map_err(BadInput::from_error)?;
        }
        let start = Instant::now();
        let key = |row: &Row| TaskNoise::evaluation_key(options.seed, row.prompt.index, row.image);
        let keys = rows.iter().map(key).collect();
        let noise = TaskNoise { keys, latent_shape: latent_shape.clone(), device: options.device };
        let images = draw(&mut model, rows, &noise, (&schedule, options.guidance.scale))?;
        duration += start.elapsed();
        for (row, image) in rows.iter().zip(&images) {
            let name = image_file::name(row.prompt.index, row.image);
            image_file::write(&options.out.join(name), image)?;
        }
    }
    let truncated = (!model.truncated().is_empty()).then(|| model.truncated().to_string());
    Ok(SampleReport {
        images: rows.len(),
        network_evaluations: rows.len() * options.steps,
        duration,
        truncated,
        left_out,
    })
}

/// The model with its adapter, and what of the adapter's file is left out.
fn open(options: &SampleOptions) -> anyhow::Result<(GuidedModel, Vec<String>)> {
    let source = match options.random_weights {
        true => TensorSource::Random(options.seed),
        false => TensorSource::Files,
    };
    let (kind, device) = (settings::kind(options.dtype), options.device);
    let weights = WeightOptions { kind, device, variant: options.variant.as_deref().map(Into::into), source };
    let mut model = GuidedModel::open(&options.model, weights, options.guidance.max_sequence_length)?;
    let left_out = match &options.adapter {
        Some(path) => model.open_adapter(path)?,
        None => Vec::new(),
    };
    Ok((model, left_out))
}

fn draw(
    model: &mut GuidedModel,
    rows: &[Row],
    noise: &TaskNoise,
    (schedule, guidance_scale): (&Schedule, f64),
) -> anyhow::Result<Vec<RgbImage>> {
    let negative = model.embed_negative(guidance_scale)?;
    let embeddings = rows.iter().map(|row| model.embed(&row.prompt.text)).collect::<Result<Vec<_>, _>>()?;
    let conditionings: Vec<&Conditioning> =
        embeddings.iter().map(|embedding| &embedding.conditioning).collect();
    let positive = Conditioning::cat(&conditionings);
    let guidance = Embedding::guidance(&positive, negative.as_deref(), guidance_scale);
    let mut velocity = |latents: &_, step: usize| model.velocity(latents, schedule.sigmas[step], &guidance);
    let finished = sample_deterministically(noise.initial(), schedule, &mut velocity)
        .map_err(|error| anyhow::anyhow!("prompt `{}`: {error}", rows[error.seed].prompt.text))?;
    Ok(model.images(&finished)?)
}
