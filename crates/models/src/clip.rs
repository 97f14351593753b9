//! CLIP: an encoder of texts and one of pictures, whose features are compared by their angle.
//!
//! Letters: B rows, L tokens, S side of the picture in pixels, P projected width.
//!
//! Source: Radford et al. 2021 (arXiv:2103.00020); `transformers` 4.57, `CLIPModel`.

pub(crate) mod config;
mod open_clip;

use std::path::Path;

use tch::{Kind, Tensor};

use self::config::ClipConfig;
pub use self::open_clip::OpenClipConfig;
use crate::ModelError;
use crate::clip_encoder::{ClipNames, unit_length};
use crate::clip_text::{ClipHead, ClipTextConfig, ClipTextModel, POSITION_IDS as TEXT_POSITION_IDS};
use crate::clip_vision::{ClipVisionConfig, ClipVisionModel, POSITION_IDS as VISION_POSITION_IDS};
use crate::weights::{Scope, WeightOptions, Weights};

/// ln(1/0.07), which training starts from.
const INITIAL_LOGIT_SCALE: f32 = 2.6592;

/// Both encoders with their projections.
pub struct ClipModel {
    /// The encoder of texts.
    pub text: ClipTextModel,
    /// The encoder of pictures.
    pub vision: ClipVisionModel,
    /// What cosines are multiplied by to become logits.
    pub logit_scale: f64,
}

/// The sizes that a configuration file gives.
struct Sizes {
    text: ClipTextConfig,
    vision: ClipVisionConfig,
    projection: i64,
}

impl ClipModel {
    /// Opens `config.json` and `model.safetensors` in `dir`.
    ///
    /// # Errors
    /// If a file is missing or malformed, the model is no CLIP model, or the tensors are not those of the configuration.
    pub fn open(dir: &Path, options: &WeightOptions) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let config = ClipConfig::read(&path)?;
        let sizes = Sizes { text: config.text(), vision: config.vision(), projection: config.projection_dim };
        let weights = Weights::open(dir, "model", options)?;
        let model = Self::new(&weights.scope(""), &path, sizes, ClipNames::Transformers)?;
        weights.ignore(&[TEXT_POSITION_IDS, VISION_POSITION_IDS]);
        weights.finish()?;
        Ok(model)
    }

    /// Opens a model that `open_clip` trained: `STEM.safetensors`, or what `torch.save` wrote, in `dir`.
    ///
    /// # Errors
    /// If the file is missing or malformed, or its tensors are not those of the configuration.
    pub fn open_open_clip(
        dir: &Path,
        stem: &str,
        config: &OpenClipConfig,
        options: &WeightOptions,
    ) -> Result<Self, ModelError> {
        let weights = Weights::open(dir, stem, options)?;
        let sizes = Sizes { text: config.text(), vision: config.vision(), projection: config.embed_dim() };
        let model = Self::new(&weights.scope(""), config.path(), sizes, ClipNames::OpenClip)?;
        weights.finish()?;
        Ok(model)
    }

    fn new(scope: &Scope, path: &Path, sizes: Sizes, names: ClipNames) -> Result<Self, ModelError> {
        let Sizes { text, vision, projection } = sizes;
        let text_encoder = text.encoder(path, "text_config.")?;
        let vision_encoder = vision.encoder(path, "vision_config.")?;
        // Half the digits would change the scale by a percent.
        let initial = |_| Tensor::from(INITIAL_LOGIT_SCALE);
        let logit_scale = scope.in_kind(Kind::Float).tensor_or("logit_scale", &[], initial);
        Ok(Self {
            text: ClipTextModel::new(scope, (text, text_encoder), ClipHead::Projection, names),
            vision: ClipVisionModel::new(scope, (vision, vision_encoder), projection, names),
            logit_scale: logit_scale.double_value(&[]).exp(),
        })
    }

    /// Features of texts, of length 1.
    ///
    /// # Shapes
    /// - `input_ids`: `[B, L]`, int64, L at most `max_position_embeddings`
    /// - returns `[B, P]`, float32
    ///
    /// # Panics
    /// If L is too long or an id is not in the vocabulary.
    pub fn text_embeds(&self, input_ids: &Tensor) -> Tensor {
        unit_length(&self.text.forward(input_ids).pooled)
    }
}

impl ClipVisionModel {
    /// Opens `config.json` and the image encoder's part of `model.safetensors` in the folder of a CLIP model.
    ///
    /// # Errors
    /// If a file is missing or malformed, the model is no CLIP model, or the tensors are not those of the configuration.
    pub fn open(dir: &Path, options: &WeightOptions) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let config = ClipConfig::read(&path)?;
        let encoder = config.vision().encoder(&path, "vision_config.")?;
        let weights = Weights::open(dir, "model", options)?;
        let sizes = (config.vision(), encoder);
        let model = Self::new(&weights.scope(""), sizes, config.projection_dim, ClipNames::Transformers);
        weights.ignore(&["text_model.", "text_projection.", "logit_scale", VISION_POSITION_IDS]);
        weights.finish()?;
        Ok(model)
    }
}
