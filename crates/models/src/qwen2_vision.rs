//! The vision tower of Qwen2-VL: from the patches of images to embeddings that stand beside those of text.
//!
//! Letters: P patches of all images together, F numbers of a patch, C features of a patch, N heads, D features of a head,
//! M patches along the side of a merge block, H features of an embedding.
//!
//! The patches of an image come in merge blocks: row by row of M × M squares, and row by row within a square, whose patches
//! end up as one embedding. A patch's numbers run over channel, frame, row and column. An image sees itself alone.
//!
//! Source: `transformers` 4.57, `models/qwen2_vl/modeling_qwen2_vl.py`.

mod config;

use tch::{Device, Kind, Tensor};

pub use config::Qwen2VisionConfig;

use crate::layers::{Activation, LayerNorm, Linear, attention};
use crate::rotary::{self, HalfRotation};
use crate::weights::{Init, Scope};

/// ε of all norms.
const EPSILON: f64 = 1e-6;
/// Base of the rotary frequencies.
const THETA: f64 = 10_000.0;

/// How many patches an image has along each side; multiples of M.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PatchGrid {
    /// From top to bottom.
    pub rows: i64,
    /// From left to right.
    pub columns: i64,
}

impl PatchGrid {
    /// Number of patches.
    pub fn patches(self) -> i64 {
        self.rows * self.columns
    }

    /// The grid of merge blocks, each of which becomes one embedding.
    pub fn merged(self, merge_size: i64) -> Self {
        Self { rows: self.rows / merge_size, columns: self.columns / merge_size }
    }

    /// Angles by which the features of each patch are turned: the first half of them by its row, the rest by its column.
    ///
    /// # Shapes
    /// `frequencies` `[D / 4]` → `[patches, D / 2]`, float64.
    fn angles(self, merge_size: i64, frequencies: &Tensor) -> Tensor {
        let blocks = self.merged(merge_size);
        let index = |count: i64| Tensor::arange(count, (Kind::Double, frequencies.device()));
        let order = [blocks.rows, blocks.columns, merge_size, merge_size];
        let rows = index(self.rows).view([blocks.rows, 1, merge_size, 1]).expand(order, false);
        let columns = index(self.columns).view([1, blocks.columns, 1, merge_size]).expand(order, false);
        let angles = [rows, columns].map(|position| position.flatten(0, -1).outer(frequencies));
        Tensor::cat(&angles, 1)
    }
}

struct Attention {
    qkv: Linear,
    proj: Linear,
    n_heads: i64,
}

impl Attention {
    fn new(scope: &Scope, config: &Qwen2VisionConfig) -> Self {
        let width = config.embed_dim;
        Self {
            qkv: Linear::new(&scope.child("qkv"), width, 3 * width, true),
            proj: Linear::new(&scope.child("proj"), width, width, true),
            n_heads: config.num_heads,
        }
    }

    /// Each patch sees all of its image; `lengths` are the images' numbers of patches.
    fn forward(&self, hidden: &Tensor, rotation: &HalfRotation, lengths: &[i64]) -> Tensor {
        // [P, 3 · N · D] → [3, N, P, D]
        let all = self.qkv.forward(hidden).unflatten(-1, [3, self.n_heads, -1]).permute([1, 2, 0, 3]);
        let (query, key, value) = (rotation.apply(&all.get(0)), rotation.apply(&all.get(1)), all.get(2));
        // [N, P, D] → [1, N, patches of an image, D] of each image
        let split = |x: &Tensor| x.unsqueeze(0).split_with_sizes(lengths, 2);
        let images = split(&query).into_iter().zip(split(&key)).zip(split(&value));
        let mixed: Vec<Tensor> =
            images.map(|((query, key), value)| attention(&query, &key, &value, None)).collect();
        // [1, N, P, D] → [P, N · D]
        self.proj.forward(&Tensor::cat(&mixed, 2).squeeze_dim(0).transpose(0, 1).flatten(1, 2))
    }
}

struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Block {
    fn new(scope: &Scope, config: &Qwen2VisionConfig) -> Self {
        let (width, inner) = (config.embed_dim, config.inner_width());
        Self {
            norm1: LayerNorm::new(&scope.child("norm1"), width, EPSILON),
            attn: Attention::new(&scope.child("attn"), config),
            norm2: LayerNorm::new(&scope.child("norm2"), width, EPSILON),
            fc1: Linear::new(&scope.child("mlp.fc1"), width, inner, true),
            fc2: Linear::new(&scope.child("mlp.fc2"), inner, width, true),
            activation: config.activation(),
        }
    }

    fn forward(&self, hidden: &Tensor, rotation: &HalfRotation, lengths: &[i64]) -> Tensor {
        let hidden = hidden + self.attn.forward(&self.norm1.forward(hidden), rotation, lengths);
        let inner = self.activation.apply(&self.fc1.forward(&self.norm2.forward(&hidden)));
        hidden + self.fc2.forward(&inner)
    }
}

