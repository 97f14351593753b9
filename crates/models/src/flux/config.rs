//! What `transformer/config.json` of a FLUX.1 pipeline says.

use std::path::Path;

use serde::Deserialize;

use crate::error::ModelError;
use crate::patches::PACKED_SIDE;
use crate::sizes::{check_layers, check_product, check_sizes};
use crate::transformer_config::{self, Misfit, TransformerConfig, check_axes};

/// The shape of a FLUX.1 transformer, by diffusers' key names; what a file leaves out has diffusers' defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct FluxConfig {
    /// The class that the file is for.
    #[serde(rename = "_class_name", default = "class_name")]
    pub class_name: String,
    /// Side of a patch in packed latents, which are patches already; must be 1.
    #[serde(default = "default_patch_size")]
    pub patch_size: i64,
    /// Features of a packed patch: four times the channels of the latent image.
    #[serde(default = "default_in_channels")]
    pub in_channels: i64,
    /// Features of the velocity's patches; as many as come in when absent, and no other number is supported.
    #[serde(default)]
    pub out_channels: Option<i64>,
    /// Number of blocks over two streams.
    #[serde(default = "default_layers")]
    pub num_layers: i64,
    /// Number of blocks over one stream.
    #[serde(default = "default_single_layers")]
    pub num_single_layers: i64,
    /// Width of one attention head.
    #[serde(default = "default_head_dim")]
    pub attention_head_dim: i64,
    /// Number of attention heads.
    #[serde(default = "default_heads")]
    pub num_attention_heads: i64,
    /// Width of the token encoder's output.
    #[serde(default = "default_joint_dim")]
    pub joint_attention_dim: i64,
    /// Width of the pooled text embedding.
    #[serde(default = "default_pooled_dim")]
    pub pooled_projection_dim: i64,
    /// Whether the network was distilled to apply guidance itself (FLUX.1-dev), or to need none (FLUX.1-schnell).
    #[serde(default)]
    pub guidance_embeds: bool,
    /// Features of a head that each axis of a token's position turns: the first one, which is 0 here, row and column.
    #[serde(default = "default_axes")]
    pub axes_dims_rope: [i64; 3],
}

fn class_name() -> String {
    FluxConfig::CLASS_NAME.to_owned()
}
fn default_patch_size() -> i64 {
    1
}
fn default_in_channels() -> i64 {
    64
}
fn default_layers() -> i64 {
    19
}
fn default_single_layers() -> i64 {
    38
}
fn default_head_dim() -> i64 {
    128
}
fn default_heads() -> i64 {
    24
}
fn default_joint_dim() -> i64 {
    4096
}
fn default_pooled_dim() -> i64 {
    768
}
fn default_axes() -> [i64; 3] {
    [16, 56, 56]
}

impl TransformerConfig for FluxConfig {
    const CLASS_NAME: &'static str = "FluxTransformer2DModel";

    fn class_name(&self) -> &str {
        &self.class_name
    }

    fn check(&self) -> Result<(), Misfit> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("pooled_projection_dim", self.pooled_projection_dim),
        ];
        check_sizes(&sizes)?;
        check_layers(&[("num_layers", self.num_layers), ("num_single_layers", self.num_single_layers)])?;
        check_product("num_attention_heads", &[self.num_attention_heads, self.attention_head_dim])?;
        if self.patch_size != 1 {
            return Err(("patch_size", format!("{} is not supported; supported: 1", self.patch_size)));
        }
        let pixels = PACKED_SIDE * PACKED_SIDE;
        if self.in_channels % pixels != 0 {
            return Err(("in_channels", format!("{} is not a multiple of {pixels}", self.in_channels)));
        }
        if let Some(channels) = self.out_channels.filter(|channels| *channels != self.in_channels) {
            let reason = format!(
                "{channels} differs from `in_channels` {}: models that also see another image are not supported",
                self.in_channels
            );
            return Err(("out_channels", reason));
        }
        check_axes(self.axes_dims_rope, self.attention_head_dim)
    }
}

impl FluxConfig {
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

    /// Channels of the latent image.
    pub fn latent_channels(&self) -> i64 {
        self.in_channels / (PACKED_SIDE * PACKED_SIDE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<FluxConfig, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        FluxConfig::read(&path)
    }

    #[test]
    fn defaults_are_those_of_diffusers_and_unknown_keys_are_ignored() {
        let config = read(r#"{"_class_name": "FluxTransformer2DModel", "new_key": 1}"#).unwrap();
        assert_eq!((config.width(), config.num_layers, config.num_single_layers), (3072, 19, 38));
        assert_eq!((config.latent_channels(), config.guidance_embeds), (16, false));
    }

    #[test]
    fn values_that_do_not_work_are_named() {
        for (json, word) in [
            (r#"{"patch_size": 2}"#, "patch_size"),
            (r#"{"num_layers": "many"}"#, "num_layers"),
            (r#"{"num_layers": 100000000}"#, "num_layers"),
            (r#"{"num_single_layers": 0}"#, "num_single_layers"),
            (r#"{"in_channels": 66}"#, "in_channels"),
            (r#"{"in_channels": 384, "out_channels": 64}"#, "out_channels"),
            (r#"{"axes_dims_rope": [16, 56, 58]}"#, "axes_dims_rope"),
            (r#"{"axes_dims_rope": [16, 55, 57]}"#, "axes_dims_rope"),
            (r#"{"axes_dims_rope": [64, 64]}"#, "axes_dims_rope"),
            (r#"{"_class_name": "SD3Transformer2DModel"}"#, "SD3Transformer2DModel"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("config.json"), "{error}");
        }
    }
}
