//! What `rollout-worker inspect MODEL --json` and `inspect-rewards` say, for processes that never link libtorch.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{ComputeDevice, Dtype, RewardSection};

/// A model as its configurations and the headers of its files describe it, under the settings asked about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelInspection {
    /// The folder, resolved.
    pub folder: PathBuf,
    /// Class of the pipeline.
    pub class: String,
    /// Element type that the base weights are converted to.
    pub dtype: Dtype,
    /// The parts with weights: `transformer`, `vae` (the decoder alone), and the text encoders.
    pub components: Vec<ComponentInspection>,
    /// Blocks of the transformer.
    pub n_blocks: usize,
    /// Features of a token between its blocks.
    pub width: i64,
    /// Features of a pixel in the widest full-size layer of the image decoder.
    pub decoder_width: i64,
    /// The size asked about, or the model's own.
    pub image: ImageInspection,
    /// Tokens of a prompt's text at the `max_sequence_length` asked about.
    pub text_tokens: usize,
    /// Features of a text token, and of the pooled text: 0 where the family has none.
    pub embedding_widths: (i64, i64),
    /// Network rows per evaluation at the guidance asked about: 2 where a negative prompt takes part.
    pub rows_per_evaluation: usize,
    /// The same at the guidance of held-out images.
    pub rows_per_held_out_evaluation: usize,
    /// The adapter, if a rank was given.
    pub adapter: Option<AdapterInspection>,
    /// The steps that can be drawn for training, if steps were asked about.
    pub steps: Vec<StepInspection>,
}

/// What `rollout-worker inspect-rewards` reads from its standard input, since addresses may have passwords in them and the
/// arguments of a process are there for all to see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RewardInquiry {
    /// Where networks would live. It need not be here.
    pub device: ComputeDevice,
    /// Whether servers are to be knocked at.
    pub knock: bool,
    /// Whether connections of the run will be secured, so that its workers have certificates to show.
    #[serde(default)]
    pub is_secure: bool,
    /// The rewards, each with its place in the config, as `rewards[0]`.
    pub rewards: Vec<(String, RewardSection)>,
}

/// A reward as its options and the headers of its files describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardInspection {
    /// Its place in the config, as `rewards[0]`.
    pub key: String,
    /// What metrics call it.
    pub name: String,
    /// Its weights in bytes, on the device asked about.
    pub bytes: u64,
    /// Why it cannot be built.
    pub problem: Option<String>,
    /// Whether that is for want of something on this host, such as files, a program or a way to its server, so that it may be
    /// built on another one.
    #[serde(default)]
    pub is_of_host: bool,
}

/// One part of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComponentInspection {
    /// Its folder.
    pub name: String,
    /// Numbers it holds, tables included.
    pub parameters: u64,
    /// Bytes of them in the element type they are converted to, which may be wider than the run's.
    pub bytes: u64,
    /// Bytes of the largest tensor.
    pub largest_tensor_bytes: u64,
}

/// What an image of one size is to the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageInspection {
    /// Pixels.
    pub height: i64,
    /// Pixels.
    pub width: i64,
    /// Shape of its latents, without the batch axis.
    pub latent_shape: Vec<i64>,
    /// Tokens that the transformer sees of it.
    pub tokens: usize,
}

/// What a step that can be trained is under the model's schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepInspection {
    /// Its position in the schedule.
    pub step: usize,
    /// Noise level that it starts from.
    pub sigma: f64,
    /// Its weight in the policy loss.
    pub weight: f64,
}

/// What an adapter adds to the transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterInspection {
    /// Inner width.
    pub rank: i64,
    /// Linear modules that get one.
    pub modules: usize,
    /// Numbers that are trained, float32.
    pub parameters: u64,
    /// What of the file that training goes on from is not the transformer's and is left out, in words.
    #[serde(default)]
    pub left_out: Vec<String>,
}

impl fmt::Display for ModelInspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.folder.display(), self.class)?;
        writeln!(f, "{:<20} {:>14} {:>12} {:>16}", "component", "parameters", "bytes", "largest tensor")?;
        for part in &self.components {
            let (bytes, largest) =
                (human_bytes(part.bytes as f64), human_bytes(part.largest_tensor_bytes as f64));
            writeln!(f, "{:<20} {:>14} {bytes:>12} {largest:>16}", part.name, part.parameters)?;
        }
        writeln!(f, "{:<20} {} blocks of width {}", "transformer", self.n_blocks, self.width)?;
        let ImageInspection { height, width, latent_shape, tokens } = &self.image;
        writeln!(f, "{:<20} {height}×{width} pixels, latents {latent_shape:?}, {tokens} tokens", "image")?;
        let rows = self.rows_per_evaluation;
        writeln!(f, "{:<20} {} tokens, {rows} rows per evaluation", "text", self.text_tokens)?;
        if let Some(AdapterInspection { rank, modules, parameters, .. }) = &self.adapter {
            writeln!(f, "{:<20} rank {rank}, {modules} modules, {parameters} parameters", "adapter")?;
        }
        for StepInspection { step, sigma, weight } in &self.steps {
            writeln!(f, "{:<20} weight {weight:.3}, from noise level {sigma:.3}", format!("step {step}"))?;
        }
        Ok(())
    }
}

/// Bytes with a binary unit, three digits.
pub fn human_bytes(bytes: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::published_models::component;

    fn example() -> ModelInspection {
        ModelInspection {
            folder: "models/x".into(),
            class: "StableDiffusion3Pipeline".to_owned(),
            dtype: Dtype::Bfloat16,
            components: vec![
                component("text_encoder", 1024, 2, 512),
                component("transformer", 1 << 20, 2, 1 << 19),
            ],
            n_blocks: 24,
            width: 1536,
            decoder_width: 256,
            image: ImageInspection { height: 512, width: 256, latent_shape: vec![16, 64, 32], tokens: 512 },
            text_tokens: 205,
            embedding_widths: (4096, 2048),
            rows_per_evaluation: 2,
            rows_per_held_out_evaluation: 1,
            adapter: Some(AdapterInspection { rank: 32, modules: 8, parameters: 9, left_out: Vec::new() }),
            steps: vec![StepInspection { step: 3, sigma: 0.857_692, weight: 1.004_262 }],
        }
    }

    #[test]
    fn an_inspection_survives_its_json() {
        let text = serde_json::to_string(&example()).expect("json");
        assert_eq!(serde_json::from_str::<ModelInspection>(&text).expect("read back"), example());
        assert!(
            text.contains(r#""dtype":"bfloat16""#) && text.contains(r#""latent_shape":[16,64,32]"#),
            "{text}"
        );
    }

    #[test]
    fn the_table_names_every_part() {
        let table = example().to_string();
        for word in
            ["text_encoder ", "1048576", "2.0 MiB", "24 blocks", "512×256", "205 tokens", "rank 32", "1.004"]
        {
            assert!(table.contains(word), "{word} is not in {table}");
        }
    }
}
