//! What `transformer/config.json` of a Qwen-Image pipeline says.

use std::path::Path;

use serde::Deserialize;

use crate::error::ModelError;
use crate::patches::PACKED_SIDE;
use crate::sizes::{check_layers, check_product, check_sizes};
use crate::transformer_config::{self, Misfit, TransformerConfig, check_axes};

/// The shape of a Qwen-Image transformer, by diffusers' key names; what a file leaves out has diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct QwenImageConfig {
    /// The class that the file is for.
    #[serde(rename = "_class_name", default = "class_name")]
    pub class_name: String,
    /// Side of a patch, in latent pixels; the pipeline packs by it, so no other than the usual one is supported.
    #[serde(default = "default_patch_size")]
    pub patch_size: i64,
    /// Features of a patch: the channels of the latent image times the pixels of a patch.
    #[serde(default = "default_in_channels")]
    pub in_channels: i64,
    /// Channels of the velocity, as many as the latent image has.
    #[serde(default = "default_out_channels")]
    pub out_channels: i64,
    /// Number of blocks.
    #[serde(default = "default_layers")]
    pub num_layers: i64,
    /// Width of one attention head.
    #[serde(default = "default_head_dim")]
    pub attention_head_dim: i64,
    /// Number of attention heads.
    #[serde(default = "default_heads")]
    pub num_attention_heads: i64,
    /// Width of the text encoder's output.
    #[serde(default = "default_joint_dim")]
    pub joint_attention_dim: i64,
    /// Features of a head that are turned by a token's frame, row and column.
    #[serde(default = "default_axes")]
    pub axes_dims_rope: [i64; 3],
    /// Variants for other tasks than drawing an image from a text, which are not implemented.
    #[serde(flatten)]
    pub variants: Variants,
}

/// Switches that must be off.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Variants {
    /// A network that was distilled to apply guidance itself.
    pub guidance_embeds: bool,
    /// Images to be edited have no noise.
    pub zero_cond_t: bool,
    /// A second condition beside time.
    pub use_additional_t_cond: bool,
    /// Positions of images in layers.
    pub use_layer3d_rope: bool,
}

fn class_name() -> String {
    QwenImageConfig::CLASS_NAME.to_owned()
}
fn default_patch_size() -> i64 {
    2
}
fn default_in_channels() -> i64 {
    64
}
fn default_out_channels() -> i64 {
    16
}
fn default_layers() -> i64 {
    60
}
fn default_head_dim() -> i64 {
    128
}
fn default_heads() -> i64 {
    24
}
fn default_joint_dim() -> i64 {
    3584
}
fn default_axes() -> [i64; 3] {
    [16, 56, 56]
}

impl TransformerConfig for QwenImageConfig {
    const CLASS_NAME: &'static str = "QwenImageTransformer2DModel";

    fn class_name(&self) -> &str {
        &self.class_name
    }

    fn check(&self) -> Result<(), Misfit> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
        ];
        check_sizes(&sizes)?;
        check_layers(&[("num_layers", self.num_layers)])?;
        check_product("num_attention_heads", &[self.num_attention_heads, self.attention_head_dim])?;
        if self.patch_size != PACKED_SIDE {
            return Err((
                "patch_size",
                format!("{} is not supported; supported: {PACKED_SIDE}", self.patch_size),
            ));
        }
        let features = self.out_channels * PACKED_SIDE * PACKED_SIDE;
        if features != self.in_channels {
            let reason = format!(
                "{} is not out_channels times the pixels of a patch, {features}: the velocity must be shaped like the \
                 latent image",
                self.in_channels
            );
            return Err(("in_channels", reason));
        }
        check_axes(self.axes_dims_rope, self.attention_head_dim)?;
        let switches = [
            ("guidance_embeds", self.variants.guidance_embeds),
            ("zero_cond_t", self.variants.zero_cond_t),
            ("use_additional_t_cond", self.variants.use_additional_t_cond),
            ("use_layer3d_rope", self.variants.use_layer3d_rope),
        ];
        match switches.into_iter().find(|(_, is_on)| *is_on) {
            None => Ok(()),
            Some((key, _)) => Err((key, "true is not supported; supported: false".to_owned())),
        }
    }
}

impl QwenImageConfig {
    /// Reads and checks a `config.json`; keys that mean nothing here are ignored.
    ///
    /// # Errors
    /// If the file is missing or malformed, names another class, or holds a value that is not supported.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        transformer_config::read(path)
    }

    /// Width of the residual streams.
    pub fn width(&self) -> i64 {
        self.num_attention_heads * self.attention_head_dim
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<QwenImageConfig, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        QwenImageConfig::read(&path)
    }

    #[test]
    fn defaults_are_those_of_diffusers_and_unknown_keys_are_ignored() {
        let config = read(r#"{"_class_name": "QwenImageTransformer2DModel", "new_key": 1}"#).unwrap();
        assert_eq!((config.width(), config.num_layers, config.out_channels), (3072, 60, 16));
    }

    #[test]
    fn values_that_do_not_work_are_named() {
        for (json, word) in [
            (r#"{"patch_size": 0}"#, "patch_size"),
            (r#"{"num_layers": "many"}"#, "num_layers"),
            (r#"{"num_layers": 100000000}"#, "num_layers"),
            (r#"{"out_channels": 8}"#, "in_channels"),
            (r#"{"axes_dims_rope": [16, 56, 58]}"#, "axes_dims_rope"),
            (r#"{"axes_dims_rope": [17, 55, 56]}"#, "axes_dims_rope"),
            (r#"{"axes_dims_rope": [64, 64]}"#, "axes_dims_rope"),
            (r#"{"guidance_embeds": true}"#, "guidance_embeds"),
            (r#"{"use_layer3d_rope": true}"#, "use_layer3d_rope"),
            (r#"{"_class_name": "SD3Transformer2DModel"}"#, "SD3Transformer2DModel"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("config.json"), "{error}");
        }
    }
}
