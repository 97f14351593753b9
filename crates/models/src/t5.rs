//! T5's encoder: features of each token.
//!
//! Letters: B rows, L tokens, D width, N heads.
//!
//! Source: `transformers` 4.57, `models/t5/modeling_t5.py`; Raffel et al., arXiv:1910.10683.

use std::path::Path;

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::ModelError;
use crate::json_file;
use crate::layers::{Activation, Linear};
use crate::sizes::{check_layers, check_product, check_sizes};
use crate::weights::{Init, Scope, WeightOptions, Weights};

/// `config.json` of a T5 encoder.
#[derive(Debug, Clone, Deserialize)]
pub struct T5Config {
    /// Number of token ids.
    pub vocab_size: i64,
    /// Features of a token, D.
    pub d_model: i64,
    /// Width of one attention head.
    pub d_kv: i64,
    /// Width inside the feed-forward layers.
    pub d_ff: i64,
    /// Number of layers.
    pub num_layers: i64,
    /// N; `N · d_kv` need not be D.
    pub num_heads: i64,
    /// How many distances between tokens are told apart.
    pub relative_attention_num_buckets: i64,
    /// From this distance on, in tokens, all are alike.
    #[serde(default = "default_max_distance")]
    pub relative_attention_max_distance: i64,
    /// ε of the norms.
    #[serde(default = "default_layer_norm_epsilon")]
    pub layer_norm_epsilon: f64,
    /// The nonlinearity, with `gated-` before it if a second projection multiplies it.
    #[serde(default = "default_feed_forward_proj")]
    pub feed_forward_proj: String,
}

fn default_max_distance() -> i64 {
    128
}

fn default_layer_norm_epsilon() -> f64 {
    1e-6
}

fn default_feed_forward_proj() -> String {
    "relu".to_owned()
}

/// The reading of `feed_forward_proj`.
#[derive(Debug, Clone, Copy)]
struct FeedForwardKind {
    gated: bool,
    activation: Activation,
}

impl T5Config {
    fn check(&self) -> Result<(), (&'static str, String)> {
        check_layers(&[("num_layers", self.num_layers)])?;
        check_sizes(&[
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_heads", self.num_heads),
            ("relative_attention_num_buckets", self.relative_attention_num_buckets),
            ("relative_attention_max_distance", self.relative_attention_max_distance),
        ])?;
        check_product("num_heads", &[self.num_heads, self.d_kv])
    }

    fn feed_forward(&self, path: &Path) -> Result<FeedForwardKind, ModelError> {
        let name = self.feed_forward_proj.as_str();
        let (gated, name) = name.strip_prefix("gated-").map_or((false, name), |name| (true, name));
        // The reference reads "gated-gelu" as the tanh approximation, which the published weights were trained with.
        let name = if gated && name == "gelu" { "gelu_new" } else { name };
        let activation = Activation::from_name(name).ok_or_else(|| {
            let reason = format!("\"{}\" is not supported; use relu or gated-gelu", self.feed_forward_proj);
            ModelError::config(path, "feed_forward_proj", reason)
        })?;
        Ok(FeedForwardKind { gated, activation })
    }
}

/// Root-mean-square norm that also narrows a float32 residual stream to the kind of the weights.
struct Norm {
    weight: Tensor,
    epsilon: f64,
}

impl Norm {
    fn new(scope: &Scope, config: &T5Config) -> Self {
        Self {
            weight: scope.tensor("weight", &[config.d_model], Init::Ones),
            epsilon: config.layer_norm_epsilon,
        }
    }

    fn forward(&self, hidden: &Tensor) -> Tensor {
        let wide = hidden.to_kind(Kind::Float);
        let variance = wide.square().mean_dim(&[-1i64][..], true, Kind::Float);
        (hidden * (variance + self.epsilon).rsqrt()).to_kind(self.weight.kind()) * &self.weight
    }
}

struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    n_heads: i64,
}

