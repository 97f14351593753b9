//! What `transformer/config.json` of an SD3 pipeline says.

use std::path::Path;

use serde::Deserialize;

use crate::error::ModelError;
use crate::sizes::{check_layers, check_product, check_sizes};
use crate::transformer_config::{self, Misfit, TransformerConfig};

/// The shape of an SD3 or SD3.5 transformer, by diffusers' key names; what a file leaves out has diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct Sd3Config {
    /// The class that the file is for.
    #[serde(rename = "_class_name", default = "class_name")]
    pub class_name: String,
    /// Side of the latent image whose positions the sinusoidal table is scaled to, in latent pixels.
    #[serde(default = "default_sample_size")]
    pub sample_size: i64,
    /// Side of a patch, in latent pixels.
    #[serde(default = "default_patch_size")]
    pub patch_size: i64,
    /// Channels of the latent image.
    #[serde(default = "default_channels")]
    pub in_channels: i64,
    /// Number of joint blocks.
    #[serde(default = "default_heads")]
    pub num_layers: i64,
    /// Width of one attention head.
    #[serde(default = "default_head_dim")]
    pub attention_head_dim: i64,
    /// Number of attention heads.
    #[serde(default = "default_heads")]
    pub num_attention_heads: i64,
    /// Width of the text encoders' joint output.
    #[serde(default = "default_joint_dim")]
    pub joint_attention_dim: i64,
    /// Width to which text is projected; must equal heads times head width.
    #[serde(default = "default_caption_dim")]
    pub caption_projection_dim: i64,
    /// Width of the pooled text embedding.
    #[serde(default = "default_pooled_dim")]
    pub pooled_projection_dim: i64,
    /// Channels of the velocity; as many as come in when absent.
    #[serde(default = "default_out_channels")]
    pub out_channels: Option<i64>,
    /// Side of the stored table of positions, in patches.
    #[serde(default = "default_positions")]
    pub pos_embed_max_size: i64,
    /// Blocks with a second attention over the image alone (SD3.5).
    #[serde(default)]
    pub dual_attention_layers: Vec<i64>,
    /// `rms_norm` (SD3.5), or absent for none (SD3).
    #[serde(default)]
    pub qk_norm: Option<String>,
}

fn class_name() -> String {
    Sd3Config::CLASS_NAME.to_owned()
}
fn default_sample_size() -> i64 {
    128
}
fn default_patch_size() -> i64 {
    2
}
fn default_channels() -> i64 {
    16
}
fn default_out_channels() -> Option<i64> {
    Some(16)
}
fn default_heads() -> i64 {
    18
}
fn default_head_dim() -> i64 {
    64
}
fn default_joint_dim() -> i64 {
    4096
}
fn default_caption_dim() -> i64 {
    1152
}
fn default_pooled_dim() -> i64 {
    2048
}
fn default_positions() -> i64 {
    96
}

impl TransformerConfig for Sd3Config {
    const CLASS_NAME: &'static str = "SD3Transformer2DModel";

    fn class_name(&self) -> &str {
        &self.class_name
    }

    fn check(&self) -> Result<(), Misfit> {
        let sizes = [
            ("sample_size", self.sample_size),
            ("patch_size", self.patch_size),
            ("in_channels", self.in_channels),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
            ("out_channels", self.velocity_channels()),
            ("pos_embed_max_size", self.pos_embed_max_size),
        ];
        check_sizes(&sizes)?;
        check_layers(&[("num_layers", self.num_layers)])?;
        check_product("num_attention_heads", &[self.num_attention_heads, self.attention_head_dim])?;
        let channels = self.in_channels.max(self.velocity_channels());
        check_product("patch_size", &[self.patch_size, self.patch_size, channels])?;
        check_product("pos_embed_max_size", &[self.pos_embed_max_size, self.pos_embed_max_size])?;
        if self.width() % 4 != 0 {
            let reason =
                format!("times num_attention_heads is {}, but must be a multiple of 4", self.width());
            return Err(("attention_head_dim", reason));
        }
        if self.caption_projection_dim != self.width() {
            let reason =
                format!("{} is not heads times head width, {}", self.caption_projection_dim, self.width());
            return Err(("caption_projection_dim", reason));
        }
        if let Some(layer) = self.dual_attention_layers.iter().find(|i| !(0..self.num_layers).contains(*i)) {
            return Err((
                "dual_attention_layers",
                format!("there is no layer {layer} among {}", self.num_layers),
            ));
        }
        match self.qk_norm.as_deref() {
            None | Some("rms_norm") => Ok(()),
            Some(other) => {
                Err(("qk_norm", format!("{other:?} is not supported; supported: \"rms_norm\", null")))
            }
        }
    }
}

impl Sd3Config {
    /// Reads and checks a `config.json`; keys that mean nothing here are ignored.
    ///
    /// # Errors
    /// If the file is missing or malformed, names another class, or holds a value that is not supported.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        transformer_config::read(path)
    }

    /// Width of the residual stream.
    pub fn width(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Channels of the velocity.
    pub fn velocity_channels(&self) -> i64 {
        self.out_channels.unwrap_or(self.in_channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Sd3Config, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        Sd3Config::read(&path)
    }

    #[test]
    fn defaults_are_those_of_diffusers_and_unknown_keys_are_ignored() {
        let config = read(r#"{"_class_name": "SD3Transformer2DModel", "new_key": 1}"#).unwrap();
        assert_eq!((config.width(), config.num_layers, config.velocity_channels()), (1152, 18, 16));
    }

    #[test]
    fn values_that_do_not_work_are_named() {
        for (json, word) in [
            (r#"{"qk_norm": "layer_norm"}"#, "qk_norm"),
            (r#"{"patch_size": 0}"#, "patch_size"),
            (r#"{"num_layers": "many"}"#, "num_layers"),
            (r#"{"num_layers": 100000000}"#, "num_layers"),
            (r#"{"dual_attention_layers": [18]}"#, "dual_attention_layers"),
            (r#"{"num_attention_heads": 3, "attention_head_dim": 7}"#, "attention_head_dim"),
            (r#"{"caption_projection_dim": 7}"#, "caption_projection_dim"),
            (r#"{"_class_name": "FluxTransformer2DModel"}"#, "FluxTransformer2DModel"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("config.json"), "{error}");
        }
    }
}
