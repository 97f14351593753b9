//! What a process holds whatever it computes, on a CPU and on a card.

use super::parts::MemoryPart;
use super::sizes::{FLOAT32, component_bytes};
use crate::{AdapterMethod, Dtype, ModelInspection, RunConfig};

/// What a process holds before it knows of a model: libtorch, its thread pools and its allocator's reserve. Measured on a
/// CPU, in bytes.
pub(super) const PROCESS_BASELINE: f64 = 150e6;

/// What a process holds of a card before a tensor is there: CUDA's context with the kernels that it has loaded, and the
/// workspaces of cuBLAS and cuDNN, in bytes. The upper end of 0.7 to 1 GiB, which is estimated and has not been measured.
const CUDA_CONTEXT: f64 = 1024.0 * 1024.0 * 1024.0;

/// Largest share that a module's weight has of (inputs + outputs) · width: of the MLP's, which are four times as wide on
/// one side, 4 of 5; of a square one, 1 of 2.
const WEIGHT_SHARE: f64 = 0.8;

/// Bytes that there are only where the device is the CPU.
pub(super) fn on_cpu(config: &RunConfig, bytes: f64) -> f64 {
    if config.resources.device.is_cpu() { bytes } else { 0.0 }
}

/// Bytes that there are only where the device is a card; on a CPU they are among what is calibrated.
pub(super) fn on_card(config: &RunConfig, bytes: f64) -> f64 {
    if config.resources.device.is_cpu() { 0.0 } else { bytes }
}

/// CUDA's own.
pub(super) fn context(config: &RunConfig) -> MemoryPart {
    let part = MemoryPart::device("CUDA context and workspaces", on_card(config, CUDA_CONTEXT));
    part.estimated_on_card(config)
}

/// Weights with the adapter added in, which a float32 network keeps: a worker's from one version to the next, a learner's from
/// a forward pass to its backward pass. Their sizes follow from the adapter's, at most.
pub(super) fn merged_weights(config: &RunConfig, model: &ModelInspection) -> MemoryPart {
    let is_merged = config.adapter.method == AdapterMethod::Lora && model.dtype == Dtype::Float32;
    let adapter = model.adapter.as_ref().filter(|_| is_merged);
    let numbers = adapter.map_or(0.0, |adapter| {
        adapter.parameters as f64 / adapter.rank as f64 * model.width as f64 * WEIGHT_SHARE
    });
    let network = component_bytes(model, |name| name == "transformer");
    let bytes = (numbers * FLOAT32).min(network);
    MemoryPart::device("adapted weights, merged", on_card(config, bytes)).estimated_on_card(config)
}
