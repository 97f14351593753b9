//! What `sample` is told: flags, over the settings of a run where one is given, over defaults.

use std::path::PathBuf;

use clap::builder::RangedU64ValueParser;
use config::{ComputeDevice, Dtype, RunConfig};
use models::DecoderOptions;
use models::weights::{TensorSource, WeightOptions};
use run_setup::{element_type, open_device};
use service::{Hub, cuda, model_folder, path_argument};

use super::{Batches, SampleOptions};
use crate::bad_input::BadInput;
use crate::commands::argument_parsers::{finite, tokens};
use crate::commands::recorded_run::{RecordedRun, TrainedVersion};
use crate::sampling::guided_model::GuidanceSettings;

/// Flags of `sample`.
#[derive(Clone, Debug, clap::Args)]
pub struct SampleArguments {
    /// Run to draw as its evaluations do, by its directory or its name below `runs`: its model, its best version, its
    /// held-out prompts and all its settings, unless a flag says otherwise.
    #[arg(long)]
    run: Option<PathBuf>,
    /// Pipeline folder in the diffusers layout, or `org/name` or `org/name@revision` in the Hugging Face cache.
    #[arg(long, required_unless_present = "run")]
    model: Option<PathBuf>,
    /// Variant of the weight files, such as `fp16`; by default the plain files, or the only ones there are.
    #[arg(long)]
    variant: Option<String>,
    /// Random weights, by the model's config.json files alone: to measure speed and memory.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    random_weights: Option<bool>,
    /// Type of the base weights, `float32` or `bfloat16` [default: float32].
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Type that images are decoded in [default: float32].
    #[arg(long)]
    decoder_dtype: Option<Dtype>,
    /// Side in pixels of the tiles that larger images are decoded in; 0 for images decoded whole [default: 0].
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(..=65_536))]
    vae_tile: Option<u32>,
    /// Which version of the run draws [default: best, or last where none is known to be].
    #[arg(long, value_enum, requires = "run", conflicts_with = "adapter")]
    trained: Option<TrainedVersion>,
    /// What was trained: a PEFT folder, a LoRA file as diffusers writes it, or what `coordinator export` wrote, be it an
    /// adapter or a whole transformer.
    #[arg(long, value_parser = path_argument())]
    adapter: Option<PathBuf>,
    /// Prompts: `.txt`, `.jsonl`, `.ndjson`, `.json`, `.csv` or `.tsv`.
    #[arg(long, required_unless_present = "run", value_parser = path_argument())]
    prompts: Option<PathBuf>,
    /// Folder of the images, `PROMPT-IMAGE.png`.
    #[arg(long, value_parser = path_argument())]
    out: PathBuf,
    /// Replace images that are there.
    #[arg(long)]
    force: bool,
    /// Denoising steps [default: 28].
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    steps: Option<u32>,
    /// Strength of classifier-free guidance; none at 1 or less [default: 4.5].
    #[arg(long, allow_negative_numbers = true, value_parser = finite)]
    guidance: Option<f64>,
    /// Tokens of a prompt for the encoder of long texts: T5, or Qwen2.5-VL [default: 128].
    #[arg(long, value_parser = tokens)]
    max_sequence_length: Option<usize>,
    /// Seed of all noises; with a run's seed, the noises of its evaluation [default: 42].
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Height in pixels; the model's own if not given.
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(1..=65_536))]
    height: Option<i64>,
    /// Width in pixels; the model's own if not given.
    #[arg(long, allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(1..=65_536))]
    width: Option<i64>,
    /// Images of each prompt [default: 1].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    images_per_prompt: Option<u32>,
    /// Most images in one network call [default: 16].
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    max_rows: Option<usize>,
    /// `cpu`, `cuda` or `cuda:N` [default: cpu].
    #[arg(long, env = "FLOW_RL_DEVICE")]
    device: Option<ComputeDevice>,
    /// CPU threads of tensor operations [default: 1].
    #[arg(long, env = "FLOW_RL_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// What holds where no flag says otherwise.
struct Settings {
    variant: Option<String>,
    random_weights: bool,
    /// Seed of random weights; the one of the noises if absent.
    weight_seed: Option<u64>,
    dtype: Dtype,
    decoder_dtype: Dtype,
    vae_tile: i64,
    steps: usize,
    guidance: GuidanceSettings,
    seed: u64,
    height: Option<i64>,
    width: Option<i64>,
    images_per_prompt: u32,
    batches: Batches,
    device: ComputeDevice,
    threads: usize,
}

impl Settings {
    fn without_run() -> Self {
        Self {
            variant: None,
            random_weights: false,
            weight_seed: None,
            dtype: Dtype::Float32,
            decoder_dtype: Dtype::Float32,
            vae_tile: 0,
            steps: 28,
            guidance: GuidanceSettings { scale: 4.5, max_sequence_length: 128 },
            seed: 42,
            height: None,
            width: None,
            images_per_prompt: 1,
            batches: Batches { prompts_per_task: None, max_rows: 16 },
            device: ComputeDevice::Cpu,
            threads: 1,
        }
    }

