//! Stable Diffusion 3 and 3.5.

mod text;

use std::path::Path;

use self::text::TextEncoders;
use super::family::{Family, Latents, Side};
use super::scheduler::Scheduler;
use super::text_encoders::CLIP_LENGTH;
use crate::ModelError;
use crate::autoencoder_kl::AutoencoderKlConfig;
use crate::sd3::Sd3Transformer;
use crate::weights::WeightOptions;

/// Folders whose class is `StableDiffusion3Pipeline`.
pub(super) struct Sd3;

impl Family for Sd3 {
    const TRANSFORMER: &'static str = "SD3Transformer2DModel";
    type Transformer = Sd3Transformer;
    type Vae = AutoencoderKlConfig;
    type TextEncoders = TextEncoders;
    const TEXT_ENCODERS: &'static str = "text encoders";
    const NEGATIVE_PROMPT: Option<&'static str> = Some("");
    const IS_PACKED: bool = false;

    fn open_transformer(folder: &Path, weights: &WeightOptions) -> Result<Sd3Transformer, ModelError> {
        Sd3Transformer::open(folder, weights)
    }

    fn latents(transformer: &Sd3Transformer) -> Latents {
        let config = transformer.config();
        Latents {
            channels: config.in_channels,
            stated_as: "the transformer's `in_channels`",
            patch: config.patch_size,
            most_patches: Some(config.pos_embed_max_size),
            usual_side: Side::Latents(config.sample_size),
        }
    }

    fn embedding_widths(transformer: &Sd3Transformer) -> (i64, i64) {
        let config = transformer.config();
        (config.joint_attention_dim, config.pooled_projection_dim)
    }

    fn open_text_encoders(
        dir: &Path,
        (joint_width, expected): (i64, i64),
        weights: &WeightOptions,
    ) -> Result<TextEncoders, ModelError> {
        let encoders = TextEncoders::open(dir, joint_width, weights)?;
        let pooled = encoders.pooled_width();
        if pooled != expected {
            let reason =
                format!("{expected} differs from the {pooled} pooled features of both CLIP encoders");
            let path = dir.join("transformer/config.json");
            return Err(ModelError::config(&path, "pooled_projection_dim", reason));
        }
        Ok(encoders)
    }

    fn passes_noise_levels(_: &Scheduler, _: &Path) -> Result<bool, ModelError> {
        Ok(false)
    }

    fn timestep_scale(scheduler: &Scheduler) -> f64 {
        scheduler.num_train_timesteps()
    }

    /// CLIP's, which stand before T5's.
    fn further_text_tokens(encoders: Option<&TextEncoders>, dir: &Path) -> usize {
        encoders.map_or_else(|| stated_clip_length(dir), TextEncoders::clip_length)
    }
}

/// CLIP's tokens of a text as its tokenizer's settings have it, without the tokenizer.
fn stated_clip_length(dir: &Path) -> usize {
    let settings = crate::json_file::read(&dir.join("tokenizer/tokenizer_config.json"));
    let stated = settings.ok().and_then(|settings: serde_json::Value| settings["model_max_length"].as_u64());
    stated.and_then(|length| usize::try_from(length).ok()).unwrap_or(CLIP_LENGTH)
}
