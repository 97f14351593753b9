//! What learner and rollout worker hold in memory, part by part, reckoned from a run config and what a model is.
//!
//! Weights and optimizer state are counted; in float32 the merged copy of adapted weights, and further versions that a
//! learner publishes or a worker keeps, are part of what is calibrated. Activations follow from blocks, tokens and width times a number that
//! says how many copies of a token's features are alive; those numbers, and what a CPU process holds besides, are
//! calibrated by measurements of the SD3 family on a CPU (docs/measurements.md).

use crate::{AdapterMethod, Dtype, ModelInspection, RunConfig};

/// Where a part of a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryPlace {
    /// On the accelerator; in host memory where the device is the CPU.
    Device,
    /// In host memory.
    Host,
}

/// One part of what a process holds.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPart {
    /// What it is.
    pub name: &'static str,
    /// Bytes at the fullest moment.
    pub bytes: f64,
    /// Where.
    pub place: MemoryPlace,
}

/// What one process of each kind holds.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryPlan {
    /// Parts of the learner.
    pub learner: Vec<MemoryPart>,
    /// Parts of one rollout worker.
    pub worker: Vec<MemoryPart>,
}

/// What a process holds before it knows of a model: libtorch, its thread pools and its allocator's reserve. Measured.
pub const PROCESS_BASELINE: f64 = 150e6;

/// Copies of a token's features that one block keeps for its backward pass: input, normalised and modulated forms,
/// queries, keys and values, attention's output and projection, and the widened features of the MLP (four times as many)
/// before and after its activation function. Measured with the SD3 family; taken over for the others.
const KEPT_PER_BLOCK: f64 = 22.0;

/// Copies of a token's features alive at the fullest moment of a block without a backward pass. Measured likewise.
const ALIVE_IN_BLOCK: f64 = 28.0;

/// On a CPU, shares of the transformer's bytes that stay resident besides: freed memory that the allocator keeps and
/// whatever the CPU's kernels hold. Measured on learner and worker at two sizes of model; not explained further.
const KEPT_BY_CPU: (f64, f64) = (0.75, 0.42);

/// Copies of the widest full-size feature map alive in the decoder's last blocks.
const ALIVE_IN_DECODER: f64 = 4.0;

/// Latent elements that a worker decodes at once.
const DECODED_ELEMENTS: f64 = 131_072.0;

/// Bytes of a float32.
const FLOAT32: f64 = 4.0;

/// Reckons the memory of one learner and one worker.
pub fn memory_plan(config: &RunConfig, model: &ModelInspection) -> MemoryPlan {
    MemoryPlan { learner: learner_parts(config, model), worker: worker_parts(config, model) }
}

/// Bytes of all parts in a place.
pub fn total_bytes(parts: &[MemoryPart], place: MemoryPlace) -> f64 {
    parts.iter().filter(|part| part.place == place).map(|part| part.bytes).sum()
}

/// Parameters that are trained.
pub fn trained_parameters(config: &RunConfig, model: &ModelInspection) -> f64 {
    match config.adapter.method {
        AdapterMethod::Full => component(model, |name| name == "transformer").0,
        AdapterMethod::Lora => model.adapter.as_ref().map_or(0.0, |adapter| adapter.parameters as f64),
    }
}

fn learner_parts(config: &RunConfig, model: &ModelInspection) -> Vec<MemoryPart> {
    let trained = trained_parameters(config, model) * FLOAT32;
    let is_full = config.adapter.method == AdapterMethod::Full;
    let network = component(model, |name| name == "transformer").1;
    let has_reference = is_full && config.training.kl_beta > 0.0;
    // A full-precision network is its own master.
    let has_masters = !is_full || model.dtype == Dtype::Bfloat16;
    let mut parts = vec![device("transformer", network)];
    if has_reference {
        parts.push(device("transformer, as it was at first", network));
    }
    parts.extend([
        device("trained weights, float32", if has_masters { trained } else { 0.0 }),
        device("their gradient", trained),
        device("moments of AdamW", 2.0 * trained),
        device("their moving average", trained),
        device("versions that sampled", sampling_versions(config, model)),
        device("activations in training", training_activations(config, model)),
        host("trajectories of an iteration", trajectory_bytes(config, model)),
        host("kept by allocator and CPU kernels", on_cpu(config, KEPT_BY_CPU.0 * network)),
        host("process", PROCESS_BASELINE),
    ]);
    parts
}

fn worker_parts(config: &RunConfig, model: &ModelInspection) -> Vec<MemoryPart> {
    let is_full = config.adapter.method == AdapterMethod::Full;
    let adapter = if is_full { 0.0 } else { trained_parameters(config, model) * FLOAT32 };
    let network = component(model, |name| name == "transformer").1;
    let encoders = component(model, |name| name != "transformer" && name != "vae").1;
    vec![
        device("transformer", network),
        device("text encoders", encoders),
        device("image decoder", component(model, |name| name == "vae").1),
        device("adapter, float32", adapter),
        device("activations in sampling", sampling_activations(config, model)),
        device("activations in decoding", decoding_activations(config, model)),
        host("weights on the wire", trained_parameters(config, model) * FLOAT32),
        host("kept by allocator and CPU kernels", on_cpu(config, KEPT_BY_CPU.1 * network)),
        host("process", PROCESS_BASELINE),
    ]
}

