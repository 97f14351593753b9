//! `rollout-worker sample`: images of a file of prompts, as PNG files.

pub mod arguments;
mod output_folder;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use config::PromptRecord;
use flow::Schedule;
use models::saved_weights::SavedWeights;
use models::weights::WeightOptions;
use models::{Conditioning, DecoderOptions, LoadOptions};
use rewards::RgbImage;

use crate::bad_input::BadInput;
use crate::commands::image_file;
use crate::sampling::guided_model::{Embedding, GuidanceSettings, GuidedModel};
use crate::sampling::task_noise::TaskNoise;
use crate::sampling::wavefront::{Noise, sample_deterministically};
use output_folder::OutputFolder;

/// What is to be drawn, and how.
#[derive(Clone, Debug)]
pub struct SampleOptions {
    /// Pipeline folder in the diffusers layout.
    pub model: PathBuf,
    /// Where its weights come from, and where they go.
    pub weights: WeightOptions,
    /// How images are decoded.
    pub decoder: DecoderOptions,
    /// What was trained: an adapter or a whole transformer.
    pub trained: Option<PathBuf>,
    /// What to draw.
    pub prompts: Vec<PromptRecord>,
    /// Folder of the images; made if it is not there.
    pub out: PathBuf,
    /// Whether images that are there are replaced.
    pub overwrite: bool,
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
    /// Which images are drawn together.
    pub batches: Batches,
    /// CPU threads of tensor operations.
    pub threads: usize,
}

/// Which images are drawn together; it decides how their numbers are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batches {
    /// Prompts after which a batch ends, as a run's evaluation task does; none if absent.
    pub prompts_per_task: Option<usize>,
    /// Most images in one network call.
    pub max_rows: usize,
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
    /// Images in the folder besides, of which `score` would take note as well.
    pub other_images: usize,
}

/// One image to be drawn.
struct Row<'a> {
    prompt: &'a PromptRecord,
    image: u32,
}

impl Row<'_> {
    fn file_name(&self) -> String {
        image_file::name(self.prompt.index, self.image)
    }
}

/// Draws and writes all images. The noise of an image is that of a run's evaluation with the same seed.
///
/// # Errors
/// [`BadInput`] if model, weights, prompts or size cannot be used, or the folder of the images; else if drawing or writing
/// fails.
pub fn run(options: &SampleOptions) -> anyhow::Result<SampleReport> {
    let images = |prompt| (0..options.images_per_prompt).map(move |image| Row { prompt, image });
    let rows: Vec<Row> = options.prompts.iter().flat_map(images).collect();
    let names: BTreeSet<String> = rows.iter().map(Row::file_name).collect();
    let folder =
        OutputFolder::prepare(&options.out, &names, options.overwrite).map_err(BadInput::from_error)?;
    match draw_all(options, &rows) {
        Ok(report) => Ok(SampleReport { other_images: folder.n_others, ..report }),
        Err(error) => {
            folder.forget();
            Err(error)
        }
    }
}

fn draw_all(options: &SampleOptions, rows: &[Row]) -> anyhow::Result<SampleReport> {
    let (mut model, left_out) = open(options).map_err(BadInput::from_error)?;
    let (usual_height, usual_width) = model.usual_size();
    let (height, width) = (options.height.unwrap_or(usual_height), options.width.unwrap_or(usual_width));
    let latent_shape = model.latent_shape(height, width).map_err(BadInput::from_error)?;
    let schedule = model.schedule(options.steps, height, width).map_err(BadInput::from_error)?;
    let mut duration = Duration::ZERO;
    let rows_per_task = options
        .batches
        .prompts_per_task
        .map_or(rows.len(), |n_prompts| n_prompts.saturating_mul(options.images_per_prompt as usize));
    let tasks = rows.chunks(rows_per_task.max(1));
    for rows in tasks.flat_map(|task| task.chunks(options.batches.max_rows)) {
        for row in rows {
            model.embed(&row.prompt.text).map_err(BadInput::from_error)?;
        }
        let start = Instant::now();
        let key = |row: &Row| run_setup::evaluation_key(options.seed, row.prompt.index, row.image);
        let keys = rows.iter().map(key).collect();
        let noise = TaskNoise { keys, latent_shape: latent_shape.clone(), device: model.device() };
        let images = draw(&mut model, rows, &noise, (&schedule, options.guidance.scale))?;
        duration += start.elapsed();
        for (row, image) in rows.iter().zip(&images) {
            image_file::write(&options.out.join(row.file_name()), image)?;
        }
    }
    let truncated = (!model.truncated().is_empty()).then(|| model.truncated().to_string());
    Ok(SampleReport {
        images: rows.len(),
        network_evaluations: rows.len() * options.steps,
        duration,
        truncated,
        left_out,
        other_images: 0,
    })
}

/// The model with what was trained, and what of the file of that is left out.
fn open(options: &SampleOptions) -> anyhow::Result<(GuidedModel, Vec<String>)> {
    // Read first: the smaller of the two, and the one that is more often mistaken.
    let trained = options.trained.as_deref().map(SavedWeights::read).transpose()?;
    let load =
        LoadOptions { weights: options.weights.clone(), text_encoders: true, decoder: Some(options.decoder) };
    let mut model = GuidedModel::open_with(&options.model, load, options.guidance.max_sequence_length, None)?;
    let Some(trained) = trained else { return Ok((model, Vec::new())) };
    model.load_saved(&trained)?;
    Ok((model, trained.left_out().to_vec()))
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
