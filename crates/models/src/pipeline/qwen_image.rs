//! Qwen-Image.

mod guidance;
mod text;

use std::path::Path;

use tch::Tensor;

use self::text::PromptEncoder;
use super::family::{Family, Latents, Side};
use super::scheduler::Scheduler;
use crate::ModelError;
use crate::autoencoder_kl_qwen_image::AutoencoderKlQwenImageConfig;
use crate::patches::{PACKED_SIDE, from_patches, to_patches};
use crate::qwen_image::QwenImageTransformer;
use crate::weights::WeightOptions;

/// Pixels along the side of the images that Qwen-Image was made for; its configuration does not say.
const USUAL_SIDE: i64 = 1328;

/// Folders whose class is `QwenImagePipeline`.
pub(super) struct QwenImage;

impl Family for QwenImage {
    const TRANSFORMER: &'static str = "QwenImageTransformer2DModel";
    type Transformer = QwenImageTransformer;
    type Vae = AutoencoderKlQwenImageConfig;
    type TextEncoders = PromptEncoder;
    const TEXT_ENCODERS: &'static str = "text encoder";
    /// A space: the model has not seen empty texts.
    const NEGATIVE_PROMPT: Option<&'static str> = Some(" ");
    const IS_PACKED: bool = true;

    fn open_transformer(folder: &Path, weights: &WeightOptions) -> Result<QwenImageTransformer, ModelError> {
        QwenImageTransformer::open(folder, weights)
    }

    fn latents(transformer: &QwenImageTransformer) -> Latents {
        Latents {
            channels: transformer.config().out_channels,
            stated_as: "the transformer's `out_channels`",
            patch: PACKED_SIDE,
            most_patches: None,
            usual_side: Side::Pixels(USUAL_SIDE),
        }
    }

    fn embedding_widths(transformer: &QwenImageTransformer) -> (i64, i64) {
        (transformer.config().joint_attention_dim, 0)
    }

    fn open_text_encoders(
        dir: &Path,
        (expected, _): (i64, i64),
        weights: &WeightOptions,
    ) -> Result<PromptEncoder, ModelError> {
        let encoder = PromptEncoder::open(dir, weights)?;
        let width = encoder.width();
        if width != expected {
            let reason = format!("{width} differs from the transformer's `joint_attention_dim` {expected}");
            return Err(ModelError::config(&dir.join("text_encoder/config.json"), "hidden_size", reason));
        }
        Ok(encoder)
    }

    fn passes_noise_levels(_: &Scheduler, _: &Path) -> Result<bool, ModelError> {
        Ok(true)
    }

    fn timestep_scale(scheduler: &Scheduler) -> f64 {
        scheduler.thousands_of_timesteps()
    }

    fn guided(conditional: Tensor, unconditional: &Tensor, scale: f64) -> Tensor {
        let size = conditional.size();
        let packed = |velocity: &Tensor| to_patches(velocity, PACKED_SIDE);
        let guided = guidance::rescaled(&packed(&conditional), &packed(unconditional), scale);
        from_patches(&guided, (size[2], size[3]), PACKED_SIDE)
    }
}