impl Attention {
    fn new(scope: &Scope, config: &T5Config) -> Self {
        let inner = config.num_heads * config.d_kv;
        let inward = |name| Linear::new(&scope.child(name), config.d_model, inner, false);
        Self {
            q: inward("q"),
            k: inward("k"),
            v: inward("v"),
            o: Linear::new(&scope.child("o"), inner, config.d_model, false),
            n_heads: config.num_heads,
        }
    }

    /// T5 does not scale its scores: the initialisation did.
    fn forward(&self, hidden: &Tensor, position_bias: &Tensor) -> Tensor {
        // [B, L, N · d_kv] → [B, N, L, d_kv]
        let split = |x: Tensor| x.unflatten(-1, [self.n_heads, -1]).transpose(1, 2);
        let (query, key, value) =
            (split(self.q.forward(hidden)), split(self.k.forward(hidden)), split(self.v.forward(hidden)));
        let mixed = Tensor::scaled_dot_product_attention(
            &query,
            &key,
            &value,
            Some(position_bias),
            0.0,
            false,
            1.0,
            false,
        );
        self.o.forward(&mixed.transpose(1, 2).flatten(2, 3))
    }
}

struct FeedForward {
    wi: Linear,
    /// The projection that multiplies the activated one, in gated variants.
    wi_linear: Option<Linear>,
    wo: Tensor,
    activation: Activation,
}

impl FeedForward {
    fn new(scope: &Scope, config: &T5Config, kind: FeedForwardKind) -> Self {
        let inward = |name| Linear::new(&scope.child(name), config.d_model, config.d_ff, false);
        let wo = scope.child("wo").tensor("weight", &[config.d_model, config.d_ff], Init::Xavier);
        Self {
            wi: inward(if kind.gated { "wi_0" } else { "wi" }),
            wi_linear: kind.gated.then(|| inward("wi_1")),
            // In float16 its result overflows.
            wo: if wo.kind() == Kind::Half { wo.to_kind(Kind::Float) } else { wo },
            activation: kind.activation,
        }
    }

    fn forward(&self, hidden: &Tensor) -> Tensor {
        let inner = self.activation.apply(&self.wi.forward(hidden));
        let inner = match &self.wi_linear {
            Some(linear) => inner * linear.forward(hidden),
            None => inner,
        };
        inner.to_kind(self.wo.kind()).linear(&self.wo, None::<&Tensor>)
    }
}

struct Block {
    attention_norm: Norm,
    attention: Attention,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
}

impl Block {
    fn new(scope: &Scope, config: &T5Config, kind: FeedForwardKind) -> Self {
        let (first, second) = (scope.child("layer.0"), scope.child("layer.1"));
        Self {
            attention_norm: Norm::new(&first.child("layer_norm"), config),
            attention: Attention::new(&first.child("SelfAttention"), config),
            feed_forward_norm: Norm::new(&second.child("layer_norm"), config),
            feed_forward: FeedForward::new(&second.child("DenseReluDense"), config, kind),
        }
    }

    fn forward(&self, hidden: &Tensor, position_bias: &Tensor) -> Tensor {
        let hidden = hidden + self.attention.forward(&self.attention_norm.forward(hidden), position_bias);
        &hidden + self.feed_forward.forward(&self.feed_forward_norm.forward(&hidden))
    }
}

/// `T5EncoderModel`.
pub struct T5Encoder {
    shared: Tensor,
    relative_attention_bias: Tensor,
    blocks: Vec<Block>,
    final_layer_norm: Norm,
    config: T5Config,
}

