//! CLIP's text encoder, with its projection or without: features of each token and of the whole text.
//!
//! Letters: B rows, L tokens, D width, P projected width.
//!
//! Source: `transformers` 4.57, `models/clip/modeling_clip.py`.

use std::path::Path;

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::ModelError;
use crate::json_file;
use crate::layers::{Activation, LayerNorm, Linear};
use crate::weights::{Init, Scope, WeightOptions, Weights};

/// `config.json` of a CLIP text encoder.
#[derive(Debug, Clone, Deserialize)]
pub struct ClipTextConfig {
    /// Number of token ids.
    pub vocab_size: i64,
    /// D.
    pub hidden_size: i64,
    /// Width inside the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Attention heads; must divide D.
    pub num_attention_heads: i64,
    /// The longest sequence.
    pub max_position_embeddings: i64,
    /// P; means nothing to an encoder without projection.
    #[serde(default = "default_projection_dim")]
    pub projection_dim: i64,
    /// Name of the nonlinearity.
    #[serde(default = "default_hidden_act")]
    pub hidden_act: String,
    /// ε of the layer norms.
    #[serde(default = "default_layer_norm_eps")]
    pub layer_norm_eps: f64,
    /// Whose position holds the pooled features; 2 marks files from before this was right.
    #[serde(default = "default_eos_token_id")]
    pub eos_token_id: i64,
}

fn default_projection_dim() -> i64 {
    512
}

fn default_hidden_act() -> String {
    "quick_gelu".to_owned()
}

fn default_layer_norm_eps() -> f64 {
    1e-5
}

fn default_eos_token_id() -> i64 {
    49_407
}

/// Files written before `eos_token_id` meant anything have 2 there.
const LEGACY_EOS_TOKEN_ID: i64 = 2;

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    n_heads: i64,
}

impl Attention {
    fn new(scope: &Scope, config: &ClipTextConfig) -> Self {
        let width = config.hidden_size;
        let linear = |name| Linear::new(&scope.child(name), width, width, true);
        Self {
            q_proj: linear("q_proj"),
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            out_proj: linear("out_proj"),
            n_heads: config.num_attention_heads,
        }
    }

    fn forward(&self, hidden: &Tensor) -> Tensor {
        // [B, L, D] → [B, heads, L, D / heads]
        let split = |x: Tensor| x.unflatten(-1, [self.n_heads, -1]).transpose(1, 2);
        let (query, key, value) = (
            split(self.q_proj.forward(hidden)),
            split(self.k_proj.forward(hidden)),
            split(self.v_proj.forward(hidden)),
        );
        let mixed = Tensor::scaled_dot_product_attention(
            &query,
            &key,
            &value,
            None::<&Tensor>,
            0.0,
            true,
            None,
            false,
        );
        self.out_proj.forward(&mixed.transpose(1, 2).flatten(2, 3))
    }
}

struct Layer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl Layer {
    fn new(scope: &Scope, config: &ClipTextConfig, activation: Activation) -> Self {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        Self {
            layer_norm1: LayerNorm::new(&scope.child("layer_norm1"), width, eps),
            self_attn: Attention::new(&scope.child("self_attn"), config),
            layer_norm2: LayerNorm::new(&scope.child("layer_norm2"), width, eps),
            fc1: Linear::new(&scope.child("mlp.fc1"), width, inner, true),
            fc2: Linear::new(&scope.child("mlp.fc2"), inner, width, true),
            activation,
        }
    }

    fn forward(&self, hidden: &Tensor) -> Tensor {
        let hidden = hidden + self.self_attn.forward(&self.layer_norm1.forward(hidden));
        let inner = self.activation.apply(&self.fc1.forward(&self.layer_norm2.forward(&hidden)));
        hidden + self.fc2.forward(&inner)
    }
}

/// What the encoder says about a text.
#[derive(Debug)]
pub struct ClipTextOutput {
    /// Hidden states before the last layer: `[B, L, D]`.
    pub penultimate: Tensor,
    /// The features at the end token, normed: `[B, P]` where they are projected, else `[B, D]`.
    pub pooled: Tensor,
}

/// What becomes of the features at the end token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipHead {
    /// They are projected: `CLIPTextModelWithProjection`.
    Projection,
    /// They stay as they are: `CLIPTextModel`.
    Bare,
}

