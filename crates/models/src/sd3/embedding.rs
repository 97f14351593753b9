//! What enters the first block: patches with their positions, and the vector of timestep and pooled text.

use tch::{Kind, Tensor};

use super::config::Sd3Config;
use crate::layers::{timestep_embedding, timestep_frequencies};
use crate::network::OtherTensor;
use crate::projection::{AdapterMode, Projection};
use crate::weights::{Init, Scope};

/// Channels of the sinusoidal timestep embedding, the same in every SD3 model.
const TIMESTEP_CHANNELS: i64 = 256;

/// Patches of the latent image as tokens, with the positions of a window from the middle of a stored table.
pub(super) struct PatchEmbedding {
    weight: Tensor,
    bias: Tensor,
    /// `[1, side, side, width]`; not trained.
    positions: Tensor,
    patch: i64,
}

impl PatchEmbedding {
    pub(super) fn new(scope: &Scope, config: &Sd3Config) -> Self {
        let (width, patch, side) = (config.width(), config.patch_size, config.pos_embed_max_size);
        let projection = scope.child("proj");
        let positions =
            scope.tensor_or("pos_embed", &[1, side * side, width], |_| sinusoidal_positions(config));
        Self {
            weight: projection.tensor("weight", &[width, config.in_channels, patch, patch], Init::Xavier),
            bias: projection.tensor("bias", &[width], Init::Zeros),
            positions: positions.view([1, side, side, width]),
            patch,
        }
    }

    /// # Shapes
    /// `[batch, channels, height, width]` → `[batch, patches, width]`, rows of patches from the top.
    pub(super) fn forward(&self, latents: &Tensor) -> Tensor {
        let size = latents.size();
        let (rows, columns) = (size[2] / self.patch, size[3] / self.patch);
        // A convolution whose stride is its kernel is a matrix product over unfolded patches, which is faster.
        let patches = latents
            .reshape([size[0], size[1], rows, self.patch, columns, self.patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([size[0], rows * columns, size[1] * self.patch * self.patch]);
        patches.linear(&self.weight.flatten(1, -1), Some(&self.bias)) + self.window(rows, columns)
    }

    fn window(&self, rows: i64, columns: i64) -> Tensor {
        let side = self.positions.size()[1];
        let (top, left) = ((side - rows) / 2, (side - columns) / 2);
        self.positions.narrow(1, top, rows).narrow(2, left, columns).flatten(1, 2)
    }

    pub(super) fn tensors(&self) -> [OtherTensor; 3] {
        let positions = ("pos_embed.pos_embed".to_owned(), self.positions.flatten(1, 2));
        [
            OtherTensor::trained("pos_embed.proj.weight".into(), &self.weight),
            OtherTensor::trained("pos_embed.proj.bias".into(), &self.bias),
            OtherTensor { parameter: None, checkpoint: vec![positions] },
        ]
    }
}

/// The table of positions of a model trained from nothing: sines, then cosines, of the column, then of the row.
///
/// # Shapes
/// `[1, side², width]`, float32.
///
/// Source: Peebles and Xie 2023 (DiT), rescaled to the training size as in SD3.
fn sinusoidal_positions(config: &Sd3Config) -> Tensor {
    let (side, width) = (config.pos_embed_max_size, config.width());
    let quarter = width / 4;
    let scale = (config.sample_size / config.patch_size).max(1) as f64 / side as f64;
    let options = (Kind::Double, tch::Device::Cpu);
    let frequencies = (Tensor::arange(quarter, options) * (-(10_000_f64.ln()) / quarter as f64)).exp();
    let angles = (Tensor::arange(side, options) * scale).unsqueeze(1) * frequencies;
    // Narrowed before it is repeated: at published sizes the table has hundreds of millions of numbers.
    let axis = Tensor::cat(&[angles.sin(), angles.cos()], 1).to_kind(Kind::Float);
    let across = axis.unsqueeze(0).expand([side, side, width / 2], false);
    let down = axis.unsqueeze(1).expand([side, side, width / 2], false);
    Tensor::cat(&[across, down], 2).view([1, side * side, width])
}

/// Timestep and pooled text as one vector per row.
pub(super) struct ConditionEmbedding {
    frequencies: Tensor,
    timestep: [Projection; 2],
    text: [Projection; 2],
}

impl ConditionEmbedding {
    pub(super) fn new(scope: &Scope, config: &Sd3Config) -> Self {
        let width = config.width();
        let pair = |name: &str, inputs| {
            let scope = scope.child(name);
            let first = Projection::single(&scope.child("linear_1"), inputs, width);
            [first, Projection::single(&scope.child("linear_2"), width, width)]
        };
        Self {
            frequencies: timestep_frequencies(TIMESTEP_CHANNELS, scope.device()),
            timestep: pair("timestep_embedder", TIMESTEP_CHANNELS),
            text: pair("text_embedder", config.pooled_projection_dim),
        }
    }

    /// # Shapes
    /// `timestep` `[batch]` in 0..1000, `pooled` `[batch, pooled width]` → `[batch, width]`.
    pub(super) fn forward(&self, timestep: &Tensor, pooled: &Tensor, mode: AdapterMode) -> Tensor {
        let through = |layers: &[Projection; 2], x: &Tensor| {
            layers[1].forward(&layers[0].forward(x, mode).silu(), mode)
        };
        let time = timestep_embedding(timestep, &self.frequencies).to_kind(pooled.kind());
        through(&self.timestep, &time) + through(&self.text, pooled)
    }

    pub(super) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.timestep.iter_mut().chain(&mut self.text)
    }

    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.timestep.iter().chain(&self.text)
    }
}
