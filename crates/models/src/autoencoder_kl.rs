//! The decoder of `AutoencoderKL`: from latents to pixels.
//!
//! Letters: B images, Z latent channels, C channels, H and W the sides, in pixels of the current resolution.
//!
//! Source: diffusers 0.38, `models/autoencoders/vae.py` and `models/unets/unet_2d_blocks.py`.

use std::path::Path;

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::ModelError;
use crate::json_file;
use crate::layers::{Activation, Conv2d, GroupNorm, Linear};
use crate::pipeline::DecoderOptions;
use crate::sizes::{check_layers, check_sizes};
use crate::tiled_decoding::{decode_in_tiles, tile_in_latents};
use crate::weights::{Scope, WeightOptions, Weights};

/// `config.json` of an autoencoder.
#[derive(Debug, Clone, Deserialize)]
pub struct AutoencoderKlConfig {
    /// Whose configuration this is; files written by hand may leave it out.
    #[serde(rename = "_class_name", default = "class_name")]
    pub class_name: String,
    /// Colours of the image.
    pub out_channels: i64,
    /// Z.
    pub latent_channels: i64,
    /// Channels at each resolution, the finest first.
    pub block_out_channels: Vec<i64>,
    /// Kind of each block of the decoder, the coarsest first.
    pub up_block_types: Vec<String>,
    /// Residual blocks per resolution of the encoder; the decoder has one more.
    pub layers_per_block: i64,
    /// Groups of every norm; must divide all channels.
    pub norm_num_groups: i64,
    /// Name of the nonlinearity.
    pub act_fn: String,
    /// Latents are divided by this before decoding.
    pub scaling_factor: f64,
    /// Added to the latents after the division.
    #[serde(default)]
    pub shift_factor: Option<f64>,
    /// Whether a 1×1 convolution comes before the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    /// Whether the coarsest resolution has self-attention.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    /// Whether half precision overflows in it.
    #[serde(default = "yes")]
    pub force_upcast: bool,
}

const CLASS_NAME: &str = "AutoencoderKL";

fn class_name() -> String {
    CLASS_NAME.to_owned()
}

fn yes() -> bool {
    true
}

const EPSILON: f64 = 1e-6;
const UP_BLOCK: &str = "UpDecoderBlock2D";
/// Each doubles the side of an image.
const MOST_BLOCKS: usize = 16;

impl AutoencoderKlConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// If the file is missing or malformed, or asks for what is not implemented.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let config: Self = json_file::read(&path)?;
        config.check(&path)?;
        Ok(config)
    }

    /// How many pixels a latent spans along each side.
    pub fn scale(&self) -> i64 {
        1 << (self.block_out_channels.len() - 1)
    }

    fn check(&self, path: &Path) -> Result<(), ModelError> {
        if self.class_name != CLASS_NAME {
            let (path, found, supported) = (path.to_owned(), self.class_name.clone(), class_name());
            return Err(ModelError::UnsupportedClass { path, found, supported });
        }
        let sizes = [("out_channels", self.out_channels), ("latent_channels", self.latent_channels)];
        check_sizes(&sizes)
            .and_then(|()| check_layers(&[("layers_per_block", self.layers_per_block)]))
            .map_err(|(key, reason)| ModelError::config(path, key, reason))?;
        let channels = self.block_out_channels.iter().map(|channels| ("block_out_channels", *channels));
        check_sizes(&channels.collect::<Vec<_>>())
            .map_err(|(key, reason)| ModelError::config(path, key, reason))?;
        let n_blocks = self.block_out_channels.len();
        if n_blocks > MOST_BLOCKS {
            let reason = format!("has {n_blocks} entries; it must be at most {MOST_BLOCKS}");
            return Err(ModelError::config(path, "block_out_channels", reason));
        }
        if n_blocks == 0 || self.up_block_types.len() != n_blocks {
            let reason =
                format!("has {} entries; `block_out_channels` has {n_blocks}", self.up_block_types.len());
            return Err(ModelError::config(path, "up_block_types", reason));
        }
        if let Some(found) = self.up_block_types.iter().find(|kind| *kind != UP_BLOCK) {
            let (path, found, supported) = (path.to_owned(), found.clone(), UP_BLOCK.to_owned());
            return Err(ModelError::UnsupportedClass { path, found, supported });
        }
        let groups = self.norm_num_groups;
        if groups < 1 || self.block_out_channels.iter().any(|channels| channels % groups != 0) {
            let reason = format!("{groups} does not divide all of {:?}", self.block_out_channels);
            return Err(ModelError::config(path, "norm_num_groups", reason));
        }
        Ok(())
    }

    fn activation(&self, path: &Path) -> Result<Activation, ModelError> {
        let name = &self.act_fn;
        Activation::from_name(name).ok_or_else(|| {
            ModelError::config(path, "act_fn", format!("\"{name}\" is not supported; use silu"))
        })
    }
}

