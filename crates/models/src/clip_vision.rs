//! CLIP's image encoder with its projection: features of a whole picture.
//!
//! Letters: B rows, S side of the picture in pixels, G patches along a side, p side of a patch, D width, P projected width.
//!
//! Source: `transformers` 4.57, `CLIPVisionModelWithProjection`; `open_clip` 3.3, `VisionTransformer`.

use std::path::Path;

use serde::Deserialize;
use tch::Tensor;

use crate::ModelError;
use crate::clip_encoder::{
    Attending, ClipEncoder, ClipNames, EncoderConfig, check_heads, find_activation, placed, unit_length,
};
use crate::layers::{LayerNorm, Linear};
use crate::sizes::{check_layers, check_product, check_sizes};
use crate::weights::{Init, Scope};

/// Older versions of transformers stored the numbers 0, 1, 2, ….
pub(crate) const POSITION_IDS: &str = "vision_model.embeddings.position_ids";
/// Colours of a picture.
const CHANNELS: i64 = 3;

/// `vision_config` of a CLIP model; what it leaves out has the value that `transformers` gives it.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// D.
    pub hidden_size: i64,
    /// Width inside the feed-forward layers.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Attention heads; must divide D.
    pub num_attention_heads: i64,
    /// Must be 3.
    pub num_channels: i64,
    /// S.
    pub image_size: i64,
    /// p.
    pub patch_size: i64,
    /// Name of the nonlinearity.
    pub hidden_act: String,
    /// ε of the layer norms.
    pub layer_norm_eps: f64,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: CHANNELS,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl ClipVisionConfig {
    /// The sizes of the layers; `path` and `prefix` say where the configuration stands.
    pub(crate) fn encoder(&self, path: &Path, prefix: &str) -> Result<EncoderConfig, ModelError> {
        let key = |name| format!("{prefix}{name}");
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
        ];
        check_sizes(&sizes).map_err(placed(path, prefix))?;
        check_layers(&[("num_hidden_layers", self.num_hidden_layers)]).map_err(placed(path, prefix))?;
        check_heads(path, prefix, [self.hidden_size, self.num_attention_heads])?;
        if self.num_channels != CHANNELS {
            let reason = format!("{} channels, but pictures have {CHANNELS}", self.num_channels);
            return Err(ModelError::config(path, &key("num_channels"), reason));
        }
        let pixels = [self.num_channels, self.patch_size, self.patch_size];
        check_product("patch_size", &pixels).map_err(placed(path, prefix))?;
        check_product("image_size", &[self.grid(), self.grid()]).map_err(placed(path, prefix))?;
        if self.grid() < 1 {
            let reason = format!("{} is less than one patch of {}", self.image_size, self.patch_size);
            return Err(ModelError::config(path, &key("image_size"), reason));
        }
        Ok(EncoderConfig {
            width: self.hidden_size,
            inner: self.intermediate_size,
            n_layers: self.num_hidden_layers,
            n_heads: self.num_attention_heads,
            epsilon: self.layer_norm_eps,
            activation: find_activation(path, &key("hidden_act"), &self.hidden_act)?,
        })
    }

    /// G.
    fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }
}

/// CLIP's image encoder with its projection.
pub struct ClipVisionModel {
    /// `[1, 1, D]`.
    class_embedding: Tensor,
    /// `[D, 3·p·p]`.
    patch_embedding: Linear,
    /// `[1 + G·G, D]`, the class first.
    position_embedding: Tensor,
    norm_before: LayerNorm,
    encoder: ClipEncoder,
    norm_after: LayerNorm,
    projection: Linear,
    n_features: i64,
    config: ClipVisionConfig,
}

impl ClipVisionModel {
    pub(crate) fn new(
        scope: &Scope,
        (config, encoder): (ClipVisionConfig, EncoderConfig),
        projection_dim: i64,
        names: ClipNames,
    ) -> Self {
        let vision = scope.child(names.pick("vision_model", "visual"));
        let (width, patch, grid) = (encoder.width, config.patch_size, config.grid());
        let embeddings = match names {
            ClipNames::Transformers => vision.child("embeddings"),
            ClipNames::OpenClip => vision.clone(),
        };
        let embedding = |name, shape: &[i64]| embeddings.tensor(name, shape, Init::Normal(0.02));
        let patches = names.pick("patch_embedding.weight", "conv1.weight");
        let positions = names.pick("position_embedding.weight", "positional_embedding");
        let norm = |name| LayerNorm::new(&vision.child(name), width, encoder.epsilon);
        let projected = match names {
            ClipNames::Transformers => scope,
            ClipNames::OpenClip => &vision,
        };
        Self {
            class_embedding: embedding("class_embedding", &[width]).view([1, 1, width]),
            patch_embedding: Linear::of(
                embedding(patches, &[width, CHANNELS, patch, patch]).flatten(1, 3),
                None,
            ),
            position_embedding: embedding(positions, &[1 + grid * grid, width]),
            // The published name lacks an e.
            norm_before: norm(names.pick("pre_layrnorm", "ln_pre")),
            encoder: ClipEncoder::new(
                &vision.child(names.pick("encoder.layers", "transformer.resblocks")),
                &encoder,
                names,
                Attending::Everywhere,
            ),
            norm_after: norm(names.pick("post_layernorm", "ln_post")),
            projection: names.projection(projected, ["visual_projection", "proj"], [width, projection_dim]),
            n_features: projection_dim,
            config,
        }
    }

    /// The sizes of this encoder.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// P.
    pub fn n_features(&self) -> i64 {
        self.n_features
    }

    /// Features of pictures, of length 1.
    ///
    /// # Shapes
    /// - `pixel_values`: `[B, 3, S, S]`, normalised
    /// - returns `[B, P]`, float32
    ///
    /// # Panics
    /// If the shape is another.
    pub fn image_embeds(&self, pixel_values: &Tensor) -> Tensor {
        unit_length(&self.forward(pixel_values))
    }

    fn forward(&self, pixel_values: &Tensor) -> Tensor {
        let (device, kind) = (self.position_embedding.device(), self.position_embedding.kind());
        let pixel_values = pixel_values.to_device(device).to_kind(kind);
        let patches = self.patch_embedding.forward(&self.patches(&pixel_values));
        let n_rows = patches.size()[0];
        let class = self.class_embedding.expand([n_rows, -1, -1], false);
        let hidden = Tensor::cat(&[class, patches], 1) + &self.position_embedding;
        let hidden = self.encoder.forward(self.norm_before.forward(&hidden)).last;
        self.projection.forward(&self.norm_after.forward(&hidden.select(1, 0)))
    }

    /// Cuts pictures into patches, so that embedding them is one matrix product; pixels beyond the last whole patch go.
    fn patches(&self, pixel_values: &Tensor) -> Tensor {
        let (grid, patch) = (self.config.grid(), self.config.patch_size);
        let whole = pixel_values.narrow(2, 0, grid * patch).narrow(3, 0, grid * patch);
        // [B, 3, S, S] → [B, 3, G, p, G, p] → [B, G, G, 3, p, p] → [B, G·G, 3·p·p]
        let cut = whole.unflatten(3, [grid, patch]).unflatten(2, [grid, patch]);
        cut.permute([0, 2, 4, 1, 3, 5]).flatten(3, 5).flatten(1, 2)
    }
}
