//! What the run config says, in the terms of the maths.

use std::path::Path;

use config::{RunConfig, SamplingSection};
use flow::{FlowError, RolloutPlan, Schedule, trained_steps};
use models::DecoderOptions;
use models::weights::{TensorSource, WeightOptions};
use rewards::Resources;
use service::Hub;
use tch::{Device, Kind};

use crate::wavefront::Rollout;

/// The rollout of an iteration's tasks along `schedule`.
///
/// # Errors
/// If the config's steps, branches or noise level contradict each other.
pub fn rollout(
    sampling: &SamplingSection,
    run_seed: u64,
    iteration: u32,
    schedule: Schedule,
) -> Result<Rollout, FlowError> {
    let trained = trained_steps(&sampling.branch_steps, sampling.steps, run_seed, iteration)?;
    let plan = RolloutPlan::new(sampling.algorithm, sampling.steps, trained, sampling.branches_per_seed)?;
    Rollout::new(schedule, plan, sampling.step_rule, sampling.noise_level, sampling.max_rows)
}

/// The element type that the config means.
pub fn kind(dtype: config::Dtype) -> Kind {
    match dtype {
        config::Dtype::Float32 => Kind::Float,
        config::Dtype::Bfloat16 => Kind::BFloat16,
    }
}

/// Where the base weights of a run come from, and where they go.
pub fn weights(config: &RunConfig, device: Device) -> WeightOptions {
    let model = &config.model;
    let variant = (!model.variant.is_empty()).then(|| model.variant.as_str().into());
    let source =
        if model.random_weights { TensorSource::Random(config.run.seed) } else { TensorSource::Files };
    WeightOptions { kind: kind(model.dtype), device, variant, source }
}

/// How images are decoded.
pub fn decoder(config: &RunConfig) -> DecoderOptions {
    let tile = (config.sampling.vae_tile > 0).then_some(config.sampling.vae_tile);
    DecoderOptions { kind: kind(config.model.decoder_dtype), tile }
}

/// What scorers may need on this machine.
pub fn reward_resources(device: Device, hub: Hub) -> Resources {
    let find_model = Box::new(move |model: &Path| Ok(hub.resolve(model)?));
    let variable = Box::new(|name: &str| std::env::var(name).ok());
    Resources { device, source: TensorSource::Files, find_model, variable }
}

/// The element type of a name, for the command line.
///
/// # Errors
/// If it has another name than `float32` and `bfloat16`.
pub fn dtype(name: &str) -> Result<config::Dtype, serde_json::Error> {
    serde_json::from_value(name.into())
}

/// A device that is not here, or that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The name is unknown.
    #[error("unknown device `{0}`; use `cpu` or `cuda`")]
    Unknown(String),
    /// There is no CUDA device, or libtorch was built without CUDA.
    #[error("device `{0}` is not available: this libtorch sees no CUDA device; use `cpu`")]
    NoCuda(String),
}

/// The device called `name`.
///
/// # Errors
/// If the name is unknown or there is no such device.
pub fn device(name: &str) -> Result<Device, DeviceError> {
    match name {
        "cpu" => Ok(Device::Cpu),
        "cuda" if tch::Cuda::is_available() => Ok(Device::Cuda(0)),
        "cuda" => Err(DeviceError::NoCuda(name.to_owned())),
        _ => Err(DeviceError::Unknown(name.to_owned())),
    }
}
