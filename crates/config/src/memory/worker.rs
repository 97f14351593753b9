//! What one rollout worker holds.

use super::parts::MemoryPart;
use super::process::{PROCESS_BASELINE, context, merged_weights, on_card, on_cpu};
use super::sizes::{FLOAT32, component_bytes, trained_parameters};
use super::{activations, rewards};
use crate::{AdapterMethod, ModelInspection, RewardInspection, RunConfig};

/// As the learner's share, measured likewise.
const KEPT_BY_CPU: f64 = 0.42;

/// All parts of a worker that samples.
pub(super) fn parts(
    config: &RunConfig,
    model: &ModelInspection,
    inspected: &[RewardInspection],
) -> Vec<MemoryPart> {
    let network = component_bytes(model, |name| name == "transformer");
    let mut parts = vec![MemoryPart::device("transformer", network)];
    if !embeds_before(config) {
        parts.push(MemoryPart::device("text encoders", encoder_bytes(model)));
    }
    parts.extend(of_sampling(config, model));
    parts.extend(rewards::weights(config, inspected));
    parts.extend(rewards::scoring(config, inspected));
    parts.extend([
        context(config),
        MemoryPart::host("weights on the wire", trained_parameters(config, model) * FLOAT32),
        MemoryPart::host("kept by allocator and CPU kernels", on_cpu(config, KEPT_BY_CPU * network)),
        MemoryPart::host("process", PROCESS_BASELINE),
    ]);
    parts
}

/// All parts of a worker while it embeds the prompts of a run, of which nothing is left when it opens its transformer;
/// rewards are there before.
pub(super) fn parts_in_embedding(
    config: &RunConfig,
    model: &ModelInspection,
    inspected: &[RewardInspection],
) -> Vec<MemoryPart> {
    if !embeds_before(config) {
        return Vec::new();
    }
    let activations = MemoryPart::device("activations in embedding", activations::in_embedding(model));
    let mut parts = vec![
        MemoryPart::device("text encoders", encoder_bytes(model)),
        activations.estimated_on_card(config),
    ];
    parts.extend(rewards::weights(config, inspected));
    parts.extend([context(config), MemoryPart::host("process", PROCESS_BASELINE)]);
    parts
}

/// Whether all prompts are embedded before anything is sampled.
fn embeds_before(config: &RunConfig) -> bool {
    !config.model.embedding_cache.as_os_str().is_empty()
}

fn encoder_bytes(model: &ModelInspection) -> f64 {
    component_bytes(model, |name| name != "transformer" && name != "vae")
}

fn of_sampling(config: &RunConfig, model: &ModelInspection) -> [MemoryPart; 6] {
    let adapter = match config.adapter.method {
        AdapterMethod::Full => 0.0,
        AdapterMethod::Lora => trained_parameters(config, model) * FLOAT32,
    };
    let estimated = |name: &str, bytes| MemoryPart::device(name, bytes).estimated_on_card(config);
    [
        MemoryPart::device("image decoder", component_bytes(model, |name| name == "vae")),
        MemoryPart::device("adapter, float32", adapter),
        merged_weights(config, model),
        estimated("activations in sampling", activations::in_sampling(config, model)),
        estimated("activations in decoding", activations::in_decoding(config, model)),
        estimated("workspace of the decoder", on_card(config, activations::of_convolution(config, model))),
    ]
}
