//! What `learner pretrain` is told: the sizes of the model and how it is trained.

use std::path::Path;

use anyhow::{Context, bail, ensure};
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
    /// Of the transformer.
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

/// More of these would not fit into memory, or the machine.
const MOST_SCENES: usize = 1 << 16;
const MOST_THREADS: i32 = 1024;
const MOST_LAYERS: i64 = 1000;
const WIDEST: i64 = 1 << 16;
/// A model that is small has fewer parameters than this.
const MOST_PARAMETERS: f64 = 2e9;

impl PretrainSettings {
    /// Reads and checks a settings file.
    ///
    /// # Errors
    /// If it cannot be read, has unknown keys, or values out of range.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = config::read_settings(path).with_context(|| format!("cannot read {}", path.display()))?;
        let settings: Self = toml::from_str(&text)
            .with_context(|| format!("{} is not a pretraining config", path.display()))?;
        settings.check().with_context(|| format!("{} cannot be used", path.display()))?;
        Ok(settings)
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.steps > self.warmup_steps, "steps = {} must exceed warmup_steps", self.steps);
        let (batch_size, threads) = (self.batch_size, self.threads);
        ensure!(
            (1..=MOST_SCENES).contains(&batch_size),
            "batch_size is {batch_size}; it must be from 1 to {MOST_SCENES}"
        );
        ensure!(
            (1..=MOST_THREADS).contains(&threads),
            "threads is {threads}; it must be from 1 to {MOST_THREADS}"
        );
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
        ensure!(
            self.weight_decay.is_finite() && self.weight_decay >= 0.0,
            "weight_decay is {}; it must be 0 or more",
            self.weight_decay
        );
        for (name, value) in [("sigma_mean", self.sigma_mean), ("latents.shift", self.latents.shift)] {
            ensure!(value.is_finite(), "{name} is {value}; it must be a finite number");
        }
        self.check_sizes()
    }

    fn check_sizes(&self) -> anyhow::Result<()> {
        let (transformer, text) = (&self.transformer, &self.text);
        for (name, size, least, most) in [
            ("transformer.layers", transformer.layers, 1, MOST_LAYERS),
            ("transformer.heads", transformer.heads, 1, WIDEST),
            ("transformer.head_width", transformer.head_width, 1, WIDEST),
            ("text.layers", text.layers, 2, MOST_LAYERS),
            ("text.heads", text.heads, 1, WIDEST),
            ("text.width", text.width, 1, WIDEST),
        ] {
            ensure!((least..=most).contains(&size), "{name} is {size}; it must be from {least} to {most}");
        }
        // A joint block has two streams of 18 squares of the width, a layer of a text encoder has 12.
        let square = |side: i64| (side as f64).powi(2);
        let parameters = transformer.layers as f64 * 36.0 * square(self.width())
            + 2.0 * text.layers as f64 * 12.0 * square(text.width);
        ensure!(
            parameters <= MOST_PARAMETERS,
            "the model would have about {parameters:.1e} parameters; lower layers, heads or widths to stay below \
             {MOST_PARAMETERS:.0e}"
        );
        let side = scenes::DEFAULT_IMAGE_SIZE as i64;
        ensure!(
            transformer.patch_size >= 1 && side % transformer.patch_size == 0,
            "transformer.patch_size = {} does not divide the {side} pixels of a scene",
            transformer.patch_size
        );
        ensure!(
            text.width % text.heads == 0,
            "text.heads = {} must divide text.width = {}",
            text.heads,
            text.width
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

    /// The first update with wrong captions, if there is one.
    pub fn first_wrong_step(&self) -> Option<u32> {
        (0..self.steps).find(|step| self.wrong_captions_at(*step) > 0.0)
    }

    /// Checks that there are updates before the first wrong caption, and such a caption.
    ///
    /// # Errors
    /// If every caption is right, or already that of the first update may be wrong.
    pub fn check_before_wrong_captions(&self) -> anyhow::Result<()> {
        let (share, from) = (self.wrong_captions, self.wrong_captions_from);
        match self.first_wrong_step() {
            None => bail!(
                "no caption is ever wrong (wrong_captions is {share}, wrong_captions_from {from}), so there is no pipeline \
                 before; leave `--before-wrong-captions` out"
            ),
            Some(0) => bail!(
                "captions are wrong from the first update on (wrong_captions_from is {from}), so the pipeline before is \
                 untrained; leave `--before-wrong-captions` out"
            ),
            Some(_) => Ok(()),
        }
    }

    /// Width of the transformer.
    pub fn width(&self) -> i64 {
        self.transformer.heads * self.transformer.head_width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../../deploy/configs/pretrain-tiny.toml");

    /// The shipped settings with the value of one key of one section changed; the first section has no name.
    fn changed(section: &str, key: &str, value: &str) -> anyhow::Result<PretrainSettings> {
        let mut table: toml::Table = SHIPPED.parse().unwrap();
        let value = format!("x = {value}").parse::<toml::Table>().unwrap().remove("x").unwrap();
        let place = match section {
            "" => &mut table,
            _ => table[section].as_table_mut().unwrap(),
        };
        assert!(place.insert(key.to_owned(), value).is_some(), "{section} has no {key}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.toml");
        std::fs::write(&path, table.to_string()).unwrap();
        PretrainSettings::read(&path)
    }

    #[test]
    fn the_shipped_settings_can_be_used() {
        changed("", "seed", "1").unwrap();
    }

    #[test]
    fn there_is_a_pipeline_before_wrong_captions_only_where_it_was_trained_and_they_come() {
        let check = |key, value| changed("", key, value).unwrap().check_before_wrong_captions();
        check("seed", "1").unwrap();
        for (key, value, words) in [
            ("wrong_captions", "0.0", "no caption is ever wrong"),
            ("wrong_captions_from", "1.0", "no caption is ever wrong"),
            ("wrong_captions_from", "0.0", "from the first update on"),
        ] {
            let told = check(key, value).unwrap_err().to_string();
            assert!(told.contains(words), "{key} = {value}: {told}");
        }
    }

    #[test]
    fn values_that_would_end_in_a_panic_or_never_are_refused_by_name() {
        for (section, key, value) in [
            ("", "batch_size", "0"),
            ("", "batch_size", "9000000000000000000"),
            ("", "threads", "100000"),
            ("", "learning_rate", "nan"),
            ("", "weight_decay", "nan"),
            ("", "weight_decay", "-1.0"),
            ("", "sigma_mean", "inf"),
            ("", "sigma_deviation", "0.0"),
            ("", "decay_from", "nan"),
            ("latents", "shift", "nan"),
            ("transformer", "layers", "100000000"),
            ("transformer", "heads", "9223372036854775807"),
            ("transformer", "head_width", "9223372036854775807"),
            ("transformer", "patch_size", "3"),
            ("text", "width", "-64"),
            ("text", "width", "1000000000000"),
            ("text", "layers", "1"),
            ("text", "heads", "3"),
        ] {
            let told = format!("{:#}", changed(section, key, value).expect_err(key));
            assert!(told.contains("settings.toml cannot be used") && told.contains(key), "{told}");
        }
        let told = format!("{:#}", changed("transformer", "head_width", "65536").unwrap_err());
        assert!(told.contains("parameters; lower"), "{told}");
    }
}