impl T5Encoder {
    /// Opens `config.json` and `model.safetensors`, or its shards, in `dir`.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the tensors are not those of the configuration.
    pub fn open(dir: &Path, options: &WeightOptions) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let config: T5Config = json_file::read(&path)?;
        config.check().map_err(|(key, reason)| ModelError::config(&path, key, reason))?;
        let feed_forward = config.feed_forward(&path)?;
        if config.relative_attention_num_buckets < 4 {
            let reason = "needs at least 4: near and far distances, before and after";
            return Err(ModelError::config(&path, "relative_attention_num_buckets", reason));
        }
        let weights = Weights::open(dir, "model", options)?;
        let model = Self::new(&weights.scope(""), config, feed_forward);
        // Some files repeat the embedding under its second name, others hold the whole translation model.
        weights.ignore(&["shared.weight", "encoder.embed_tokens.weight", "decoder.", "lm_head."]);
        weights.finish()?;
        Ok(model)
    }

    fn new(scope: &Scope, config: T5Config, feed_forward: FeedForwardKind) -> Self {
        let encoder = scope.child("encoder");
        let stored_once = scope.child("encoder.embed_tokens");
        let embedding = if stored_once.has("weight") { stored_once } else { scope.child("shared") };
        let bias = encoder.child("block.0.layer.0.SelfAttention.relative_attention_bias");
        let bias_shape = [config.relative_attention_num_buckets, config.num_heads];
        let block = |idx| Block::new(&encoder.child("block").child(idx), &config, feed_forward);
        Self {
            shared: embedding.tensor("weight", &[config.vocab_size, config.d_model], Init::Normal(1.0)),
            relative_attention_bias: bias.tensor("weight", &bias_shape, Init::Normal(0.02)),
            blocks: (0..config.num_layers).map(block).collect(),
            final_layer_norm: Norm::new(&encoder.child("final_layer_norm"), &config),
            config,
        }
    }

    /// The sizes of this encoder.
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Encodes token ids; padding takes part, as the pipelines have it.
    ///
    /// # Shapes
    /// - `input_ids`: `[B, L]`, int64
    /// - returns: `[B, L, D]`
    ///
    /// # Panics
    /// If an id is not in the vocabulary.
    pub fn forward(&self, input_ids: &Tensor) -> Tensor {
        let (_, length) = input_ids.size2().expect("token ids have two axes; else this is a bug");
        let position_bias = self.position_bias(length);
        let mut hidden = Tensor::embedding(&self.shared, input_ids, -1, false, false);
        for block in &self.blocks {
            hidden = block.forward(&hidden, &position_bias);
        }
        self.final_layer_norm.forward(&hidden)
    }

    /// The bias that all layers add to their scores: `[1, N, L, L]`.
    fn position_bias(&self, length: i64) -> Tensor {
        let positions = Tensor::arange(length, (Kind::Int64, Device::Cpu));
        let offsets = positions.unsqueeze(0) - positions.unsqueeze(1);
        let buckets =
            buckets(&offsets, &self.config).flatten(0, 1).to_device(self.relative_attention_bias.device());
        let bias = self.relative_attention_bias.index_select(0, &buckets);
        bias.view([length, length, -1]).permute([2, 0, 1]).unsqueeze(0).contiguous() // [L², N] → [1, N, L, L]
    }
}

/// Which bucket the offset from a query to a key falls into: one each for near ones, then wider and wider ones, and the
/// upper half of the buckets for keys after the query.
///
/// Computed by libtorch in float32 like the reference, since its logarithm decides on which side of a boundary an
/// offset falls.
fn buckets(offsets: &Tensor, config: &T5Config) -> Tensor {
    let n_buckets = config.relative_attention_num_buckets / 2;
    let n_exact = n_buckets / 2;
    let span = (config.relative_attention_max_distance as f64 / n_exact as f64).ln();
    let distance = offsets.abs();
    let ratio = (distance.to_kind(Kind::Float) / n_exact as f64).log() / span;
    let far = (ratio * (n_buckets - n_exact) as f64).to_kind(Kind::Int64) + n_exact;
    let far = far.clamp_max(n_buckets - 1);
    offsets.gt(0).to_kind(Kind::Int64) * n_buckets + distance.where_self(&distance.lt(n_exact), &far)
}
