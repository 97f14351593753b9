//! `vision_config` of a Qwen2-VL `config.json`.

use serde::Deserialize;

use crate::layers::Activation;
use crate::sizes::{check_layers, check_product, check_sizes};

/// The shape of a vision tower, by the key names of `transformers`.
#[derive(Clone, Debug, Deserialize)]
pub struct Qwen2VisionConfig {
    /// Number of blocks.
    pub depth: i64,
    /// C.
    pub embed_dim: i64,
    /// H.
    pub hidden_size: i64,
    /// Name of the feed-forwards' nonlinearity.
    #[serde(default = "default_activation")]
    pub hidden_act: String,
    /// Width of a feed-forward's middle, as a multiple of C.
    #[serde(default = "default_mlp_ratio")]
    pub mlp_ratio: f64,
    /// N.
    pub num_heads: i64,
    /// Colours.
    #[serde(default = "default_channels")]
    pub in_channels: i64,
    /// Side of a patch, in pixels.
    #[serde(default = "default_patch_size")]
    pub patch_size: i64,
    /// M.
    #[serde(default = "default_pair")]
    pub spatial_merge_size: i64,
    /// Frames of a patch; images repeat theirs.
    #[serde(default = "default_pair")]
    pub temporal_patch_size: i64,
}

fn default_activation() -> String {
    "quick_gelu".to_owned()
}
fn default_mlp_ratio() -> f64 {
    4.0
}
fn default_channels() -> i64 {
    3
}
fn default_patch_size() -> i64 {
    14
}
fn default_pair() -> i64 {
    2
}

impl Qwen2VisionConfig {
    /// The first key whose value does not work, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        let sizes = [
            ("vision_config.embed_dim", self.embed_dim),
            ("vision_config.hidden_size", self.hidden_size),
            ("vision_config.num_heads", self.num_heads),
            ("vision_config.in_channels", self.in_channels),
            ("vision_config.patch_size", self.patch_size),
            ("vision_config.spatial_merge_size", self.spatial_merge_size),
            ("vision_config.temporal_patch_size", self.temporal_patch_size),
            ("vision_config.mlp_ratio", self.inner_width()),
        ];
        check_sizes(&sizes)?;
        check_layers(&[("vision_config.depth", self.depth)])?;
        let pixels = [self.in_channels, self.temporal_patch_size, self.patch_size, self.patch_size];
        check_product("vision_config.patch_size", &pixels)?;
        let merged = [self.embed_dim, self.spatial_merge_size, self.spatial_merge_size];
        check_product("vision_config.spatial_merge_size", &merged)?;
        let (width, heads) = (self.embed_dim, self.num_heads);
        if width % heads != 0 || self.head_width() % 4 != 0 {
            let reason = format!("{heads} does not split {width} features into heads of a multiple of 4");
            return Err(("vision_config.num_heads", reason));
        }
        match Activation::from_name(&self.hidden_act) {
            Some(_) => Ok(()),
            None => {
                let reason = format!("\"{}\" is not supported; use quick_gelu", self.hidden_act);
                Err(("vision_config.hidden_act", reason))
            }
        }
    }

    /// D.
    pub fn head_width(&self) -> i64 {
        self.embed_dim / self.num_heads
    }

    /// F.
    pub fn patch_width(&self) -> i64 {
        self.in_channels * self.temporal_patch_size * self.patch_size * self.patch_size
    }

    pub(super) fn inner_width(&self) -> i64 {
        (self.embed_dim as f64 * self.mlp_ratio) as i64
    }

    pub(super) fn activation(&self) -> Activation {
        Activation::from_name(&self.hidden_act).expect("`check` knows the activation; else this is a bug")
    }
}
