//! Element types, files and adapters of the networks of a run.

use config::{AdapterSection, Dtype, RunConfig};
use models::DecoderOptions;
use models::lora::LoraConfig;
use models::weights::{TensorSource, WeightOptions};
use tch::{Device, Kind};

/// The element type that a config means.
pub fn element_type(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::Float32 => Kind::Float,
        Dtype::Bfloat16 => Kind::BFloat16,
    }
}

/// Where the base weights of a run come from, and where they go.
pub fn weight_options(config: &RunConfig, device: Device) -> WeightOptions {
    let model = &config.model;
    let variant = (!model.variant.is_empty()).then(|| model.variant.as_str().into());
    let source = match model.random_weights {
        true => TensorSource::Random(config.run.seed),
        false => TensorSource::Files,
    };
    WeightOptions { kind: element_type(model.dtype), device, variant, source }
}

/// How images are decoded.
pub fn decoder_options(config: &RunConfig) -> DecoderOptions {
    let tile = (config.sampling.vae_tile > 0).then_some(config.sampling.vae_tile);
    DecoderOptions { kind: element_type(config.model.decoder_dtype), tile }
}

/// Rank, alpha and targets of an adapter.
pub fn lora_config(adapter: &AdapterSection) -> LoraConfig {
    LoraConfig { rank: adapter.rank, alpha: adapter.alpha, targets: adapter.targets.clone().into() }
}
