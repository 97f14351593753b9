//! The layers that both of CLIP's towers are made of, and the two ways in which checkpoints name their tensors.
//!
//! Letters: B rows, L tokens, D width.
//!
//! Source: `transformers` 4.57, `models/clip/modeling_clip.py`; `open_clip` 3.3, `transformer.py`.

use std::path::Path;

use tch::{Kind, Tensor};

use crate::ModelError;
use crate::layers::{Activation, LayerNorm, Linear};
use crate::weights::{Init, Scope};

/// Whose names a checkpoint's tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipNames {
    /// Those of `transformers`.
    Transformers,
    /// Those of `open_clip`, which keeps query, key and value in one matrix, and projections transposed.
    OpenClip,
}

impl ClipNames {
    /// The one of two names that this is about.
    pub(crate) const fn pick(self, transformers: &'static str, open_clip: &'static str) -> &'static str {
        match self {
            Self::Transformers => transformers,
            Self::OpenClip => open_clip,
        }
    }

    /// The projection of `width` features to `outputs`, without bias.
    pub(crate) fn projection(self, scope: &Scope, names: [&'static str; 2], sizes: [i64; 2]) -> Linear {
        let [width, outputs] = sizes;
        let weight = match self {
            Self::Transformers => scope.child(names[0]).tensor("weight", &[outputs, width], Init::Xavier),
            Self::OpenClip => scope.tensor(names[1], &[width, outputs], Init::Xavier).transpose(0, 1),
        };
        Linear::of(weight, None)
    }
}

/// Which tokens a token attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attending {
    /// Those before it and itself.
    Back,
    /// All.
    Everywhere,
}

/// The sizes of a tower's layers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncoderConfig {
    /// D.
    pub width: i64,
    /// Width inside the feed-forward layers.
    pub inner: i64,
    /// Number of layers.
    pub n_layers: i64,
    /// Attention heads; they divide D.
    pub n_heads: i64,
    /// ε of the layer norms.
    pub epsilon: f64,
    /// Nonlinearity of the feed-forward layers.
    pub activation: Activation,
}

/// Puts the place of a configuration, `path` and `prefix`, before the key that is wrong in it.
pub(crate) fn placed(path: &Path, prefix: &str) -> impl Fn((&str, String)) -> ModelError {
    move |(key, reason)| ModelError::config(path, &format!("{prefix}{key}"), reason)
}

/// Checks that the heads divide the width.
pub(crate) fn check_heads(path: &Path, prefix: &str, [width, n_heads]: [i64; 2]) -> Result<(), ModelError> {
    if n_heads >= 1 && width >= 1 && width % n_heads == 0 {
        return Ok(());
    }
    let reason = format!("{n_heads} heads do not divide `hidden_size` {width}");
    Err(ModelError::config(path, &format!("{prefix}num_attention_heads"), reason))
}

/// The nonlinearity of that name, which stands under `key`.
pub(crate) fn find_activation(path: &Path, key: &str, name: &str) -> Result<Activation, ModelError> {
    Activation::from_name(name).ok_or_else(|| {
        ModelError::config(path, key, format!("\"{name}\" is not supported; use gelu or quick_gelu"))
    })
}

struct Attention {
    /// Query, key and value, one below the other.
    in_proj: Linear,
    out_proj: Linear,
    n_heads: i64,
}

impl Attention {
    fn new(scope: &Scope, config: &EncoderConfig, names: ClipNames) -> Self {
        let width = config.width;
        let (weight, bias) = match names {
            ClipNames::Transformers => {
                let parts = ["q_proj", "k_proj", "v_proj"].map(|name| (scope.child(name), width));
                let stacked = |name, row: &[i64], init| Scope::stacked(&parts, name, row, init);
                (stacked("weight", &[width], Init::Xavier), stacked("bias", &[], Init::Zeros))
            }
            ClipNames::OpenClip => (
                scope.tensor("in_proj_weight", &[3 * width, width], Init::Xavier),
                scope.tensor("in_proj_bias", &[3 * width], Init::Zeros),
            ),
        };
        Self {
            in_proj: Linear::of(weight, Some(bias)),
            out_proj: Linear::new(&scope.child("out_proj"), width, width, true),
            n_heads: config.n_heads,
        }
    }

    fn forward(&self, hidden: &Tensor, attending: Attending) -> Tensor {
        // [B, L, 3·D] → 3 × [B, heads, L, D / heads]
        let all = self.in_proj.forward(hidden).unflatten(-1, [3, self.n_heads, -1]).permute([2, 0, 3, 1, 4]);
        let mixed = Tensor::scaled_dot_product_attention(
            &all.get(0),
            &all.get(1),
            &all.get(2),
            None::<&Tensor>,
            0.0,
            attending == Attending::Back,
            None,
            false,
        );
        self.out_proj.forward(&mixed.transpose(1, 2).flatten(2, 3))
    }
}

struct Layer {
    norm_1: LayerNorm,
    attention: Attention,
    norm_2: LayerNorm,
    widen: Linear,
    narrow: Linear,
    activation: Activation,
}

impl Layer {
    fn new(scope: &Scope, config: &EncoderConfig, names: ClipNames) -> Self {
        let EncoderConfig { width, inner, epsilon, .. } = *config;
        let norm = |name| LayerNorm::new(&scope.child(name), width, epsilon);
        let mlp = scope.child("mlp");
        Self {
            norm_1: norm(names.pick("layer_norm1", "ln_1")),
            attention: Attention::new(&scope.child(names.pick("self_attn", "attn")), config, names),
            norm_2: norm(names.pick("layer_norm2", "ln_2")),
            widen: Linear::new(&mlp.child(names.pick("fc1", "c_fc")), width, inner, true),
            narrow: Linear::new(&mlp.child(names.pick("fc2", "c_proj")), inner, width, true),
            activation: config.activation,
        }
    }

    fn forward(&self, hidden: &Tensor, attending: Attending) -> Tensor {
        let hidden = hidden + self.attention.forward(&self.norm_1.forward(hidden), attending);
        let inner = self.activation.apply(&self.widen.forward(&self.norm_2.forward(&hidden)));
        hidden + self.narrow.forward(&inner)
    }
}

/// The layers of a tower.
pub(crate) struct ClipEncoder {
    layers: Vec<Layer>,
    attending: Attending,
}

/// What the layers make of a sequence.
pub(crate) struct EncoderOutput {
    /// Hidden states before the last layer: `[B, L, D]`.
    pub penultimate: Tensor,
    /// And after it.
    pub last: Tensor,
}

impl ClipEncoder {
    /// Takes the layers from the scope that they are numbered in.
    pub fn new(scope: &Scope, config: &EncoderConfig, names: ClipNames, attending: Attending) -> Self {
        let layer = |idx| Layer::new(&scope.child(idx), config, names);
        Self { layers: (0..config.n_layers).map(layer).collect(), attending }
    }

    /// # Shapes
    /// `[B, L, D]`.
    pub fn forward(&self, hidden: Tensor) -> EncoderOutput {
        let (mut penultimate, mut last) = (hidden.shallow_clone(), hidden);
        for layer in &self.layers {
            penultimate = last;
            last = layer.forward(&penultimate, self.attending);
        }
        EncoderOutput { penultimate, last }
    }
}

/// Divides each row by its Euclidean length, in float32.
pub(crate) fn unit_length(features: &Tensor) -> Tensor {
    let wide = features.to_kind(Kind::Float);
    let length = wide.norm_scalaropt_dim(2, [-1_i64], true);
    wide / length
}
