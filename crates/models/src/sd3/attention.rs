//! Attention over image and text tokens together, and over the image alone.

use tch::Tensor;

use super::config::Sd3Config;
use crate::layers::{attention, rms_norm};
use crate::network::OtherTensor;
use crate::projection::{AdapterMode, Projection};
use crate::query_key_norm::{EPSILON, QueryKeyNorm};
use crate::weights::{Init, Scope};

/// Query, key and value of one stream of tokens, with the weights of their norms.
struct Stream {
    qkv: Projection,
    norm: Option<QueryKeyNorm>,
}

impl Stream {
    fn new(scope: &Scope, config: &Sd3Config, modules: [&str; 3], norms: [&str; 2]) -> Self {
        let width = config.width();
        let qkv = Projection::new(&modules.map(|name| (scope.child(name), width)), width, Init::Xavier);
        let norm =
            config.qk_norm.is_some().then(|| QueryKeyNorm::new(scope, norms, config.attention_head_dim));
        Self { qkv, norm }
    }

    /// # Shapes
    /// `[batch, tokens, width]` → `[batch, tokens, 3, heads, head width]`, not normed yet.
    fn project(&self, x: &Tensor, config: &Sd3Config, mode: AdapterMode) -> Tensor {
        let (batch, tokens, _) = dimensions(x);
        self.qkv.forward(x, mode).view([
            batch,
            tokens,
            3,
            config.num_attention_heads,
            config.attention_head_dim,
        ])
    }
}

/// Attention in which image and text tokens see each other.
pub(super) struct JointAttention {
    image: Stream,
    text: Stream,
    image_out: Projection,
    /// Absent in the last block, whose text output nobody reads.
    text_out: Option<Projection>,
}

impl JointAttention {
    pub(super) fn new(scope: &Scope, config: &Sd3Config, last: bool) -> Self {
        let width = config.width();
        Self {
            image: Stream::new(scope, config, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"]),
            text: Stream::new(
                scope,
                config,
                ["add_q_proj", "add_k_proj", "add_v_proj"],
                ["norm_added_q", "norm_added_k"],
            ),
            image_out: Projection::single(&scope.child("to_out.0"), width, width),
            text_out: (!last).then(|| Projection::single(&scope.child("to_add_out"), width, width)),
        }
    }

    /// # Shapes
    /// `image` `[batch, patches, width]`, `text` `[batch, words, width]` → the same, text absent in the last block.
    pub(super) fn forward(
        &self,
        image: &Tensor,
        text: &Tensor,
        config: &Sd3Config,
        mode: AdapterMode,
    ) -> (Tensor, Option<Tensor>) {
        let (_, patches, _) = dimensions(image);
        let (_, words, _) = dimensions(text);
        let qkv =
            Tensor::cat(&[self.image.project(image, config, mode), self.text.project(text, config, mode)], 1);
        let norm = match (&self.image.norm, &self.text.norm) {
            (Some(image), Some(text)) => {
                Some(weight_per_token(&[(image.weight(), patches), (text.weight(), words)]))
            }
            _ => None,
        };
        let Some(text_out) = &self.text_out else {
            return (self.image_out.forward(&attend(&qkv, norm.as_ref(), patches), mode), None);
        };
        // Split, here and below, where narrowing twice would make the backward pass add up two padded tensors.
        let mixed = attend(&qkv, norm.as_ref(), patches + words).split_with_sizes([patches, words], 1);
        (self.image_out.forward(&mixed[0], mode), Some(text_out.forward(&mixed[1], mode)))
    }

    pub(super) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        [&mut self.image.qkv, &mut self.image_out, &mut self.text.qkv].into_iter().chain(&mut self.text_out)
    }

    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection> {
        [&self.image.qkv, &self.image_out, &self.text.qkv].into_iter().chain(&self.text_out)
    }

    pub(super) fn norms(&self) -> impl Iterator<Item = OtherTensor> {
        self.image.norm.iter().chain(&self.text.norm).map(QueryKeyNorm::tensor)
    }
}

/// Attention of the image tokens among themselves: the second one of SD3.5's dual blocks.
pub(super) struct ImageAttention {
    image: Stream,
    out: Projection,
}

impl ImageAttention {
    pub(super) fn new(scope: &Scope, config: &Sd3Config) -> Self {
        Self {
            image: Stream::new(scope, config, ["to_q", "to_k", "to_v"], ["norm_q", "norm_k"]),
            out: Projection::single(&scope.child("to_out.0"), config.width(), config.width()),
        }
    }

    /// # Shapes
    /// `[batch, patches, width]` → the same.
    pub(super) fn forward(&self, image: &Tensor, config: &Sd3Config, mode: AdapterMode) -> Tensor {
        let qkv = self.image.project(image, config, mode);
        let (_, patches, _) = dimensions(image);
        self.out.forward(&attend(&qkv, self.image.norm.as_ref().map(QueryKeyNorm::weight), patches), mode)
    }

    pub(super) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        [&mut self.image.qkv, &mut self.out].into_iter()
    }

    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection> {
        [&self.image.qkv, &self.out].into_iter()
    }

    pub(super) fn norms(&self) -> impl Iterator<Item = OtherTensor> {
        self.image.norm.iter().map(QueryKeyNorm::tensor)
    }
}

/// Norm weights of consecutive runs of tokens.
///
/// # Shapes
/// Each `[2, 1, head width]` → `[tokens, 2, 1, head width]`.
fn weight_per_token(runs: &[(&Tensor, i64)]) -> Tensor {
    let expanded = runs.iter().map(|(weight, tokens)| {
        let size = weight.size();
        weight.unsqueeze(0).expand([*tokens, size[0], size[1], size[2]], false)
    });
    Tensor::cat(&expanded.collect::<Vec<_>>(), 0)
}

/// Attention of the first `queries` tokens over all.
///
/// # Shapes
/// `[batch, tokens, 3, heads, head width]` → `[batch, queries, width]`; `norm` broadcasts to the queries and keys.
fn attend(qkv: &Tensor, norm: Option<&Tensor>, queries: i64) -> Tensor {
    let parts = qkv.split_with_sizes([2, 1], 2);
    let query_key =
        norm.map_or_else(|| parts[0].shallow_clone(), |weight| rms_norm(&parts[0], weight, EPSILON));
    let query_key = query_key.unbind(2);
    let heads_first = |t: &Tensor| t.transpose(1, 2);
    let query = heads_first(&query_key[0].narrow(1, 0, queries));
    let (key, value) = (heads_first(&query_key[1]), heads_first(&parts[1].squeeze_dim(2)));
    attention(&query, &key, &value, None).transpose(1, 2).flatten(2, 3)
}

fn dimensions(x: &Tensor) -> (i64, i64, i64) {
    x.size3().expect("token tensors have three dimensions; anything else is a bug")
}
