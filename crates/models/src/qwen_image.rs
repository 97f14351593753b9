//! The transformer of Qwen-Image: blocks over an image and a text stream that attend to each other.
//!
//! The network takes and gives latent images; that its blocks see patches of 2×2 is its own affair.
//!
//! Source: Wu et al. 2025 (Qwen-Image technical report); diffusers 0.38, `models/transformers/transformer_qwenimage.py`,
//! whose folder layout and tensor names are read.

mod config;

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::adaptive_norm::OutputHead;
use crate::condition_embedding::ConditionEmbedding;
use crate::error::ModelError;
use crate::joint_block::{BlockContext, JointBlock, JointBlockLayout};
use crate::layers::rms_norm;
use crate::network::{Network, OtherTensor, Query, Streams};
use crate::patches::{PACKED_SIDE, check_packable, from_patches, to_patches};
use crate::projection::{AdapterMode, Projection};
use crate::rotary;
use crate::weights::{Init, Scope, WeightOptions, Weights};
pub use config::QwenImageConfig;

/// The embedding counts time from 0 to this, the network from 0 to 1.
const TIMESTEP_SCALE: f64 = 1000.0;
/// Added to the mean square in the norm of text features.
const EPSILON: f64 = 1e-6;

/// The velocity network of a Qwen-Image pipeline, with an optional adapter.
pub struct QwenImageTransformer {
    config: QwenImageConfig,
    image: Projection,
    /// Weight of the norm that text features go through before anything else.
    text_norm: Tensor,
    text: Projection,
    condition: ConditionEmbedding,
    blocks: Vec<JointBlock>,
    output: OutputHead,
}

impl QwenImageTransformer {
    /// Takes the network's tensors from a scope; what is wrong with them is told by [`Weights::finish`].
    pub fn new(scope: &Scope, config: &QwenImageConfig) -> Self {
        let width = config.width();
        let layout = JointBlockLayout {
            heads: config.num_attention_heads,
            head_width: config.attention_head_dim,
            modulations: ["img_mod.1", "txt_mod.1"],
            feed_forwards: ["img_mlp", "txt_mlp"],
        };
        let block = |i| JointBlock::new(&scope.child("transformer_blocks").child(i), layout);
        Self {
            image: Projection::single(&scope.child("img_in"), config.in_channels, width),
            text_norm: scope.child("txt_norm").tensor("weight", &[config.joint_attention_dim], Init::Ones),
            text: Projection::single(&scope.child("txt_in"), config.joint_attention_dim, width),
            condition: ConditionEmbedding::new(&scope.child("time_text_embed"), None, width, false),
            blocks: (0..config.num_layers).map(block).collect(),
            output: OutputHead::new(scope, width, config.in_channels),
            config: config.clone(),
        }
    }

    /// Opens the `transformer` folder of a pipeline.
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration is not supported, or the tensors do not fit it.
    pub fn open(folder: &Path, options: &WeightOptions) -> Result<Self, ModelError> {
        let config = QwenImageConfig::read(&folder.join("config.json"))?;
        let weights = Weights::open(folder, "diffusion_pytorch_model", options)?;
        let transformer = Self::new(&weights.scope(""), &config);
        weights.finish().map(|()| transformer)
    }

    /// The configuration that the network was built from.
    pub fn config(&self) -> &QwenImageConfig {
        &self.config
    }

    /// Rotation of `words` text tokens and of the patches of a latent image.
    ///
    /// Rows and columns count from the middle, so that images of all sizes share it. A word has one position on all axes;
    /// words follow the last row or column, whichever is further out.
    fn rotation(&self, words: i64, (height, width): (i64, i64), device: Device) -> Tensor {
        let (rows, columns) = (height / PACKED_SIDE, width / PACKED_SIDE);
        let count = |from: i64, to: i64| Tensor::arange_start(from, to, (Kind::Int64, device));
        let centred = |length: i64| count(length / 2 - length, length / 2);
        let grid = |axis: Tensor| axis.expand([rows, columns], false).flatten(0, 1);
        let patches =
            [count(0, 1).unsqueeze(1), centred(rows).unsqueeze(1), centred(columns).unsqueeze(0)].map(grid);
        let first_word = (rows / 2).max(columns / 2);
        let words = count(first_word, first_word + words);
        let positions = patches.map(|axis| Tensor::cat(&[&words, &axis], 0));
        rotary::rotation(&positions, &self.config.axes_dims_rope)
    }
}

