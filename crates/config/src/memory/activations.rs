//! What forward and backward passes hold: blocks, tokens and width times a number that says how many copies of a token's
//! features are alive.
//!
//! Those numbers are calibrated by measurements of the SD3 family in float32 on a CPU (docs/measurements.md) and taken
//! over for other families and for cards, where nothing has been measured.

use super::sizes::{FLOAT32, dtype_bytes};
use crate::{Dtype, ModelInspection, RunConfig};

/// Copies of a token's features that one block keeps for its backward pass in float32: input, normalised and modulated
/// forms, queries, keys and values, attention's output and projection, and the widened features of the MLP (four times as
/// many) before and after its activation function. Measured.
const KEPT_PER_BLOCK: f64 = 22.0;

/// The same in bfloat16, where `rms_norm` keeps queries and keys in float32 as well: 11 copies against 7 for an attention
/// (counted in libtorch's graph), of which SD3.5-M has 37 in 24 blocks: 22 + 4·37/24.
const KEPT_PER_BLOCK_IN_HALF: f64 = 28.0;

/// Copies of a token's features alive at the fullest moment of a block without a backward pass. Measured in float32; in
/// bfloat16 the float32 copies of `rms_norm` come at another, emptier moment of the block.
pub(super) const ALIVE_IN_BLOCK: f64 = 28.0;

/// Copies of the widest full-size feature map alive in the decoder's last blocks. Measured.
const ALIVE_IN_DECODER: f64 = 4.0;

/// Copies of that map in the workspace of a convolution on a card: cuDNN's fast kernels want channels last, and transpose
/// input and output of a tensor that is not. By reading; never measured.
const COPIES_OF_CONVOLUTION: f64 = 2.0;

/// Latent elements that a worker decodes at once.
const DECODED_ELEMENTS: f64 = 131_072.0;

/// Bytes of one copy of the features of all tokens of a network row.
fn features(model: &ModelInspection) -> f64 {
    (model.image.tokens as f64 + model.text_tokens as f64) * model.width as f64 * dtype_bytes(model.dtype)
}

/// Bytes at the fullest moment of a training forward and its backward pass.
pub(super) fn in_training(config: &RunConfig, model: &ModelInspection) -> f64 {
    let kept = match model.dtype {
        Dtype::Float32 => KEPT_PER_BLOCK,
        Dtype::Bfloat16 => KEPT_PER_BLOCK_IN_HALF,
    };
    // The base of a KL term is evaluated while the policy's activations wait for the backward pass.
    let of_reference = if config.training.kl_beta > 0.0 { ALIVE_IN_BLOCK } else { 0.0 };
    let n_blocks = model.n_blocks as f64;
    let copies = match config.training.gradient_checkpointing {
        true => n_blocks + kept.max(of_reference),
        false => n_blocks * kept + of_reference,
    };
    let rows = training_rows(config) as f64 * model.rows_per_evaluation as f64;
    rows * features(model) * copies
}

/// Bytes at the fullest moment of a forward pass that samples.
pub(super) fn in_sampling(config: &RunConfig, model: &ModelInspection) -> f64 {
    sampling_rows(config, model) * features(model) * ALIVE_IN_BLOCK
}

/// Bytes at the fullest moment of embedding a prompt; prompts are embedded one by one.
pub(super) fn in_embedding(model: &ModelInspection) -> f64 {
    let (width, _) = model.embedding_widths;
    model.text_tokens as f64 * width as f64 * dtype_bytes(model.dtype) * ALIVE_IN_BLOCK
}

/// Bytes at the fullest moment of decoding.
pub(super) fn in_decoding(config: &RunConfig, model: &ModelInspection) -> f64 {
    widest_map(config, model) * dtype_bytes(config.model.decoder_dtype) * ALIVE_IN_DECODER
}

/// Bytes of a convolution's workspace in decoding on a card.
pub(super) fn of_convolution(config: &RunConfig, model: &ModelInspection) -> f64 {
    widest_map(config, model) * dtype_bytes(config.model.decoder_dtype) * COPIES_OF_CONVOLUTION
}

/// States, means and next latents of all trained cells, which the learner holds until it has trained on them.
pub(super) fn of_trajectories(config: &RunConfig, model: &ModelInspection) -> f64 {
    let per_cell = (2 + config.sampling.branches_per_seed) as f64 * latent_elements(model) * FLOAT32;
    config.iteration_cost().trained_cells * per_cell * f64::from(1 + config.run.lag)
}

/// Latents in the fullest training forward.
fn training_rows(config: &RunConfig) -> usize {
    let cells = config.iteration_cost().trained_cells / config.n_train_tasks() as f64;
    config.training.max_rows.min(cells.ceil() as usize)
}

/// Network rows in the fullest call of a training or an evaluation task, rows of guidance included.
fn sampling_rows(config: &RunConfig, model: &ModelInspection) -> f64 {
    let sampling = &config.sampling;
    // Where all branches are alive, or along a path, a seed has as many latents as it will have images.
    let per_seed = config.iteration_cost().images_per_seed;
    let evaluated = config.evaluation.prompts_per_task * config.evaluation.images_per_prompt;
    let of_training = sampling.max_rows.min(per_seed * sampling.seeds_per_task) as f64;
    let of_evaluation = sampling.max_rows.min(evaluated) as f64;
    let (rows, held_out_rows) = (model.rows_per_evaluation, model.rows_per_held_out_evaluation);
    (of_training * rows as f64).max(of_evaluation * held_out_rows as f64)
}

/// Numbers in the widest full-size feature map of what is decoded at once.
fn widest_map(config: &RunConfig, model: &ModelInspection) -> f64 {
    let at_once = (DECODED_ELEMENTS / latent_elements(model)).floor().max(1.0);
    let image = model.image.height as f64 * model.image.width as f64;
    let pixels = match config.sampling.vae_tile {
        0 => image,
        tile => (tile as f64 * tile as f64).min(image),
    };
    at_once * pixels * model.decoder_width as f64
}

fn latent_elements(model: &ModelInspection) -> f64 {
    model.image.latent_shape.iter().map(|&size| size as f64).product()
}

#[cfg(test)]
mod tests {
    use crate::published_models::sd35_medium;
    use crate::{ImageInspection, ModelInspection, plan, preset};

    /// An inspection comes from another program: whatever its numbers are, there is a plan of them.
    #[test]
    fn the_largest_numbers_and_the_smallest_have_a_plan() {
        for (size, count) in [(i64::MAX, usize::MAX), (i64::MIN, 0), (0, 0)] {
            let image =
                ImageInspection { height: size, width: size, latent_shape: vec![size; 3], tokens: count };
            let model = ModelInspection {
                n_blocks: count,
                width: size,
                decoder_width: size,
                image,
                text_tokens: count,
                embedding_widths: (size, size),
                rows_per_evaluation: count,
                rows_per_held_out_evaluation: count,
                ..sd35_medium()
            };
            for name in ["tempflow-tiny-cpu", "dgx-geneval-sd3-pr"] {
                let config = preset(name).expect("a preset").config;
                let text = plan(&config, Some(model.clone()), Vec::new()).to_string();
                assert!(text.contains("memory of the learner"), "{text}");
            }
        }
    }
}