/// What every block of one decoder shares.
#[derive(Clone, Copy)]
struct BlockStyle {
    groups: i64,
    activation: Activation,
}

struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    activation: Activation,
}

impl ResnetBlock {
    fn new(scope: &Scope, channels: (i64, i64), style: BlockStyle) -> Self {
        let (inputs, outputs) = channels;
        let norm = |name, channels| GroupNorm::new(&scope.child(name), style.groups, channels, EPSILON);
        Self {
            norm1: norm("norm1", inputs),
            conv1: Conv2d::new(&scope.child("conv1"), channels, 3, 1, 1),
            norm2: norm("norm2", outputs),
            conv2: Conv2d::new(&scope.child("conv2"), (outputs, outputs), 3, 1, 1),
            conv_shortcut: (inputs != outputs)
                .then(|| Conv2d::new(&scope.child("conv_shortcut"), channels, 1, 1, 0)),
            activation: style.activation,
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.conv1.forward(&self.activation.apply(&self.norm1.forward(x)));
        let hidden = self.conv2.forward(&self.activation.apply(&self.norm2.forward(&hidden)));
        match &self.conv_shortcut {
            Some(shortcut) => hidden + shortcut.forward(x),
            None => hidden + x,
        }
    }
}

/// Self-attention over all pixels, with one head as wide as the channels.
struct PixelAttention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl PixelAttention {
    fn new(scope: &Scope, channels: i64, style: BlockStyle) -> Self {
        let linear = |name| Linear::new(&scope.child(name), channels, channels, true);
        Self {
            group_norm: GroupNorm::new(&scope.child("group_norm"), style.groups, channels, EPSILON),
            to_q: linear("to_q"),
            to_k: linear("to_k"),
            to_v: linear("to_v"),
            to_out: linear("to_out.0"),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let pixels = self.group_norm.forward(x).flatten(2, 3).transpose(1, 2).unsqueeze(1); // [B, C, H, W] → [B, 1, H·W, C]
        let (query, key, value) =
            (self.to_q.forward(&pixels), self.to_k.forward(&pixels), self.to_v.forward(&pixels));
        let mixed = self.to_out.forward(&crate::layers::attention(&query, &key, &value, None));
        x + mixed.squeeze_dim(1).transpose(1, 2).reshape(x.size()) // [B, 1, H·W, C] → [B, C, H, W]
    }
}

struct MidBlock {
    before: ResnetBlock,
    attention: Option<PixelAttention>,
    after: ResnetBlock,
}

impl MidBlock {
    fn new(scope: &Scope, channels: i64, style: BlockStyle, add_attention: bool) -> Self {
        let resnet =
            |idx: i64| ResnetBlock::new(&scope.child("resnets").child(idx), (channels, channels), style);
        Self {
            before: resnet(0),
            attention: add_attention
                .then(|| PixelAttention::new(&scope.child("attentions.0"), channels, style)),
            after: resnet(1),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.before.forward(x);
        let hidden =
            self.attention.as_ref().map_or_else(|| hidden.shallow_clone(), |mix| mix.forward(&hidden));
        self.after.forward(&hidden)
    }
}

struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsampler: Option<Conv2d>,
}

impl UpBlock {
    fn forward(&self, x: Tensor) -> Tensor {
        let hidden = self.resnets.iter().fold(x, |hidden, resnet| resnet.forward(&hidden));
        let Some(conv) = &self.upsampler else { return hidden };
        let (_, _, height, width) = hidden.size4().expect("feature maps have four axes; else this is a bug");
        conv.forward(&hidden.upsample_nearest2d([height * 2, width * 2], None, None))
    }
}

/// The decoding half of `AutoencoderKL`.
pub struct AutoencoderKlDecoder {
    post_quant_conv: Option<Conv2d>,
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    activation: Activation,
    config: AutoencoderKlConfig,
    kind: Kind,
    /// Side of a tile, in latents.
    tile: Option<i64>,
}

impl AutoencoderKlDecoder {
    /// Opens `config.json` and the decoder's part of `diffusion_pytorch_model.safetensors` in `dir`.
    ///
    /// The weights have the element type that `decoder` says, or float32 where the configuration has `force_upcast`.
    ///
    /// # Errors
    /// If a file is missing or malformed, the tensors are not those of the configuration, or tiles of the size asked for
    /// do not overlap by whole latents.
    pub fn open(dir: &Path, weights: &WeightOptions, decoder: DecoderOptions) -> Result<Self, ModelError> {
        let config = AutoencoderKlConfig::open(dir)?;
        let activation = config.activation(&dir.join("config.json"))?;
        let tile = decoder.tile.map(|tile| tile_in_latents(tile, config.scale())).transpose()?;
        let kind = if config.force_upcast { Kind::Float } else { decoder.kind };
        let weights =
            Weights::open(dir, "diffusion_pytorch_model", &WeightOptions { kind, ..weights.clone() })?;
        let network = Self { tile, ..Self::new(&weights.scope(""), config, activation) };
        weights.ignore(&["encoder.", "quant_conv."]);
        weights.finish()?;
        Ok(network)
    }

