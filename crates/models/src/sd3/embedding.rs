//! What enters the first block: patches with their positions.

use tch::{Kind, Tensor};

use super::config::Sd3Config;
use crate::network::OtherTensor;
use crate::patches::to_patches;
use crate::weights::{Init, Scope};

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
        // A convolution whose stride is its kernel is a matrix product over unfolded patches, which is faster.
        let patches = to_patches(latents, self.patch);
        patches.linear(&self.weight.flatten(1, -1), Some(&self.bias))
            + self.window(size[2] / self.patch, size[3] / self.patch)
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
    let axis = Tensor::cat(&[angles.sin(), angles.cos()], 1);
    let across = axis.unsqueeze(0).expand([side, side, width / 2], false);
    let down = axis.unsqueeze(1).expand([side, side, width / 2], false);
    Tensor::cat(&[across, down], 2).view([1, side * side, width]).to_kind(Kind::Float)
}