impl ClipHead {
    /// The class that `model_index.json` names.
    pub const fn class_name(self) -> &'static str {
        match self {
            Self::Projection => "CLIPTextModelWithProjection",
            Self::Bare => "CLIPTextModel",
        }
    }
}

/// CLIP's text encoder.
pub struct ClipTextModel {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    config: ClipTextConfig,
}

impl ClipTextModel {
    /// Opens `config.json` and `model.safetensors` in `dir`.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the tensors are not those of the configuration.
    pub fn open(dir: &Path, head: ClipHead, options: WeightOptions) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let config: ClipTextConfig = json_file::read(&path)?;
        let activation = check(&config, &path)?;
        let weights = Weights::open(dir, "model", options)?;
        let model = Self::new(&weights.scope(""), config, head, activation);
        // Older versions of transformers stored the numbers 0, 1, 2, ….
        weights.ignore(&["text_model.embeddings.position_ids"]);
        weights.finish()?;
        Ok(model)
    }

    fn new(scope: &Scope, config: ClipTextConfig, head: ClipHead, activation: Activation) -> Self {
        let text_model = scope.child("text_model");
        let embeddings = text_model.child("embeddings");
        let width = config.hidden_size;
        let embedding =
            |name, rows| embeddings.child(name).tensor("weight", &[rows, width], Init::Normal(0.02));
        let layer = |idx| Layer::new(&text_model.child("encoder.layers").child(idx), &config, activation);
        Self {
            token_embedding: embedding("token_embedding", config.vocab_size),
            position_embedding: embedding("position_embedding", config.max_position_embeddings),
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            final_layer_norm: LayerNorm::new(
                &text_model.child("final_layer_norm"),
                width,
                config.layer_norm_eps,
            ),
            text_projection: (head == ClipHead::Projection)
                .then(|| Linear::new(&scope.child("text_projection"), width, config.projection_dim, false)),
            config,
        }
    }

    /// The sizes of this encoder.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// Features of the whole text.
    pub fn pooled_width(&self) -> i64 {
        match self.text_projection {
            Some(_) => self.config.projection_dim,
            None => self.config.hidden_size,
        }
    }

    /// Encodes token ids.
    ///
    /// # Shapes
    /// - `input_ids`: `[B, L]`, int64, L at most `max_position_embeddings`
    ///
    /// # Panics
    /// If L is too long or an id is not in the vocabulary.
    pub fn forward(&self, input_ids: &Tensor) -> ClipTextOutput {
        let (_, length) = input_ids.size2().expect("token ids have two axes; else this is a bug");
        let positions = self.position_embedding.narrow(0, 0, length);
        let mut hidden = Tensor::embedding(&self.token_embedding, input_ids, -1, false, false) + positions;
        let mut penultimate = hidden.shallow_clone();
        for layer in &self.layers {
            penultimate = hidden;
            hidden = layer.forward(&penultimate);
        }
        let hidden = self.final_layer_norm.forward(&hidden);
        let index =
            self.pooled_position(input_ids).view([-1, 1, 1]).expand([-1, 1, self.config.hidden_size], false);
        let pooled = hidden.gather(1, &index, false).squeeze_dim(1); // [B, L, D] → [B, D]
        let pooled = match &self.text_projection {
            Some(projection) => projection.forward(&pooled),
            None => pooled,
        };
        ClipTextOutput { penultimate, pooled }
    }

    /// The first end token; in legacy files the highest id, which is the end token too unless tokens were added.
    fn pooled_position(&self, input_ids: &Tensor) -> Tensor {
        match self.config.eos_token_id {
            LEGACY_EOS_TOKEN_ID => input_ids.argmax(-1, false),
            eos_token_id => input_ids.eq(eos_token_id).to_kind(Kind::Int).argmax(-1, false),
        }
    }
}

fn check(config: &ClipTextConfig, path: &Path) -> Result<Activation, ModelError> {
    let (width, n_heads) = (config.hidden_size, config.num_attention_heads);
    if n_heads < 1 || width % n_heads != 0 {
        let reason = format!("{n_heads} heads do not divide `hidden_size` {width}");
        return Err(ModelError::config(path, "num_attention_heads", reason));
    }
    let name = &config.hidden_act;
    Activation::from_name(name).ok_or_else(|| {
        ModelError::config(path, "hidden_act", format!("\"{name}\" is not supported; use gelu or quick_gelu"))
    })
}
