//! `config.json` of a CLIP model.

use std::path::Path;

use serde::Deserialize;

use crate::clip_encoder::placed;
use crate::clip_text::ClipTextConfig;
use crate::clip_vision::ClipVisionConfig;
use crate::sizes::check_sizes;
use crate::{ModelError, json_file};

const MODEL_TYPE: &str = "clip";

/// The sizes of both encoders; what the file leaves out has the value that `transformers` gives it.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(crate) struct ClipConfig {
    model_type: String,
    /// P.
    pub projection_dim: i64,
    text_config: Option<ClipTextConfig>,
    vision_config: Option<ClipVisionConfig>,
    /// The oldest files have this one beside the other or alone; `transformers` then heeds it.
    text_config_dict: Option<ClipTextConfig>,
    /// Likewise.
    vision_config_dict: Option<ClipVisionConfig>,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            model_type: String::new(),
            projection_dim: 512,
            text_config: None,
            vision_config: None,
            text_config_dict: None,
            vision_config_dict: None,
        }
    }
}

impl ClipConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// If it is missing or malformed, or is that of another kind of model.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let config: Self = json_file::read(path)?;
        if config.model_type == MODEL_TYPE {
            check_sizes(&[("projection_dim", config.projection_dim)]).map_err(placed(path, ""))?;
            return Ok(config);
        }
        let reason =
            format!("\"{}\" is not \"{MODEL_TYPE}\"; name a folder with a CLIP model", config.model_type);
        Err(ModelError::config(path, "model_type", reason))
    }

    /// The text encoder's; its width of projection is the model's, whatever stands there.
    pub fn text(&self) -> ClipTextConfig {
        let text = self.text_config_dict.as_ref().or(self.text_config.as_ref()).cloned().unwrap_or_default();
        ClipTextConfig { projection_dim: self.projection_dim, ..text }
    }

    /// The image encoder's.
    pub fn vision(&self) -> ClipVisionConfig {
        self.vision_config_dict.as_ref().or(self.vision_config.as_ref()).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ClipConfig, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        ClipConfig::read(&path)
    }

    #[test]
    fn what_is_left_out_has_the_published_defaults() {
        let config =
            read(r#"{"model_type": "clip", "text_config": {"hidden_size": 768}, "vision_config": null}"#);
        let (text, vision) = (config.as_ref().unwrap().text(), config.as_ref().unwrap().vision());
        assert_eq!((text.hidden_size, text.num_attention_heads, text.vocab_size), (768, 8, 49_408));
        assert_eq!((text.projection_dim, text.hidden_act.as_str()), (512, "quick_gelu"));
        assert_eq!((vision.hidden_size, vision.patch_size, vision.num_hidden_layers), (768, 32, 12));
    }

    #[test]
    fn the_oldest_key_is_heeded_where_both_are_there() {
        let config = read(
            r#"{"model_type": "clip", "projection_dim": 768,
                "text_config": {"hidden_size": 1, "eos_token_id": 2},
                "text_config_dict": {"hidden_size": 768, "projection_dim": 9}, "vision_config_dict": {"patch_size": 14}}"#,
        )
        .unwrap();
        let text = config.text();
        assert_eq!((text.hidden_size, text.eos_token_id, text.projection_dim), (768, 49_407, 768));
        assert_eq!(config.vision().patch_size, 14);
    }

    #[test]
    fn more_layers_than_there_can_be_are_refused() {
        let config =
            read(r#"{"model_type": "clip", "vision_config": {"num_hidden_layers": 100000000}}"#).unwrap();
        let error =
            config.vision().encoder(Path::new("config.json"), "vision_config.").unwrap_err().to_string();
        assert!(
            error.contains("vision_config.num_hidden_layers: is 100000000; it must be from 1 to 10000"),
            "{error}"
        );
    }

    #[test]
    fn a_model_of_another_kind_is_named() {
        let error = read(r#"{"model_type": "siglip"}"#).unwrap_err().to_string();
        assert!(error.contains("model_type: \"siglip\" is not \"clip\""), "{error}");
    }
}
