//! FLUX.1.

mod text;

use std::path::Path;

use serde_json::Value;

use self::text::TextEncoders;
use super::family::{Family, Latents, Side};
use super::scheduler::Scheduler;
use crate::ModelError;
use crate::autoencoder_kl::AutoencoderKlConfig;
use crate::flux::FluxTransformer;
use crate::patches::PACKED_SIDE;
use crate::weights::WeightOptions;

/// Folders whose class is `FluxPipeline`.
pub(super) struct Flux;

impl Family for Flux {
    const TRANSFORMER: &'static str = "FluxTransformer2DModel";
    type Transformer = FluxTransformer;
    type Vae = AutoencoderKlConfig;
    type TextEncoders = TextEncoders;
    const TEXT_ENCODERS: &'static str = "text encoders";
    const NEGATIVE_PROMPT: Option<&'static str> = None;
    const IS_PACKED: bool = true;

    fn open_transformer(folder: &Path, weights: &WeightOptions) -> Result<FluxTransformer, ModelError> {
        FluxTransformer::open(folder, weights)
    }

    fn latents(transformer: &FluxTransformer) -> Latents {
        Latents {
            channels: transformer.config().latent_channels(),
            stated_as: "a quarter of the transformer's `in_channels`,",
            patch: PACKED_SIDE,
            most_patches: None,
            usual_side: Side::Pixels(1024),
        }
    }

    fn embedding_widths(transformer: &FluxTransformer) -> (i64, i64) {
        let config = transformer.config();
        (config.joint_attention_dim, config.pooled_projection_dim)
    }

    fn open_text_encoders(
        dir: &Path,
        widths: (i64, i64),
        weights: &WeightOptions,
    ) -> Result<TextEncoders, ModelError> {
        TextEncoders::open(dir, widths, weights)
    }

    /// Of all pipelines, this one alone looks for `use_flow_sigmas`, with which it leaves the grid to the scheduler.
    fn passes_noise_levels(scheduler: &Scheduler, dir: &Path) -> Result<bool, ModelError> {
        let key = "use_flow_sigmas";
        match scheduler.config().get(key) {
            None | Some(Value::Null) => Ok(true),
            Some(Value::Bool(leaves_them)) => Ok(!leaves_them),
            Some(other) => {
                let reason = format!("{other} is not supported; write true or false");
                Err(ModelError::config(&dir.join("scheduler/scheduler_config.json"), key, reason))
            }
        }
    }

    fn timestep_scale(scheduler: &Scheduler) -> f64 {
        scheduler.thousands_of_timesteps()
    }
}
