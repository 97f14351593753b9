//! The causal language model of Qwen2, Qwen2-VL and Qwen2.5-VL: from tokens to the hidden states after its last norm.
//!
//! Letters: B texts, L tokens, C features of a token, N heads, D features of a head, A position axes.
//!
//! A vision tower in the same files is left alone; images come in as embeddings beside those of the text.
//!
//! Source: `transformers` 4.57, `models/qwen2_5_vl/modeling_qwen2_5_vl.py`.

mod config;

use std::path::Path;

use tch::{Kind, Tensor};

pub use config::Qwen2Config;

use crate::ModelError;
use crate::layers::{Linear, RmsNorm};
use crate::rotary::{self, HalfRotation};
use crate::weights::{Init, Scope, WeightOptions, Weights};

/// The rotation of queries and keys: a feature turns with its frequency times the token's position on the feature's axis.
///
/// # Shapes
/// `positions` `[A, B, L]`; turns what is `[B, N, L, D]`.
fn rotation(positions: &Tensor, config: &Qwen2Config) -> HalfRotation {
    let device = positions.device();
    let frequencies = rotary::frequencies(config.rope_theta(), config.head_width(), device);
    let axes = Tensor::from_slice(&config.axis_of_frequency()).to_device(device);
    // [A, B, L] → [D/2, B, L] → [B, L, D/2]
    let positions = positions.to_kind(Kind::Double).index_select(0, &axes).permute([1, 2, 0]);
    HalfRotation::new(&(positions * frequencies).unsqueeze(1))
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    head_width: i64,
}

impl Attention {
    fn new(scope: &Scope, config: &Qwen2Config) -> Self {
        let (width, head_width) = (config.hidden_size, config.head_width());
        let inward = |name, heads| Linear::new(&scope.child(name), width, heads * head_width, true);
        Self {
            q: inward("q_proj", config.num_attention_heads),
            k: inward("k_proj", config.num_key_value_heads),
            v: inward("v_proj", config.num_key_value_heads),
            o: Linear::new(&scope.child("o_proj"), width, width, false),
            head_width,
        }
    }

    /// Each token sees itself and those before it; several query heads share one head of keys and values.
    fn forward(&self, hidden: &Tensor, rotation: &HalfRotation) -> Tensor {
        // [B, L, N · D] → [B, N, L, D]
        let split = |x: Tensor| x.unflatten(-1, [-1, self.head_width]).transpose(1, 2);
        let query = rotation.apply(&split(self.q.forward(hidden)));
        let key = rotation.apply(&split(self.k.forward(hidden)));
        let value = split(self.v.forward(hidden));
        let mixed = Tensor::scaled_dot_product_attention(
            &query,
            &key,
            &value,
            None::<&Tensor>,
            0.0,
            true,
            None,
            true,
        );
        self.o.forward(&mixed.transpose(1, 2).flatten(2, 3))
    }
}

/// Two projections, one through SiLU, multiplied and projected back.
struct FeedForward {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl FeedForward {
    fn new(scope: &Scope, config: &Qwen2Config) -> Self {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Self {
            gate: Linear::new(&scope.child("gate_proj"), width, inner, false),
            up: Linear::new(&scope.child("up_proj"), width, inner, false),
            down: Linear::new(&scope.child("down_proj"), inner, width, false),
        }
    }

    fn forward(&self, hidden: &Tensor) -> Tensor {
        self.down.forward(&(self.gate.forward(hidden).silu() * self.up.forward(hidden)))
    }
}

struct Layer {
    attention_norm: RmsNorm,
    attention: Attention,
    feed_forward_norm: RmsNorm,
    feed_forward: FeedForward,
}

impl Layer {
    fn new(scope: &Scope, config: &Qwen2Config) -> Self {
        let norm = |name| RmsNorm::new(&scope.child(name), config.hidden_size, config.rms_norm_eps);
        Self {
            attention_norm: norm("input_layernorm"),
            attention: Attention::new(&scope.child("self_attn"), config),
            feed_forward_norm: norm("post_attention_layernorm"),
            feed_forward: FeedForward::new(&scope.child("mlp"), config),
        }
    }

