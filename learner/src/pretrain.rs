//! `learner pretrain`: flow-matching training of a small SD3 pipeline on procedurally drawn scenes, from nothing.
//!
//! Source: rectified flow (arXiv 2209.03003) with SD3's logit-normal noise levels (arXiv 2403.03206).

mod identity_autoencoder;
mod pipeline_folder;
mod scene_batch;
mod settings;
mod word_tokenizer;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use flow::adamw::{AdamW, AdamWSettings, clip_gradient_norm};
use flow::ema::{Ema, EmaSettings};
use models::network::Query;
use models::pipeline::{Conditioning, LoadOptions, TextToImageModel};
use models::sd3::{Sd3Config, Sd3Transformer};
use models::weights::WeightOptions;
use models::weights::Weights;
use models::{AdapterMode, Network};
use noise::{NoiseKey, Purpose, standard_normal};
use scenes::PromptSpec;
use service::durable;
use tch::{Device, Kind, Tensor};

use scene_batch::SceneBatch;
pub use settings::PretrainSettings;

/// Updates between two lines of progress, each with a snapshot of the averaged weights.
const REPORT_EVERY: u32 = 500;
/// Noise levels at which the network is asked for a velocity have this many units to one of sigma.
const TIMESTEPS: f64 = 1000.0;

/// Where pipelines are written.
#[derive(Clone, Copy, Debug)]
pub struct Folders<'a> {
    /// Of the trained pipeline.
    pub out: &'a Path,
    /// Of the pipeline as it was before the first wrong caption, if it is wanted: what a perfect fine-tuning could restore.
    pub before_wrong_captions: Option<&'a Path>,
}

impl Folders<'_> {
    /// Checks that training by these settings can write them; errors name the flags.
    ///
    /// # Errors
    /// If one is there already, or there is no trained pipeline before the first wrong caption.
    pub fn check(&self, settings: &PretrainSettings) -> anyhow::Result<()> {
        if self.before_wrong_captions.is_some() {
            settings.check_before_wrong_captions()?;
        }
        let folders = [("--out", Some(self.out)), ("--before-wrong-captions", self.before_wrong_captions)];
        for (flag, folder) in folders.into_iter().filter_map(|(flag, folder)| Some((flag, folder?))) {
            if folder.exists() {
                bail!("{} is there already; remove it or give another {flag}", folder.display());
            }
        }
        if self.before_wrong_captions == Some(self.out) {
            bail!("--before-wrong-captions names the same folder as --out; give it another");
        }
        Ok(())
    }
}

/// Trains a pipeline and writes it to `folders.out`; the folders are checked.
///
/// That folder can be used while training goes on: it holds the averaged weights as of the last line of progress.
///
/// # Errors
/// If a folder cannot be written, or the loss is no longer finite; before the first line of progress nothing is left behind
/// then.
pub fn run(settings: PretrainSettings, folders: Folders<'_>) -> anyhow::Result<()> {
    tch::set_num_threads(settings.threads);
    tch::manual_seed(settings.seed as i64);
    let mut transformer = None;
    durable::write_directory(folders.out, |folder| {
        transformer = Some(begin(folder, &settings)?);
        anyhow::Ok(())
    })
    .with_context(|| format!("writing {}", folders.out.display()))?;
    let transformer = transformer.context("no transformer was made; this is a bug")?;
    let mut training = Training::new(settings, transformer, folders.out)?;
    let trained = training.run(folders);
    if trained.is_err() && !training.is_saved {
        // Nothing in it has been trained.
        durable::remove_directory(folders.out)?;
    }
    trained
}

/// Writes the pipeline as it is before training.
fn begin(folder: &Path, settings: &PretrainSettings) -> anyhow::Result<Sd3Transformer> {
    let config: Sd3Config = serde_json::from_value(pipeline_folder::write(folder, settings)?)
        .context("the transformer's config is malformed; this is a bug")?;
    let weights = Weights::random(settings.seed, Kind::Float, Device::Cpu);
    let transformer = Sd3Transformer::new(&weights.scope(""), &config);
    save(&transformer, folder)?;
    Ok(transformer)
}

/// Writes the transformer's weights as they are.
fn save(transformer: &Sd3Transformer, folder: &Path) -> anyhow::Result<()> {
    let path = folder.join("transformer").join("diffusion_pytorch_model.safetensors");
    Ok(models::weights::write(&path, &transformer.checkpoint(), &pipeline_folder::metadata())?)
}

/// Embeds every prompt once; the last row is the empty caption.
fn encode_captions(folder: &Path, prompts: &[PromptSpec]) -> anyhow::Result<Conditioning> {
    let options = LoadOptions {
        weights: WeightOptions::new(Kind::Float, Device::Cpu),
        text_encoders: true,
        decoder: None,
    };
    let pipeline: Box<dyn TextToImageModel> = models::pipeline::open(folder, options)?;
    let texts: Vec<String> = prompts.iter().map(|spec| spec.prompt.clone()).chain([String::new()]).collect();
    Ok(tch::no_grad(|| pipeline.encode_prompts(&texts, 0))?)
}