    /// Those of a run's evaluations, which draw the same images to the last bit.
    fn of_run(config: &RunConfig) -> Self {
        let RunConfig { run, model, sampling, evaluation, resources, .. } = config;
        Self {
            variant: (!model.variant.is_empty()).then(|| model.variant.clone()),
            random_weights: model.random_weights,
            weight_seed: Some(run.seed),
            dtype: model.dtype,
            decoder_dtype: model.decoder_dtype,
            vae_tile: sampling.vae_tile,
            steps: evaluation.steps,
            guidance: GuidanceSettings {
                scale: evaluation.guidance_scale,
                max_sequence_length: model.max_sequence_length,
            },
            seed: run.seed,
            height: Some(sampling.height),
            width: Some(sampling.width),
            images_per_prompt: evaluation.images_per_prompt as u32,
            batches: Batches {
                prompts_per_task: Some(evaluation.prompts_per_task),
                max_rows: sampling.max_rows,
            },
            device: resources.device,
            threads: resources.worker_threads,
        }
    }
}

impl SampleArguments {
    /// The device asked for, or the run's.
    ///
    /// # Errors
    /// [`BadInput`] if the run cannot be read.
    pub fn device(&self) -> anyhow::Result<ComputeDevice> {
        match (self.device, &self.run) {
            (Some(device), _) => Ok(device),
            (None, Some(run)) => {
                let run = RecordedRun::open(run).map_err(BadInput::from_error)?;
                Ok(run.config().resources.device)
            }
            (None, None) => Ok(Settings::without_run().device),
        }
    }

    /// What is to be drawn, with everything read but the model.
    ///
    /// # Errors
    /// [`BadInput`] if the run, its version, the prompts, the device or the model is not there.
    pub fn resolve(self, hub: &Hub) -> anyhow::Result<SampleOptions> {
        self.try_resolve(hub).map_err(BadInput::from_error)
    }

    fn try_resolve(self, hub: &Hub) -> anyhow::Result<SampleOptions> {
        let run = self.run.as_deref().map(RecordedRun::open).transpose()?;
        let own = run.as_ref().map_or_else(Settings::without_run, |run| Settings::of_run(run.config()));
        let trained = match (&self.adapter, &run) {
            (Some(adapter), _) => Some(adapter.clone()),
            (None, Some(run)) => run.trained(self.trained)?,
            (None, None) => None,
        };
        let prompts = match (&self.prompts, &run) {
            (Some(file), _) => config::read_prompts(file)?,
            (None, Some(run)) => run.evaluation_prompts()?,
            (None, None) => {
                anyhow::bail!("neither `--prompts` nor `--run` is given; one of them names the prompts")
            }
        };
        let model = self.model_folder(run.as_ref(), hub)?;
        let device = open_device(self.device.unwrap_or(own.device)).map_err(cuda::explained)?;
        let seed = self.seed.unwrap_or(own.seed);
        let source = match self.random_weights.unwrap_or(own.random_weights) {
            true => TensorSource::Random(own.weight_seed.unwrap_or(seed)),
            false => TensorSource::Files,
        };
        let tile = self.vae_tile.map_or(own.vae_tile, i64::from);
        Ok(SampleOptions {
            model,
            weights: WeightOptions {
                kind: element_type(self.dtype.unwrap_or(own.dtype)),
                device,
                variant: self.variant.or(own.variant).as_deref().map(Into::into),
                source,
            },
            decoder: DecoderOptions {
                kind: element_type(self.decoder_dtype.unwrap_or(own.decoder_dtype)),
                tile: (tile > 0).then_some(tile),
            },
            trained,
            prompts,
            out: self.out,
            overwrite: self.force,
            steps: self.steps.map_or(own.steps, |steps| steps as usize),
            guidance: GuidanceSettings {
                scale: self.guidance.unwrap_or(own.guidance.scale),
                max_sequence_length: self.max_sequence_length.unwrap_or(own.guidance.max_sequence_length),
            },
            seed,
            height: self.height.or(own.height),
            width: self.width.or(own.width),
            images_per_prompt: self.images_per_prompt.unwrap_or(own.images_per_prompt),
            batches: Batches { max_rows: self.max_rows.unwrap_or(own.batches.max_rows), ..own.batches },
            threads: self.threads.map_or(own.threads, usize::from),
        })
    }

    fn model_folder(&self, run: Option<&RecordedRun>, hub: &Hub) -> anyhow::Result<PathBuf> {
        match (&self.model, run) {
            (Some(model), _) => Ok(model_folder(model, hub)?),
            (None, Some(run)) => {
                let model = &run.config().model.path;
                let found = model_folder(model, hub).map_err(anyhow::Error::from).and_then(|folder| {
                    anyhow::ensure!(folder.is_dir(), "{} is not there", folder.display());
                    Ok(folder)
                });
                found.map_err(|error| error.context(run.whose_path("model.path", model, "--model")))
            }
            (None, None) => {
                anyhow::bail!("neither `--model` nor `--run` is given; one of them names the model")
            }
        }
    }
}