/// Makes one embedding of the M² patches of a merge block.
struct PatchMerger {
    ln_q: LayerNorm,
    first: Linear,
    last: Linear,
    block_width: i64,
}

impl PatchMerger {
    fn new(scope: &Scope, config: &Qwen2VisionConfig) -> Self {
        let block_width = config.embed_dim * config.spatial_merge_size * config.spatial_merge_size;
        Self {
            ln_q: LayerNorm::new(&scope.child("ln_q"), config.embed_dim, EPSILON),
            first: Linear::new(&scope.child("mlp.0"), block_width, block_width, true),
            last: Linear::new(&scope.child("mlp.2"), block_width, config.hidden_size, true),
            block_width,
        }
    }

    fn forward(&self, hidden: &Tensor) -> Tensor {
        let blocks = self.ln_q.forward(hidden).view([-1, self.block_width]); // [P, C] → [P / M², C · M²]
        self.last.forward(&Activation::Gelu.apply(&self.first.forward(&blocks)))
    }
}

/// The vision tower.
pub struct Qwen2VisionTower {
    /// A three-dimensional convolution whose steps are as long as its kernel, which is a matrix product over patches:
    /// `[C, channels, frames, side, side]`.
    patch_embed: Tensor,
    blocks: Vec<Block>,
    merger: PatchMerger,
    config: Qwen2VisionConfig,
}

impl Qwen2VisionTower {
    /// Takes the tower's tensors from a scope; what is wrong with them is told by `Weights::finish`.
    pub fn new(scope: &Scope, config: Qwen2VisionConfig) -> Self {
        let (channels, frames, side) = (config.in_channels, config.temporal_patch_size, config.patch_size);
        let kernel = [config.embed_dim, channels, frames, side, side];
        Self {
            patch_embed: scope.child("patch_embed.proj").tensor("weight", &kernel, Init::Xavier),
            blocks: (0..config.depth)
                .map(|idx| Block::new(&scope.child("blocks").child(idx), &config))
                .collect(),
            merger: PatchMerger::new(&scope.child("merger"), &config),
            config,
        }
    }

    /// The sizes of this tower.
    pub fn config(&self) -> &Qwen2VisionConfig {
        &self.config
    }

    /// Embeds the patches of images, one image after the other.
    ///
    /// # Shapes
    /// - `pixel_values`: `[P, F]`, of any element type; `grids` those of the images in the same order
    /// - returns: `[P / M², H]`
    ///
    /// # Panics
    /// If the shapes do not fit the model, or the grids the patches.
    pub fn forward(&self, pixel_values: &Tensor, grids: &[PatchGrid]) -> Tensor {
        let (kind, device) = (self.patch_embed.kind(), self.patch_embed.device());
        let rotation = self.rotation(grids, device);
        let lengths: Vec<i64> = grids.iter().map(|grid| grid.patches()).collect();
        let patches = pixel_values.to_device(device).to_kind(kind);
        let embedded = patches.linear(&self.patch_embed.flatten(1, -1), None::<&Tensor>);
        let hidden =
            self.blocks.iter().fold(embedded, |hidden, block| block.forward(&hidden, &rotation, &lengths));
        self.merger.forward(&hidden)
    }

    fn rotation(&self, grids: &[PatchGrid], device: Device) -> HalfRotation {
        let frequencies = rotary::frequencies(THETA, self.config.head_width() / 2, device);
        let angles: Vec<Tensor> =
            grids.iter().map(|grid| grid.angles(self.config.spatial_merge_size, &frequencies)).collect();
        HalfRotation::new(&Tensor::cat(&angles, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_follow_the_patches_block_by_block() {
        let grid = PatchGrid { rows: 2, columns: 4 };
        let angles = grid.angles(2, &Tensor::from_slice(&[1.0_f64, 0.5]));
        let positions = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)];
        for (patch, (row, column)) in positions.into_iter().enumerate() {
            let found = Vec::<f64>::try_from(angles.get(patch as i64)).unwrap();
            let (row, column) = (f64::from(row), f64::from(column));
            assert_eq!(found, [row, row / 2.0, column, column / 2.0]);
        }
    }
}
