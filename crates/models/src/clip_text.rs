//! CLIP's text encoder, with its projection or without: features of each token and of the whole text.
//!
//! Letters: B rows, L tokens, D width, P projected width.
//!
//! Source: `transformers` 4.57, `models/clip/modeling_clip.py`.

use std::path::Path;

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::ModelError;
use crate::clip_encoder::{
    Attending, ClipEncoder, ClipNames, EncoderConfig, EncoderOutput, check_heads, find_activation, placed,
};
use crate::json_file;
use crate::layers::{LayerNorm, Linear};
use crate::sizes::{check_layers, check_sizes};
use crate::weights::{Init, Scope, WeightOptions, Weights};

/// `config.json` of a CLIP text encoder; what it leaves out has the value that `transformers` gives it.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
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
    pub projection_dim: i64,
    /// Name of the nonlinearity.
    pub hidden_act: String,
    /// ε of the layer norms.
    pub layer_norm_eps: f64,
    /// Whose position holds the pooled features; 2 marks files from before this was right.
    pub eos_token_id: i64,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            projection_dim: 512,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
            eos_token_id: 49_407,
        }
    }
}

impl ClipTextConfig {
    /// The sizes of the layers; `path` and `prefix` say where the configuration stands.
    pub(crate) fn encoder(&self, path: &Path, prefix: &str) -> Result<EncoderConfig, ModelError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        check_sizes(&sizes).map_err(placed(path, prefix))?;
        check_layers(&[("num_hidden_layers", self.num_hidden_layers)]).map_err(placed(path, prefix))?;
        check_heads(path, prefix, [self.hidden_size, self.num_attention_heads])?;
        Ok(EncoderConfig {
            width: self.hidden_size,
            inner: self.intermediate_size,
            n_layers: self.num_hidden_layers,
            n_heads: self.num_attention_heads,
            epsilon: self.layer_norm_eps,
            activation: find_activation(path, &format!("{prefix}hidden_act"), &self.hidden_act)?,
        })
    }
}

/// Files written before `eos_token_id` meant anything have 2 there.
pub(crate) const LEGACY_EOS_TOKEN_ID: i64 = 2;
/// Older versions of transformers stored the numbers 0, 1, 2, ….
pub(crate) const POSITION_IDS: &str = "text_model.embeddings.position_ids";

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
    encoder: ClipEncoder,
    final_layer_norm: LayerNorm,
    text_projection: Option<Linear>,
    config: ClipTextConfig,
}

impl ClipTextModel {
    /// Opens `config.json` and `model.safetensors` in `dir`.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the tensors are not those of the configuration.
    pub fn open(dir: &Path, head: ClipHead, options: &WeightOptions) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let config: ClipTextConfig = json_file::read(&path)?;
        let encoder = config.encoder(&path, "")?;
        if head == ClipHead::Projection {
            check_sizes(&[("projection_dim", config.projection_dim)]).map_err(placed(&path, ""))?;
        }
        let weights = Weights::open(dir, "model", options)?;
        let model = Self::new(&weights.scope(""), (config, encoder), head, ClipNames::Transformers);
        weights.ignore(&[POSITION_IDS]);
        weights.finish()?;
        Ok(model)
    }

    pub(crate) fn new(
        scope: &Scope,
        (config, encoder): (ClipTextConfig, EncoderConfig),
        head: ClipHead,
        names: ClipNames,
    ) -> Self {
        let text_model = match names {
            ClipNames::Transformers => scope.child("text_model"),
            ClipNames::OpenClip => scope.clone(),
        };
        let width = encoder.width;
        let embedding = |name, rows| text_model.tensor(name, &[rows, width], Init::Normal(0.02));
        let tokens = names.pick("embeddings.token_embedding.weight", "token_embedding.weight");
        let positions = names.pick("embeddings.position_embedding.weight", "positional_embedding");
        let layers = text_model.child(names.pick("encoder.layers", "transformer.resblocks"));
        let final_norm = text_model.child(names.pick("final_layer_norm", "ln_final"));
        let sizes = [width, config.projection_dim];
        Self {
            token_embedding: embedding(tokens, config.vocab_size),
            position_embedding: embedding(positions, config.max_position_embeddings),
            encoder: ClipEncoder::new(&layers, &encoder, names, Attending::Back),
            final_layer_norm: LayerNorm::new(&final_norm, width, encoder.epsilon),
            text_projection: (head == ClipHead::Projection)
                .then(|| names.projection(scope, ["text_projection"; 2], sizes)),
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
        let hidden = Tensor::embedding(&self.token_embedding, input_ids, -1, false, false) + positions;
        let EncoderOutput { penultimate, last } = self.encoder.forward(hidden);
        let hidden = self.final_layer_norm.forward(&last);
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