/// The trained weights of versions that tasks in hand were sampled with: that of the iteration and, with a lag, its
/// successor. They are kept where iterations lag, and where means are computed from them again.
fn sampling_versions(config: &RunConfig, model: &ModelInspection) -> f64 {
    if config.run.lag == 0 && !config.recomputes_means() {
        return 0.0;
    }
    let element = match config.adapter.method {
        AdapterMethod::Lora => FLOAT32,
        AdapterMethod::Full => dtype_bytes(model.dtype),
    };
    f64::from(1 + config.run.lag) * element * trained_parameters(config, model)
}

/// Bytes that there are only where the device is the CPU.
fn on_cpu(config: &RunConfig, bytes: f64) -> f64 {
    if config.resources.device.is_cpu() { bytes } else { 0.0 }
}

fn device(name: &'static str, bytes: f64) -> MemoryPart {
    MemoryPart { name, bytes, place: MemoryPlace::Device }
}

fn host(name: &'static str, bytes: f64) -> MemoryPart {
    MemoryPart { name, bytes, place: MemoryPlace::Host }
}

/// Parameters and bytes of the components of some names.
fn component(model: &ModelInspection, is_meant: impl Fn(&str) -> bool) -> (f64, f64) {
    let meant = model.components.iter().filter(|component| is_meant(&component.name));
    meant.fold((0.0, 0.0), |sum, component| {
        (sum.0 + component.parameters as f64, sum.1 + component.bytes as f64)
    })
}

/// Bytes of one copy of the features of all tokens of a network row.
fn features(model: &ModelInspection) -> f64 {
    (model.image.tokens + model.text_tokens) as f64 * model.width as f64 * dtype_bytes(model.dtype)
}

fn training_activations(config: &RunConfig, model: &ModelInspection) -> f64 {
    let (n_blocks, rows) = (model.n_blocks as f64, training_rows(config) * model.rows_per_evaluation);
    let copies = match config.training.gradient_checkpointing {
        true => n_blocks + KEPT_PER_BLOCK,
        false => n_blocks * KEPT_PER_BLOCK,
    };
    rows as f64 * features(model) * copies
}

fn sampling_activations(config: &RunConfig, model: &ModelInspection) -> f64 {
    sampling_rows(config, model) as f64 * features(model) * ALIVE_IN_BLOCK
}

/// Latents in the fullest training forward.
fn training_rows(config: &RunConfig) -> usize {
    let cells = config.iteration_cost().trained_cells / config.n_train_tasks() as f64;
    config.training.max_rows.min(cells.ceil() as usize)
}

/// Network rows in the fullest call of a training or an evaluation task, rows of guidance included.
fn sampling_rows(config: &RunConfig, model: &ModelInspection) -> usize {
    let sampling = &config.sampling;
    // Where all branches are alive, or along a path, a seed has as many latents as it will have images.
    let per_seed = config.iteration_cost().images_per_seed;
    let evaluated = config.evaluation.prompts_per_task * config.evaluation.images_per_prompt;
    let of_training = sampling.max_rows.min(per_seed * sampling.seeds_per_task) * model.rows_per_evaluation;
    let of_evaluation = sampling.max_rows.min(evaluated) * model.rows_per_held_out_evaluation;
    of_training.max(of_evaluation)
}

fn decoding_activations(config: &RunConfig, model: &ModelInspection) -> f64 {
    let elements: f64 = model.image.latent_shape.iter().map(|&size| size as f64).product();
    let at_once = (DECODED_ELEMENTS / elements).floor().max(1.0);
    let pixels = match config.sampling.vae_tile {
        0 => (model.image.height * model.image.width) as f64,
        tile => (tile * tile).min(model.image.height * model.image.width) as f64,
    };
    let channels = model.decoder_width as f64;
    at_once * pixels * channels * ALIVE_IN_DECODER * dtype_bytes(config.model.decoder_dtype)
}

/// States, means and next latents of all trained cells, which the learner holds until it has trained on them.
fn trajectory_bytes(config: &RunConfig, model: &ModelInspection) -> f64 {
    let elements: f64 = model.image.latent_shape.iter().map(|&size| size as f64).product();
    let per_cell = (2 + config.sampling.branches_per_seed) as f64 * elements * FLOAT32;
    config.iteration_cost().trained_cells * per_cell * f64::from(1 + config.run.lag)
}

pub(crate) fn dtype_bytes(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::Float32 => 4.0,
        Dtype::Bfloat16 => 2.0,
    }
}
