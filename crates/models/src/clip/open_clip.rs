//! `open_clip_config.json`: the sizes of a model that `open_clip` trained.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::clip_encoder::placed;
use crate::clip_text::{ClipTextConfig, LEGACY_EOS_TOKEN_ID};
use crate::clip_vision::ClipVisionConfig;
use crate::sizes::check_sizes;
use crate::{ModelError, json_file};

/// Name of the file.
const FILE: &str = "open_clip_config.json";
/// Mean and standard deviation of the colours of CLIP's first training set.
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// Sizes of both encoders, and the colours that pictures are normalised by.
#[derive(Debug, Clone)]
pub struct OpenClipConfig {
    path: PathBuf,
    model: Model,
    /// Mean of each colour, black being 0 and white 1.
    pub mean: [f64; 3],
    /// And their standard deviation.
    pub std: [f64; 3],
}

#[derive(Debug, Clone, Deserialize)]
struct File {
    model_cfg: Model,
    #[serde(default)]
    preprocess_cfg: Preprocessing,
}

/// Keys that are not here stand for parts that are not, so they are refused rather than overlooked.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    embed_dim: i64,
    vision_cfg: Vision,
    text_cfg: Text,
    #[serde(default)]
    quick_gelu: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Vision {
    image_size: i64,
    layers: i64,
    width: i64,
    head_width: i64,
    patch_size: i64,
    mlp_ratio: f64,
}

impl Default for Vision {
    fn default() -> Self {
        Self { image_size: 224, layers: 12, width: 768, head_width: 64, patch_size: 16, mlp_ratio: 4.0 }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Text {
    context_length: i64,
    vocab_size: i64,
    width: i64,
    heads: i64,
    layers: i64,
    mlp_ratio: f64,
}

impl Default for Text {
    fn default() -> Self {
        Self { context_length: 77, vocab_size: 49_408, width: 512, heads: 8, layers: 12, mlp_ratio: 4.0 }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct Preprocessing {
    mean: [f64; 3],
    std: [f64; 3],
}

impl Default for Preprocessing {
    fn default() -> Self {
        Self { mean: MEAN, std: STD }
    }
}

impl OpenClipConfig {
    /// Reads `open_clip_config.json` in `dir`; where there is none, the sizes are those of ViT-H-14, which `open_clip`
    /// knows by name.
    ///
    /// # Errors
    /// If the file is malformed, or tells of a part that is not supported.
    pub fn open_or_vit_h_14(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join(FILE);
        let file = if path.is_file() { json_file::read(&path)? } else { vit_h_14() };
        let File { model_cfg: model, preprocess_cfg: Preprocessing { mean, std } } = file;
        let [vision, text] = [("vision_cfg.", "width"), ("text_cfg.", "heads")];
        check_sizes(&[("embed_dim", model.embed_dim)]).map_err(placed(&path, "model_cfg."))?;
        let sizes = [("head_width", model.vision_cfg.head_width), (vision.1, model.vision_cfg.width)];
        check_sizes(&sizes).map_err(placed(&path, &format!("model_cfg.{}", vision.0)))?;
        check_sizes(&[(text.1, model.text_cfg.heads)])
            .map_err(placed(&path, &format!("model_cfg.{}", text.0)))?;
        Ok(Self { path, model, mean, std })
    }

    /// Where it was read.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// P.
    pub(crate) fn embed_dim(&self) -> i64 {
        self.model.embed_dim
    }

    pub(crate) fn text(&self) -> ClipTextConfig {
        let Text { context_length, vocab_size, width, heads, layers, mlp_ratio } = self.model.text_cfg;
        ClipTextConfig {
            vocab_size,
            hidden_size: width,
            intermediate_size: inner(width, mlp_ratio),
            num_hidden_layers: layers,
            num_attention_heads: heads,
            max_position_embeddings: context_length,
            projection_dim: self.model.embed_dim,
            hidden_act: self.hidden_act(),
            // The end token has the highest id, and is looked for as such.
            eos_token_id: LEGACY_EOS_TOKEN_ID,
            ..ClipTextConfig::default()
        }
    }

    pub(crate) fn vision(&self) -> ClipVisionConfig {
        let Vision { image_size, layers, width, head_width, patch_size, mlp_ratio } = self.model.vision_cfg;
        ClipVisionConfig {
            hidden_size: width,
            intermediate_size: inner(width, mlp_ratio),
            num_hidden_layers: layers,
            num_attention_heads: width / head_width,
            image_size,
            patch_size,
            hidden_act: self.hidden_act(),
            ..ClipVisionConfig::default()
        }
    }

    fn hidden_act(&self) -> String {
        if self.model.quick_gelu { "quick_gelu" } else { "gelu" }.to_owned()
    }
}

fn inner(width: i64, mlp_ratio: f64) -> i64 {
    (width as f64 * mlp_ratio) as i64
}

/// Source: `open_clip` 3.3, `model_configs/ViT-H-14.json`.
fn vit_h_14() -> File {
    let vision_cfg = Vision { layers: 32, width: 1280, head_width: 80, patch_size: 14, ..Vision::default() };
    let text_cfg = Text { width: 1024, heads: 16, layers: 24, ..Text::default() };
    File {
        model_cfg: Model { embed_dim: 1024, vision_cfg, text_cfg, quick_gelu: false },
        preprocess_cfg: Preprocessing::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_the_sizes_are_those_of_vit_h_14() {
        let config = OpenClipConfig::open_or_vit_h_14(Path::new("nowhere")).unwrap();
        let (vision, text) = (config.vision(), config.text());
        assert_eq!(
            (vision.num_attention_heads, vision.intermediate_size, vision.num_hidden_layers),
            (16, 5120, 32)
        );
        assert_eq!((text.hidden_size, text.num_attention_heads, text.intermediate_size), (1024, 16, 4096));
        assert_eq!(config.embed_dim(), 1024);
    }

    #[test]
    fn a_part_that_is_not_supported_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let text =
            r#"{"model_cfg": {"embed_dim": 8, "vision_cfg": {"timm_model_name": "x"}, "text_cfg": {}}}"#;
        std::fs::write(folder.path().join(FILE), text).unwrap();
        let error = OpenClipConfig::open_or_vit_h_14(folder.path()).unwrap_err().to_string();
        assert!(error.contains("model_cfg.vision_cfg.timm_model_name"), "{error}");
    }
}
