//! Attention in which image and text tokens see each other.

use tch::Tensor;

use super::config::QwenImageConfig;
use super::positions::rotate;
use crate::layers::{attention, rms_norm};
use crate::network::{OtherTensor, Streams};
use crate::projection::{AdapterMode, Projection};
use crate::weights::{Init, Scope};

/// Added to the mean square in the norm of queries and keys.
const EPSILON: f64 = 1e-6;

/// Query, key and value of one stream of tokens, with the norms of the first two.
struct Stream {
    qkv: Projection,
    norm_paths: [String; 2],
    /// `[query or key, 1, head width]`.
    norm: Tensor,
    heads: i64,
}

impl Stream {
    fn new(scope: &Scope, config: &QwenImageConfig, modules: [&str; 3], norms: [&str; 2]) -> Self {
        let (width, head_width) = (config.width(), config.attention_head_dim);
        let weights = norms.map(|name| scope.child(name).tensor("weight", &[head_width], Init::Ones));
        Self {
            qkv: Projection::new(&modules.map(|name| (scope.child(name), width)), width, Init::Xavier),
            norm_paths: norms.map(|name| scope.child(name).path().to_owned()),
            norm: Tensor::stack(&weights, 0).unsqueeze(1),
            heads: config.num_attention_heads,
        }
    }

    /// Queries and keys, normed, and values.
    ///
    /// # Shapes
    /// `[batch, tokens, width]` → `[batch, tokens, 2, heads, head width]` and `[batch, tokens, 1, heads, head width]`.
    fn project(&self, x: &Tensor, mode: AdapterMode) -> (Tensor, Tensor) {
        let qkv = self.qkv.forward(x, mode).unflatten(-1, [3, self.heads, -1]);
        let parts = qkv.split_with_sizes([2, 1], 2);
        (rms_norm(&parts[0], &self.norm, EPSILON), parts[1].shallow_clone())
    }

    fn norm_tensor(&self) -> OtherTensor {
        let weight = |(idx, path): (usize, &String)| {
            let weight = self.norm.detach().select(0, idx as i64).squeeze_dim(0);
            (format!("{path}.weight"), weight)
        };
        OtherTensor {
            parameter: Some((format!("{}.weight", self.norm_paths.join("+")), self.norm.shallow_clone())),
            checkpoint: self.norm_paths.iter().enumerate().map(weight).collect(),
        }
    }
}

/// The attention of one block.
pub(super) struct JointAttention {
    image: Stream,
    text: Stream,
    image_out: Projection,
    text_out: Projection,
}

impl JointAttention {
    pub(super) fn new(scope: &Scope, config: &QwenImageConfig) -> Self {
        let out = |name: &str| Projection::single(&scope.child(name), config.width(), config.width());
        Self {
            image: Stream::new(scope, config, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"]),
            text: Stream::new(
                scope,
                config,
                ["add_q_proj", "add_k_proj", "add_v_proj"],
                ["norm_added_q", "norm_added_k"],
            ),
            image_out: out("to_out.0"),
            text_out: out("to_add_out"),
        }
    }

    /// # Shapes
    /// Streams `[batch, patches, width]` and `[batch, words, width]` → the same. `rotation` and `mask` run over words,
    /// then patches.
    pub(super) fn forward(
        &self,
        streams: &Streams,
        rotation: &Tensor,
        mask: Option<&Tensor>,
        mode: AdapterMode,
    ) -> Streams {
        let (words, patches) = (streams.text.size()[1], streams.image.size()[1]);
        let (text_query_key, text_value) = self.text.project(&streams.text, mode);
        let (image_query_key, image_value) = self.image.project(&streams.image, mode);
        let query_key = Tensor::cat(&[text_query_key, image_query_key], 1);
        let value = Tensor::cat(&[text_value, image_value], 1);
        // One more axis, over query and key, which turn alike.
        let query_key = rotate(&query_key, &rotation.unsqueeze(1)).unbind(2);
        let heads_first = |t: &Tensor| t.transpose(1, 2);
        let (query, key) = (heads_first(&query_key[0]), heads_first(&query_key[1]));
        let mixed = attention(&query, &key, &heads_first(&value.squeeze_dim(2)), mask);
        let mixed = mixed.transpose(1, 2).flatten(2, 3).split_with_sizes([words, patches], 1);
        Streams {
            image: self.image_out.forward(&mixed[1], mode),
            text: self.text_out.forward(&mixed[0], mode),
        }
    }

    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection> {
        [&self.image.qkv, &self.image_out, &self.text.qkv, &self.text_out].into_iter()
    }

    pub(super) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        [&mut self.image.qkv, &mut self.image_out, &mut self.text.qkv, &mut self.text_out].into_iter()
    }

    pub(super) fn norms(&self) -> [OtherTensor; 2] {
        [self.image.norm_tensor(), self.text.norm_tensor()]
    }
}
