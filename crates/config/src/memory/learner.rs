//! What the learner holds.

use super::activations;
use super::parts::MemoryPart;
use super::process::{PROCESS_BASELINE, context, merged_weights, on_card, on_cpu};
use super::sizes::{FLOAT32, component_bytes, dtype_bytes, trained_parameters, version_bytes};
use crate::{AdapterMethod, Dtype, ModelInspection, RunConfig};

/// On a CPU, the share of the transformer's bytes that stays resident besides: freed memory that the allocator keeps and
/// whatever the CPU's kernels hold. Measured at two sizes of model; not explained further.
const KEPT_BY_CPU: f64 = 0.75;

/// Copies of one tensor that AdamW has alive while it moves it: root, quotient and sum of its denominator.
const TEMPORARIES_OF_ADAMW: f64 = 3.0;

/// Shifts, scales and gates of an SD3 network per block, all in one tensor: SD3.5-M's has 325 for 24 blocks (9 of the
/// image in 13 blocks and 6 in 11, 6 of the text in 23, 2 in the last, 2 after it).
const MODULATIONS_PER_BLOCK: f64 = 13.55;

/// All parts of the learner.
pub(super) fn parts(config: &RunConfig, model: &ModelInspection) -> Vec<MemoryPart> {
    let mut parts = of_networks(config, model);
    parts.extend(of_training(config, model));
    parts.extend(at_work(config, model));
    parts.push(context(config));
    parts.extend(on_host(config, model));
    parts
}

fn is_full(config: &RunConfig) -> bool {
    config.adapter.method == AdapterMethod::Full
}

/// Whether the network computes from rounded copies of what is trained: one in half precision that is trained whole.
fn has_rounded(config: &RunConfig, model: &ModelInspection) -> bool {
    is_full(config) && model.dtype == Dtype::Bfloat16
}

fn of_networks(config: &RunConfig, model: &ModelInspection) -> Vec<MemoryPart> {
    let network = component_bytes(model, |name| name == "transformer");
    let mut parts = vec![MemoryPart::device("transformer", network)];
    if is_full(config) && config.training.kl_beta > 0.0 {
        parts.push(MemoryPart::device("transformer, as it was at first", network));
    }
    parts.push(merged_weights(config, model));
    parts
}

/// The five floats of each trained number, and copies of it.
fn of_training(config: &RunConfig, model: &ModelInspection) -> Vec<MemoryPart> {
    let n_trained = trained_parameters(config, model);
    let trained = n_trained * FLOAT32;
    let is_rounded = has_rounded(config, model);
    // A full-precision network is its own master.
    let has_masters = !is_full(config) || is_rounded;
    let rounded_gradient = if is_rounded { n_trained * dtype_bytes(model.dtype) } else { 0.0 };
    // A network that has masters is restored from them after it was an earlier version; all else from copies.
    let is_set_aside = config.recomputes_means() && !is_rounded;
    vec![
        MemoryPart::device("trained weights, float32", if has_masters { trained } else { 0.0 }),
        MemoryPart::device("their gradient", trained),
        MemoryPart::device("the network's own gradient", rounded_gradient),
        MemoryPart::device("moments of AdamW", 2.0 * trained),
        MemoryPart::device("their moving average", trained),
        MemoryPart::device("trained weights set aside", if is_set_aside { trained } else { 0.0 }),
    ]
}

/// Activations, and what AdamW takes more than those, which are gone when it begins.
fn at_work(config: &RunConfig, model: &ModelInspection) -> [MemoryPart; 2] {
    let activations = activations::in_training(config, model);
    let beyond = (temporaries_of_adamw(config, model) - activations).max(0.0);
    let parts = [("activations in training", activations), ("AdamW, beyond those", on_card(config, beyond))];
    parts.map(|(name, bytes)| MemoryPart::device(name, bytes).estimated_on_card(config))
}

/// Bytes that AdamW has alive beside its state; of an adapter's small factors they are nothing.
fn temporaries_of_adamw(config: &RunConfig, model: &ModelInspection) -> f64 {
    if !is_full(config) {
        return 0.0;
    }
    let transformer = model.components.iter().find(|component| component.name == "transformer");
    let of_files =
        transformer.map_or(0.0, |part| part.largest_tensor_bytes as f64 / dtype_bytes(model.dtype));
    let modulation = match model.class.starts_with("StableDiffusion3") {
        true => MODULATIONS_PER_BLOCK * model.n_blocks as f64 * (model.width as f64).powi(2),
        false => 0.0,
    };
    TEMPORARIES_OF_ADAMW * FLOAT32 * of_files.max(modulation)
}

fn on_host(config: &RunConfig, model: &ModelInspection) -> [MemoryPart; 7] {
    let version = version_bytes(config, model);
    let moments = 2.0 * FLOAT32 * trained_parameters(config, model);
    // The policies of the iterations that are sampled, and an average to evaluate.
    let published = f64::from(2 + config.run.lag) * version;
    let network = component_bytes(model, |name| name == "transformer");
    [
        MemoryPart::host("versions that sampled", sampling_versions(config) * version),
        MemoryPart::host("versions for workers", on_card(config, published)),
        MemoryPart::host("moments, copied for a checkpoint", on_card(config, moments)),
        MemoryPart::host(
            "sums of gradient shards",
            gradients_at_a_time(config) * FLOAT32 * trained_parameters(config, model),
        ),
        MemoryPart::host("trajectories of an iteration", activations::of_trajectories(config, model)),
        MemoryPart::host("kept by allocator and CPU kernels", on_cpu(config, KEPT_BY_CPU * network)),
        MemoryPart::host("process", PROCESS_BASELINE),
    ]
}

/// Gradients that a rank holds beside the one that is computed: a tree of S shards holds log₂ S + 1 at a time, and the sum; where
/// other ranks may fail, what was summed is kept until the update is made.
fn gradients_at_a_time(config: &RunConfig) -> f64 {
    let (shards, learners) = (config.training.gradient_shards, config.resources.learners);
    match (shards, learners) {
        (1, 1) => 0.0,
        (_, 1) => f64::from(shards.ilog2() + 2),
        (_, _) => f64::from(2 * (shards.ilog2() + 1) + 1),
    }
}

/// How many versions are kept that tasks in hand were sampled with: that of the iteration and, with a lag, its successor.
/// They are kept where iterations lag, and where means are computed from them again.
fn sampling_versions(config: &RunConfig) -> f64 {
    match config.run.lag == 0 && !config.recomputes_means() {
        true => 0.0,
        false => f64::from(1 + config.run.lag),
    }
}