    fn forward(&self, hidden: &Tensor, rotation: &HalfRotation) -> Tensor {
        let hidden = hidden + self.attention.forward(&self.attention_norm.forward(hidden), rotation);
        &hidden + self.feed_forward.forward(&self.feed_forward_norm.forward(&hidden))
    }
}

/// The language model without its head.
pub struct Qwen2Decoder {
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    config: Qwen2Config,
}

impl Qwen2Decoder {
    /// Opens `config.json` and `model.safetensors`, or its shards, in `dir`.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the tensors are not those of the configuration.
    pub fn open(dir: &Path, options: &WeightOptions) -> Result<Self, ModelError> {
        let config = Qwen2Config::read(&dir.join("config.json"))?;
        let weights = Weights::open(dir, "model", options)?;
        let decoder = Self::new(&language_model(&weights), config);
        weights.ignore(&["visual.", "model.visual.", "lm_head."]);
        weights.finish()?;
        Ok(decoder)
    }

    /// Takes the language model's tensors from a scope; what is wrong with them is told by [`Weights::finish`].
    pub fn new(scope: &Scope, config: Qwen2Config) -> Self {
        let layer = |idx| Layer::new(&scope.child("layers").child(idx), &config);
        let embedding_shape = [config.vocab_size, config.hidden_size];
        Self {
            embedding: scope.child("embed_tokens").tensor("weight", &embedding_shape, Init::Normal(0.02)),
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            norm: RmsNorm::new(&scope.child("norm"), config.hidden_size, config.rms_norm_eps),
            config,
        }
    }

    /// The sizes of this model.
    pub fn config(&self) -> &Qwen2Config {
        &self.config
    }

    /// What enters the first layer of each token.
    ///
    /// # Shapes
    /// - `input_ids`: `[B, L]`, int64
    /// - returns: `[B, L, C]`
    ///
    /// # Panics
    /// If an id is not in the vocabulary.
    pub fn embed(&self, input_ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embedding, input_ids, -1, false, false)
    }

    /// Runs all layers and the last norm: what `transformers` calls `hidden_states[-1]`.
    ///
    /// # Shapes
    /// - `embedded`: `[B, L, C]`; `positions`: `[A, B, L]` of each token on each axis, 3 axes for models that see images
    ///   (time, height, width) and 1 for others
    /// - returns: `[B, L, C]`
    ///
    /// # Panics
    /// If the shapes do not fit each other or the model.
    pub fn forward(&self, embedded: &Tensor, positions: &Tensor) -> Tensor {
        let rotation = rotation(positions, &self.config);
        let hidden = self
            .layers
            .iter()
            .fold(embedded.shallow_clone(), |hidden, layer| layer.forward(&hidden, &rotation));
        self.norm.forward(&hidden)
    }

    /// As [`Self::forward`], for texts without images and without padding: a token's position is the same on all axes.
    ///
    /// # Shapes
    /// - `input_ids`: `[B, L]`, int64
    /// - returns: `[B, L, C]`
    ///
    /// # Panics
    /// As [`Self::embed`].
    pub fn forward_text(&self, input_ids: &Tensor) -> Tensor {
        let (n_texts, length) = input_ids.size2().expect("token ids have two axes; else this is a bug");
        let positions = Tensor::arange(length, (Kind::Int64, input_ids.device()));
        let positions = positions.expand([self.config.axes(), n_texts, length], false);
        self.forward(&self.embed(input_ids), &positions)
    }
}

/// Where the files keep the language model: beside the vision tower under one name, as newer `transformers` write it, or
/// directly, as the published checkpoints have it.
pub(crate) fn language_model(weights: &Weights) -> Scope {
    let newer = weights.scope("model.language_model");
    if newer.has("embed_tokens.weight") { newer } else { weights.scope("model") }
}