    fn new(scope: &Scope, config: AutoencoderKlConfig, activation: Activation) -> Self {
        let decoder = scope.child("decoder");
        let style = BlockStyle { groups: config.norm_num_groups, activation };
        let coarsest = config.block_out_channels.last().copied().unwrap_or_default();
        let finest = config.block_out_channels.first().copied().unwrap_or_default();
        let latents = config.latent_channels;
        let post_quant_conv = || Conv2d::new(&scope.child("post_quant_conv"), (latents, latents), 1, 1, 0);
        Self {
            post_quant_conv: config.use_post_quant_conv.then(post_quant_conv),
            conv_in: Conv2d::new(&decoder.child("conv_in"), (latents, coarsest), 3, 1, 1),
            mid_block: MidBlock::new(
                &decoder.child("mid_block"),
                coarsest,
                style,
                config.mid_block_add_attention,
            ),
            up_blocks: up_blocks(&decoder.child("up_blocks"), &config, style),
            conv_norm_out: GroupNorm::new(&decoder.child("conv_norm_out"), style.groups, finest, EPSILON),
            conv_out: Conv2d::new(&decoder.child("conv_out"), (finest, config.out_channels), 3, 1, 1),
            activation,
            kind: scope.kind(),
            tile: None,
            config,
        }
    }

    /// The sizes of this decoder.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// Decodes latents of the diffusion space: undoes `scaling_factor` and `shift_factor`, then draws; in tiles, if so
    /// opened, where a side is longer than a tile.
    ///
    /// # Shapes
    /// - `latents`: `[B, Z, H, W]`
    /// - returns: `[B, out_channels, H·scale, W·scale]`, f32, about `[-1, 1]`
    ///
    /// # Panics
    /// If `latents` has another number of channels.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        let latents = latents.to_kind(Kind::Float) / self.config.scaling_factor;
        let latents = (latents + self.config.shift_factor.unwrap_or_default()).to_kind(self.kind);
        match self.tile {
            Some(tile) if latents.size()[2..].iter().any(|side| *side > tile) => {
                decode_in_tiles(&latents, tile, self.config.scale(), |part| self.draw(part))
            }
            _ => self.draw(&latents),
        }
    }

    fn draw(&self, latents: &Tensor) -> Tensor {
        let hidden = match &self.post_quant_conv {
            Some(conv) => self.conv_in.forward(&conv.forward(latents)),
            None => self.conv_in.forward(latents),
        };
        let hidden = self.mid_block.forward(&hidden);
        let hidden = self.up_blocks.iter().fold(hidden, |hidden, block| block.forward(hidden));
        let hidden = self.activation.apply(&self.conv_norm_out.forward(&hidden));
        self.conv_out.forward(&hidden).to_kind(Kind::Float)
    }
}

fn up_blocks(scope: &Scope, config: &AutoencoderKlConfig, style: BlockStyle) -> Vec<UpBlock> {
    let n_blocks = config.block_out_channels.len();
    let coarse_to_fine: Vec<i64> = config.block_out_channels.iter().rev().copied().collect();
    let up_block = |idx: usize| {
        let scope = scope.child(idx);
        let (inputs, outputs) = (coarse_to_fine[idx.saturating_sub(1)], coarse_to_fine[idx]);
        let resnet = |layer: i64| {
            let inputs = if layer == 0 { inputs } else { outputs };
            ResnetBlock::new(&scope.child("resnets").child(layer), (inputs, outputs), style)
        };
        let upsampler = || Conv2d::new(&scope.child("upsamplers.0.conv"), (outputs, outputs), 3, 1, 1);
        UpBlock {
            resnets: (0..=config.layers_per_block).map(resnet).collect(),
            upsampler: (idx + 1 < n_blocks).then(upsampler),
        }
    };
    (0..n_blocks).map(up_block).collect()
}