fn context(shared: &[Tensor]) -> BlockContext<'_> {
    BlockContext { condition: &shared[0], rotation: &shared[1], mask: shared.get(2) }
}

/// Which keys count, text before image, as what is added to attention's scores: `[B, 1, 1, words + patches]`.
///
/// Positions go by a token's place whether it counts or not, so a row's padding changes nothing for its other tokens.
fn key_mask(text_mask: &Tensor, patches: i64, kind: Kind) -> Tensor {
    let padding = text_mask.eq(0.0).constant_pad_nd([0, patches]);
    padding.zeros_like().to_kind(kind).masked_fill(&padding, f64::NEG_INFINITY).unsqueeze(1).unsqueeze(1)
}

impl Network for QwenImageTransformer {
    /// All blocks read the condition, the rotation of queries and keys, and, where text is masked, the mask.
    fn begin(&self, query: &Query, mode: AdapterMode) -> (Streams, Vec<Tensor>) {
        let timestep = query.timestep.to_kind(Kind::Float) * TIMESTEP_SCALE;
        let condition = self.condition.forward(&timestep, query.guidance_scale, query.pooled, mode).silu();
        let size = query.latents.size();
        let rotation = self.rotation(query.text.size()[1], (size[2], size[3]), query.latents.device());
        let patches = to_patches(query.latents, PACKED_SIDE);
        let mask = query.text_mask.map(|mask| key_mask(mask, patches.size()[1], patches.kind()));
        let streams = Streams {
            image: self.image.forward(&patches, mode),
            text: self.text.forward(&rms_norm(query.text, &self.text_norm, EPSILON), mode),
        };
        (streams, [condition, rotation].into_iter().chain(mask).collect())
    }

    fn width(&self) -> i64 {
        self.config.width()
    }

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, block_idx: usize, streams: Streams, shared: &[Tensor], mode: AdapterMode) -> Streams {
        self.blocks[block_idx].forward(streams, context(shared), mode)
    }

    fn end(&self, streams: Streams, shared: &[Tensor], query: &Query, mode: AdapterMode) -> Tensor {
        let size = query.latents.size();
        let patches = self.output.forward(&streams.image, &shared[0], mode);
        from_patches(&patches, (size[2], size[3]), PACKED_SIDE)
    }

    fn projections(&self) -> Vec<&Projection> {
        let first = [&self.image, &self.text].into_iter().chain(self.condition.projections());
        let blocks = self.blocks.iter().flat_map(JointBlock::projections);
        first.chain(blocks).chain(self.output.projections()).collect()
    }

    fn projections_mut(&mut self) -> Vec<&mut Projection> {
        let first = [&mut self.image, &mut self.text].into_iter().chain(self.condition.projections_mut());
        let blocks = self.blocks.iter_mut().flat_map(JointBlock::projections_mut);
        first.chain(blocks).chain(self.output.projections_mut()).collect()
    }

    fn other_tensors(&self) -> Vec<OtherTensor> {
        let text_norm = OtherTensor::trained("txt_norm.weight".into(), &self.text_norm);
        std::iter::once(text_norm).chain(self.blocks.iter().flat_map(JointBlock::norms)).collect()
    }

    fn check_size(&self, height: i64, width: i64) -> Result<(), ModelError> {
        check_packable(height, width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_count_from_the_middle_and_words_go_on_from_the_edge() {
        let config: QwenImageConfig = serde_json::from_str(
            r#"{"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 6, "axes_dims_rope": [2, 2, 2],
                "joint_attention_dim": 2}"#,
        )
        .unwrap();
        let weights = Weights::random(1, Kind::Float, Device::Cpu);
        let transformer = QwenImageTransformer::new(&weights.scope(""), &config);
        let rotation = transformer.rotation(2, (6, 8), Device::Cpu).view([2 + 12, 3, 2]);
        let angle = |token: i64, axis: i64| {
            let part = |which| rotation.double_value(&[token, axis, which]);
            part(1).atan2(part(0))
        };
        // Each axis has one frequency, 1. Words are at 2 and 3; patches in rows -2 to 0 and columns -2 to 1.
        let expected = [(0, [2.0; 3]), (1, [3.0; 3]), (2, [0.0, -2.0, -2.0]), (13, [0.0, 0.0, 1.0])];
        for (token, angles) in expected {
            for (axis, want) in angles.into_iter().enumerate() {
                assert!((angle(token, axis as i64) - want).abs() < 1e-6, "token {token}, axis {axis}");
            }
        }
    }
}