/// The state of a training from scratch.
struct Training {
    settings: PretrainSettings,
    transformer: Sd3Transformer,
    prompts: Vec<PromptSpec>,
    captions: Conditioning,
    pooled: Tensor,
    parameters: Vec<(String, Tensor)>,
    optimizer: AdamW,
    average: Ema,
    /// Whether averaged weights have been written to the folder of the trained pipeline.
    is_saved: bool,
}

impl Training {
    /// `folder` holds the text encoders.
    fn new(settings: PretrainSettings, transformer: Sd3Transformer, folder: &Path) -> anyhow::Result<Self> {
        let prompts = scenes::split().train;
        let captions = encode_captions(folder, &prompts)?;
        let parameters: Vec<(String, Tensor)> = transformer
            .parameters()
            .into_iter()
            .map(|(name, parameter)| (name, parameter.set_requires_grad(true)))
            .collect();
        let adamw = AdamWSettings {
            lr: settings.learning_rate,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            weight_decay: settings.weight_decay,
        };
        let ema = EmaSettings { decay: settings.average_decay, interval: 1 };
        let pooled = captions.pooled.as_ref().map(Tensor::shallow_clone).unwrap_or_default();
        Ok(Self {
            optimizer: AdamW::new(&parameters, adamw),
            average: Ema::new(&parameters, ema),
            settings,
            transformer,
            prompts,
            captions,
            pooled,
            parameters,
            is_saved: false,
        })
    }

    fn run(&mut self, folders: Folders<'_>) -> anyhow::Result<()> {
        let n_parameters: i64 = self.parameters.iter().map(|(_, parameter)| parameter.numel() as i64).sum();
        tracing::info!(n_parameters, steps = self.settings.steps, "pre-training");
        let start = Instant::now();
        let mut loss_sum = 0.0;
        let first_wrong_step = self.settings.first_wrong_step();
        for step in 0..self.settings.steps {
            if let Some(folder) = folders.before_wrong_captions.filter(|_| first_wrong_step == Some(step)) {
                tracing::info!(step, "captions are right up to here: {}", folder.display());
                durable::write_directory(folder, |folder| {
                    pipeline_folder::write(folder, &self.settings)?;
                    self.save_average(folder)
                })
                .with_context(|| format!("writing {}", folder.display()))?;
            }
            let loss = self.update(step)?;
            if !loss.is_finite() {
                bail!("the loss is {loss} at step {step}; lower `learning_rate`");
            }
            loss_sum += loss;
            let done = step + 1;
            if done.is_multiple_of(REPORT_EVERY) || done == self.settings.steps {
                let since =
                    if done.is_multiple_of(REPORT_EVERY) { REPORT_EVERY } else { done % REPORT_EVERY };
                let mean_loss = loss_sum / f64::from(since);
                tracing::info!(step = done, mean_loss, seconds = start.elapsed().as_secs_f64().round());
                loss_sum = 0.0;
                self.save_average(folders.out)?;
                self.is_saved = true;
            }
        }
        Ok(())
    }

    /// Writes the averaged weights.
    fn save_average(&mut self, folder: &Path) -> anyhow::Result<()> {
        self.average.swap(&self.parameters);
        let saved = save(&self.transformer, folder);
        self.average.swap(&self.parameters);
        saved
    }

    /// One optimizer update; returns the mean squared error of the velocity.
    fn update(&mut self, step: u32) -> anyhow::Result<f64> {
        let batch = SceneBatch::draw(&self.settings, &self.prompts, step)?;
        let n_rows = self.settings.batch_size as i64;
        let clean = (batch.pixels - self.settings.latents.shift) * self.settings.latents.scale;
        let noise = Tensor::from_slice(&self.normals(step, 0, clean.numel())).view_as(&clean);
        let sigma = Tensor::from_slice(&self.normals(step, 1, n_rows as usize));
        let sigma = (sigma * self.settings.sigma_deviation + self.settings.sigma_mean).sigmoid();
        let spread = sigma.view([-1, 1, 1, 1]);
        let latents = &clean * (1.0 - &spread) + &noise * &spread;
        let text = self.captions.text.index_select(0, &batch.captions);
        let pooled = self.pooled.index_select(0, &batch.captions);

        let query = Query {
            latents: &latents,
            timestep: &(sigma * TIMESTEPS),
            text: &text,
            pooled: Some(&pooled),
            text_mask: None,
            guidance_scale: 1.0,
        };
        let velocity = self.transformer.forward(&query, AdapterMode::Off);
        let loss = (velocity - (noise - clean)).square().mean(Kind::Float);
        self.optimizer.zero_gradients();
        loss.backward();
        clip_gradient_norm(&self.parameters, self.settings.max_grad_norm)?;
        self.optimizer.set_learning_rate(self.settings.learning_rate_at(step));
        self.optimizer.step();
        self.average.update(&self.parameters, u64::from(step) + 1);
        Ok(loss.double_value(&[]))
    }

    fn normals(&self, step: u32, stream: u32, n: usize) -> Vec<f32> {
        standard_normal(&NoiseKey::initial(self.settings.seed, Purpose::Pretrain, step, stream, 0), n)
    }
}
