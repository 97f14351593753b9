//! A block over one stream of text and image tokens, whose attention and feed-forward read the same input.

use tch::Tensor;

use super::config::FluxConfig;
use crate::adaptive_norm::{Branch, Modulation};
use crate::feed_forward::EXPANSION;
use crate::joint_block::BlockContext;
use crate::layers::Activation;
use crate::network::OtherTensor;
use crate::projection::{AdapterMode, Projection};
use crate::query_key_norm::QueryKeyNorm;
use crate::rotary::rotary_attention;
use crate::weights::{Init, Scope};

/// One block.
pub(super) struct SingleBlock {
    modulation: Modulation,
    /// Query, key, value and the inside of the feed-forward.
    inward: Projection,
    norm: QueryKeyNorm,
    outward: Projection,
    heads: i64,
    width: i64,
}

impl SingleBlock {
    pub(super) fn new(scope: &Scope, config: &FluxConfig) -> Self {
        let (width, attention) = (config.width(), scope.child("attn"));
        let inner = EXPANSION * width;
        let [query, key, value] = ["to_q", "to_k", "to_v"].map(|name| (attention.child(name), width));
        let feed_forward = (scope.child("proj_mlp"), inner);
        Self {
            modulation: Modulation::new(&[(scope.child("norm.linear"), 3)], width),
            inward: Projection::new(&[query, key, value, feed_forward], width, Init::Xavier),
            norm: QueryKeyNorm::new(&attention, ["norm_q", "norm_k"], config.attention_head_dim),
            outward: Projection::single(&scope.child("proj_out"), width + inner, width),
            heads: config.num_attention_heads,
            width,
        }
    }

    /// # Shapes
    /// `[B, words + patches, width]` → the same.
    pub(super) fn forward(&self, x: &Tensor, context: BlockContext, mode: AdapterMode) -> Tensor {
        let modulation = self.modulation.forward(context.condition, mode);
        let [branch] = Branch::all(&modulation);
        let inward = self.inward.forward(&branch.modulate(x), mode);
        let parts = inward.split_with_sizes([3 * self.width, EXPANSION * self.width], -1);
        let (query_key, value) = self.norm.split(&parts[0], self.heads);
        let attention = rotary_attention(&query_key, &value, context.rotation, context.mask);
        let both = Tensor::cat(&[attention, Activation::GeluTanh.apply(&parts[1])], -1);
        branch.add(x, &self.outward.forward(&both, mode))
    }

    pub(super) fn projections(&self) -> [&Projection; 3] {
        [self.modulation.projection(), &self.inward, &self.outward]
    }

    pub(super) fn projections_mut(&mut self) -> [&mut Projection; 3] {
        [self.modulation.projection_mut(), &mut self.inward, &mut self.outward]
    }

    pub(super) fn norms(&self) -> OtherTensor {
        self.norm.tensor()
    }
}
