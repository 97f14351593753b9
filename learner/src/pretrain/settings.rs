//! What `learner pretrain` is told: the sizes of the model and how it is trained.

use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

/// The file, section by section.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainSettings {
    /// Seed of weights, scenes and noise.
    pub seed: u64,
    /// Optimizer updates.
    pub steps: u32,
    /// Scenes per update.
    pub batch_size: usize,
    /// Largest learning rate.
    pub learning_rate: f64,
    /// Updates over which the learning rate rises from 0.
    pub warmup_steps: u32,
    /// Share of the updates after which the learning rate falls linearly to 0.
    pub decay_from: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global norm of the gradient.
    pub max_grad_norm: f64,
    /// Decay of the moving average of the weights, which is what is written.
    pub average_decay: f64,
    /// Mean of the normal whose sigmoid is the noise level.
    pub sigma_mean: f64,
    /// Its standard deviation.
    pub sigma_deviation: f64,
    /// Share of scenes whose caption is drawn independently of the picture, once `wrong_captions_from` is reached.
    pub wrong_captions: f64,
    /// Share of the updates before which all captions are right: the words must be learnt before they can be doubted.
    pub wrong_captions_from: f64,
    /// Share of scenes with an empty caption.
    pub dropped_captions: f64,
    /// CPU threads.
    pub threads: i32,
    /// Sizes of the velocity network.
    pub transformer: TransformerSettings,
    /// Sizes of each of the two text encoders.
    pub text: TextSettings,
    /// Scale of the latents.
    pub latents: LatentSettings,
    /// Of the scheduler.
    pub schedule: ScheduleSettings,
}

/// `[transformer]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerSettings {
    /// Joint blocks.
    pub layers: i64,
    /// Attention heads.
    pub heads: i64,
    /// Width of a head.
    pub head_width: i64,
    /// Side of a patch in pixels.
    pub patch_size: i64,
}

/// `[text]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextSettings {
    /// Width of hidden states and of the projection.
    pub width: i64,
    /// Layers.
    pub layers: i64,
    /// Attention heads.
    pub heads: i64,
}

/// `[latents]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentSettings {
    /// Subtracted from pixels in [−1, 1].
    pub shift: f64,
    /// Factor after that.
    pub scale: f64,
}

/// `[schedule]`
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleSettings {
    /// The scheduler's `shift`.
    pub shift: f64,
}

impl PretrainSettings {
    /// Reads and checks a settings file.
    ///
    /// # Errors
    /// If it cannot be read, has unknown keys, or values out of range.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let settings: Self = toml::from_str(&text)
            .with_context(|| format!("{} is not a pretraining config", path.display()))?;
        settings.check().with_context(|| format!("{} cannot be used", path.display()))?;
        Ok(settings)
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.steps > self.warmup_steps, "steps = {} must exceed warmup_steps", self.steps);
        ensure!(self.batch_size >= 1, "batch_size is 0; it must be at least 1");
        ensure!(self.threads >= 1, "threads is {}; it must be at least 1", self.threads);
        for (name, share) in [
            ("decay_from", self.decay_from),
            ("average_decay", self.average_decay),
            ("wrong_captions", self.wrong_captions),
            ("wrong_captions_from", self.wrong_captions_from),
            ("dropped_captions", self.dropped_captions),
        ] {
            ensure!((0.0..=1.0).contains(&share), "{name} is {share}; it must be in [0, 1]");
        }
        for (name, value) in [
            ("learning_rate", self.learning_rate),
            ("max_grad_norm", self.max_grad_norm),
            ("sigma_deviation", self.sigma_deviation),
            ("latents.scale", self.latents.scale),
            ("schedule.shift", self.schedule.shift),
        ] {
            ensure!(value.is_finite() && value > 0.0, "{name} is {value}; it must be above 0");
        }
        let transformer = &self.transformer;
        ensure!(
            transformer.layers >= 1 && transformer.heads >= 1 && transformer.head_width >= 1,
            "empty transformer"
        );
        let side = scenes::DEFAULT_IMAGE_SIZE as i64;
        ensure!(
            transformer.patch_size >= 1 && side % transformer.patch_size == 0,
            "transformer.patch_size = {} does not divide the {side} pixels of a scene",
            transformer.patch_size
        );
        ensure!(
            self.text.layers >= 2 && self.text.heads >= 1 && self.text.width % self.text.heads == 0,
            "text.heads = {} must divide text.width = {}, and text.layers be at least 2",
            self.text.heads,
            self.text.width
        );
        Ok(())
    }

    /// Learning rate of an update, the first being 0.
    pub fn learning_rate_at(&self, step: u32) -> f64 {
        let (step, steps) = (f64::from(step), f64::from(self.steps));
        let warm = ((step + 1.0) / f64::from(self.warmup_steps.max(1))).min(1.0);
        let decay = ((steps - step) / (steps * (1.0 - self.decay_from)).max(1.0)).min(1.0);
        self.learning_rate * warm * decay
    }

    /// Share of wrong captions at an update, the first being 0.
    pub fn wrong_captions_at(&self, step: u32) -> f64 {
        let has_begun = f64::from(step) >= self.wrong_captions_from * f64::from(self.steps);
        if has_begun { self.wrong_captions } else { 0.0 }
    }

    /// Whether an update is the first with wrong captions.
    pub fn is_first_wrong(&self, step: u32) -> bool {
        self.wrong_captions_at(step) > 0.0 && (step == 0 || self.wrong_captions_at(step - 1) == 0.0)
    }

    /// Width of the transformer.
    pub fn width(&self) -> i64 {
        self.transformer.heads * self.transformer.head_width
    }
}
