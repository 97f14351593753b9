//! The decoder of `AutoencoderKLQwenImage`, an autoencoder of videos, for a single frame.
//!
//! Its convolutions over time are causal: what comes before the first frame is zero. With one frame, all slices of a
//! kernel but the last in time meet these zeros, so the last slice, as a convolution over the image, is all that is left.
//! For the same reason the blocks that double the number of frames leave the first one alone.
//!
//! Letters: B images, Z latent channels, C channels, H and W the sides, in pixels of the current resolution.
//!
//! Source: diffusers 0.38, `models/autoencoders/autoencoder_kl_qwenimage.py`.

use std::path::Path;

use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::ModelError;
use crate::json_file;
use crate::layers::{Conv2d, attention};
use crate::pipeline::DecoderOptions;
use crate::sizes::{check_layers, check_product, check_sizes};
use crate::tiled_decoding::{decode_in_tiles, tile_in_latents};
use crate::weights::{Init, Scope, WeightOptions, Weights};

/// `config.json` of an autoencoder.
#[derive(Debug, Clone, Deserialize)]
pub struct AutoencoderKlQwenImageConfig {
    /// Channels at the finest resolution.
    pub base_dim: i64,
    /// Channels of a latent, Z.
    pub z_dim: i64,
    /// Channels at each resolution as multiples of `base_dim`, the finest first.
    pub dim_mult: Vec<i64>,
    /// Residual blocks per resolution of the encoder; the decoder has one more.
    pub num_res_blocks: i64,
    /// Whether time is halved together with the sides, from each resolution to the next.
    pub temperal_downsample: Vec<bool>,
    /// Colours of the image.
    #[serde(default = "three")]
    pub input_channels: i64,
    /// Mean of each latent channel, which the diffusion space lacks.
    pub latents_mean: Vec<f32>,
    /// Standard deviation of each latent channel, which is 1 in the diffusion space.
    pub latents_std: Vec<f32>,
}

fn three() -> i64 {
    3
}

/// Below this, the reference does not divide by a norm.
const EPSILON: f64 = 1e-12;
/// Each but one doubles the side of an image.
const MOST_RESOLUTIONS: usize = 16;

impl AutoencoderKlQwenImageConfig {
    /// Reads `config.json` in `dir`.
    ///
    /// # Errors
    /// If the file is missing or malformed, or contradicts itself.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let path = dir.join("config.json");
        let config: Self = json_file::read(&path)?;
        config.check().map_err(|(key, reason)| ModelError::config(&path, key, reason))?;
        Ok(config)
    }

    /// How many pixels a latent spans along each side.
    pub fn scale(&self) -> i64 {
        1 << self.temperal_downsample.len()
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let sizes =
            [("base_dim", self.base_dim), ("z_dim", self.z_dim), ("input_channels", self.input_channels)];
        check_sizes(&sizes)?;
        check_layers(&[("num_res_blocks", self.num_res_blocks)])?;
        let n_resolutions = self.dim_mult.len();
        if n_resolutions > MOST_RESOLUTIONS {
            return Err((
                "dim_mult",
                format!("has {n_resolutions} entries; it must be at most {MOST_RESOLUTIONS}"),
            ));
        }
        self.dim_mult
            .iter()
            .try_for_each(|multiple| check_product("dim_mult", &[*multiple, self.base_dim]))?;
        let halved = self.dim_mult.iter().skip(1).map(|multiple| multiple * self.base_dim);
        if n_resolutions == 0
            || self.dim_mult.iter().any(|multiple| *multiple < 1)
            || halved.into_iter().any(|c| c % 2 != 0)
        {
            let reason = format!(
                "{:?} must be positive numbers, all but the first even when multiplied by `base_dim` {}",
                self.dim_mult, self.base_dim
            );
            return Err(("dim_mult", reason));
        }
        if self.temperal_downsample.len() + 1 != n_resolutions {
            let found = self.temperal_downsample.len();
            return Err((
                "temperal_downsample",
                format!("has {found} entries; `dim_mult` has {n_resolutions}"),
            ));
        }
        for (key, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if values.len() as i64 != self.z_dim {
                return Err((key, format!("has {} entries; `z_dim` is {}", values.len(), self.z_dim)));
            }
        }
        Ok(())
    }

    /// Channels at each resolution, the coarsest first.
    fn coarse_to_fine(&self) -> Vec<i64> {
        self.dim_mult.iter().rev().map(|multiple| multiple * self.base_dim).collect()
    }
}

/// The part of a causal convolution over time that a single frame meets.
struct FrameConv {
    weight: Tensor,
    bias: Tensor,
}

impl FrameConv {
    /// `kernel` is the length of the cubic kernel.
    fn new(scope: &Scope, (inputs, outputs): (i64, i64), kernel: i64) -> Self {
        let weight = scope.tensor("weight", &[outputs, inputs, kernel, kernel, kernel], Init::Xavier);
        Self {
            // A copy, which lets go of the slices that are never used.
            weight: weight.select(2, kernel - 1).copy(),
            bias: scope.tensor("bias", &[outputs], Init::Zeros),
        }
    }

    /// `[B, inputs, H, W]` → `[B, outputs, H, W]`.
    fn forward(&self, x: &Tensor) -> Tensor {
        let padding = self.weight.size()[2] / 2;
        x.conv2d(&self.weight, Some(&self.bias), [1, 1], [padding; 2], [1, 1], 1)
    }
}

/// Root-mean-square norm over channels.
struct ChannelNorm {
    /// `[C, 1, 1]`.
    gamma: Tensor,
}

impl ChannelNorm {
    /// `axes` is how many axes of length 1 the file has after that of the channels.
    fn new(scope: &Scope, channels: i64, axes: usize) -> Self {
        let shape = [&[channels][..], &vec![1; axes]].concat();
        Self { gamma: scope.tensor("gamma", &shape, Init::Ones).view([channels, 1, 1]) }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let norm = x.norm_scalaropt_dim(2, 1, true).clamp_min(EPSILON);
        x / norm * (x.size()[1] as f64).sqrt() * &self.gamma
    }
}

struct ResnetBlock {
    norm1: ChannelNorm,
    conv1: FrameConv,
    norm2: ChannelNorm,
    conv2: FrameConv,
    conv_shortcut: Option<FrameConv>,
}

impl ResnetBlock {
    fn new(scope: &Scope, channels: (i64, i64)) -> Self {
        let (inputs, outputs) = channels;
        Self {
            norm1: ChannelNorm::new(&scope.child("norm1"), inputs, 3),
            conv1: FrameConv::new(&scope.child("conv1"), channels, 3),
            norm2: ChannelNorm::new(&scope.child("norm2"), outputs, 3),
            conv2: FrameConv::new(&scope.child("conv2"), (outputs, outputs), 3),
            conv_shortcut: (inputs != outputs)
                .then(|| FrameConv::new(&scope.child("conv_shortcut"), channels, 1)),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let hidden = self.conv1.forward(&self.norm1.forward(x).silu());
        let hidden = self.conv2.forward(&self.norm2.forward(&hidden).silu());
        match &self.conv_shortcut {
            Some(shortcut) => hidden + shortcut.forward(x),
            None => hidden + x,
        }
    }
}

/// Self-attention over all pixels, with one head as wide as the channels.
struct PixelAttention {
    norm: ChannelNorm,
    to_qkv: Conv2d,
    proj: Conv2d,
}

impl PixelAttention {
    fn new(scope: &Scope, channels: i64) -> Self {
        Self {
            norm: ChannelNorm::new(&scope.child("norm"), channels, 2),
            to_qkv: Conv2d::new(&scope.child("to_qkv"), (channels, 3 * channels), 1, 1, 0),
            proj: Conv2d::new(&scope.child("proj"), (channels, channels), 1, 1, 0),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let qkv = self.to_qkv.forward(&self.norm.forward(x));
        let qkv = qkv.flatten(2, 3).transpose(1, 2).unsqueeze(1).chunk(3, -1); // [B, 3C, H, W] → 3 × [B, 1, H·W, C]
        let mixed = attention(&qkv[0], &qkv[1], &qkv[2], None);
        let mixed = mixed.squeeze_dim(1).transpose(1, 2).reshape(x.size()); // [B, 1, H·W, C] → [B, C, H, W]
        x + self.proj.forward(&mixed)
    }
}

struct MidBlock {
    before: ResnetBlock,
    attention: PixelAttention,
    after: ResnetBlock,
}

impl MidBlock {
    fn new(scope: &Scope, channels: i64) -> Self {
        let resnet = |idx: i64| ResnetBlock::new(&scope.child("resnets").child(idx), (channels, channels));
        Self {
            before: resnet(0),
            attention: PixelAttention::new(&scope.child("attentions.0"), channels),
            after: resnet(1),
        }
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        self.after.forward(&self.attention.forward(&self.before.forward(x)))
    }
}

struct UpBlock {
    resnets: Vec<ResnetBlock>,
    /// Doubles the sides and halves the channels.
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

/// The decoding half of `AutoencoderKLQwenImage`.
pub struct AutoencoderKlQwenImageDecoder {
    /// `[Z, 1, 1]`.
    latents_mean: Tensor,
    latents_std: Tensor,
    post_quant_conv: FrameConv,
    conv_in: FrameConv,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    norm_out: ChannelNorm,
    conv_out: FrameConv,
    config: AutoencoderKlQwenImageConfig,
    /// Side of a tile, in latents.
    tile: Option<i64>,
}

impl AutoencoderKlQwenImageDecoder {
    /// Opens `config.json` and the decoder's part of `diffusion_pytorch_model.safetensors` in `dir`.
    ///
    /// Its weights are float32 whatever the options say: images are compared in single bytes.
    ///
    /// # Errors
    /// If a file is missing or malformed, the tensors are not those of the configuration, or tiles of the size asked for
    /// do not fit.
    pub fn open(dir: &Path, weights: &WeightOptions, options: DecoderOptions) -> Result<Self, ModelError> {
        let config = AutoencoderKlQwenImageConfig::open(dir)?;
        let tile = options.tile.map(|tile| tile_in_latents(tile, config.scale())).transpose()?;
        let weights = WeightOptions { kind: Kind::Float, ..weights.clone() };
        let weights = Weights::open(dir, "diffusion_pytorch_model", &weights)?;
        let decoder = Self { tile, ..Self::new(&weights.scope(""), config) };
        weights.ignore(&["encoder.", "quant_conv."]);
        // What doubles the number of frames, after the first.
        for idx in 0..decoder.up_blocks.len() {
            weights.ignore(&[&format!("decoder.up_blocks.{idx}.upsamplers.0.time_conv.")]);
        }
        weights.finish()?;
        Ok(decoder)
    }

    fn new(scope: &Scope, config: AutoencoderKlQwenImageConfig) -> Self {
        let decoder = scope.child("decoder");
        let channels = config.coarse_to_fine();
        let (coarsest, finest) = (channels[0], channels[channels.len() - 1]);
        let per_channel =
            |values: &[f32]| Tensor::from_slice(values).view([-1, 1, 1]).to_device(scope.device());
        Self {
            latents_mean: per_channel(&config.latents_mean),
            latents_std: per_channel(&config.latents_std),
            post_quant_conv: FrameConv::new(&scope.child("post_quant_conv"), (config.z_dim, config.z_dim), 1),
            conv_in: FrameConv::new(&decoder.child("conv_in"), (config.z_dim, coarsest), 3),
            mid_block: MidBlock::new(&decoder.child("mid_block"), coarsest),
            up_blocks: up_blocks(&decoder.child("up_blocks"), &channels, config.num_res_blocks),
            norm_out: ChannelNorm::new(&decoder.child("norm_out"), finest, 3),
            conv_out: FrameConv::new(&decoder.child("conv_out"), (finest, config.input_channels), 3),
            config,
            tile: None,
        }
    }

    /// The sizes of this decoder.
    pub fn config(&self) -> &AutoencoderKlQwenImageConfig {
        &self.config
    }

    /// Decodes latents of the diffusion space: gives each channel its mean and deviation back, then draws; in tiles, if
    /// so opened, where a side is longer than a tile.
    ///
    /// # Shapes
    /// - `latents`: `[B, Z, H, W]`
    /// - returns: `[B, colours, H·scale, W·scale]`, f32, in `[-1, 1]`: this autoencoder clamps what it draws
    ///
    /// # Panics
    /// If `latents` has another number of channels.
    pub fn decode(&self, latents: &Tensor) -> Tensor {
        let latents = latents.to_kind(Kind::Float) * &self.latents_std + &self.latents_mean;
        let drawn = match self.tile {
            Some(tile) if latents.size()[2..].iter().any(|side| *side > tile) => {
                decode_in_tiles(&latents, tile, self.config.scale(), |part| self.draw(part))
            }
            _ => self.draw(&latents),
        };
        drawn.clamp(-1.0, 1.0)
    }

    fn draw(&self, latents: &Tensor) -> Tensor {
        let hidden = self.conv_in.forward(&self.post_quant_conv.forward(latents));
        let hidden = self.mid_block.forward(&hidden);
        let hidden = self.up_blocks.iter().fold(hidden, |hidden, block| block.forward(hidden));
        self.conv_out.forward(&self.norm_out.forward(&hidden).silu())
    }
}

/// `channels` of each resolution, the coarsest first.
fn up_blocks(scope: &Scope, channels: &[i64], num_res_blocks: i64) -> Vec<UpBlock> {
    let up_block = |idx: usize| {
        let scope = scope.child(idx);
        // The block before halved its channels.
        let inputs = if idx == 0 { channels[0] } else { channels[idx - 1] / 2 };
        let outputs = channels[idx];
        let resnet = |layer: i64| {
            let inputs = if layer == 0 { inputs } else { outputs };
            ResnetBlock::new(&scope.child("resnets").child(layer), (inputs, outputs))
        };
        let upsampler =
            || Conv2d::new(&scope.child("upsamplers.0.resample.1"), (outputs, outputs / 2), 3, 1, 1);
        UpBlock {
            resnets: (0..=num_res_blocks).map(resnet).collect(),
            upsampler: (idx + 1 < channels.len()).then(upsampler),
        }
    };
    (0..channels.len()).map(up_block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(change: impl FnOnce(&mut serde_json::Value)) -> Result<AutoencoderKlQwenImageConfig, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        let mut json = serde_json::json!({
            "base_dim": 4, "z_dim": 2, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [false, true],
            "latents_mean": [0.5, -1.0], "latents_std": [1.0, 2.0],
        });
        change(&mut json);
        std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
        AutoencoderKlQwenImageConfig::open(folder.path())
    }

    #[test]
    fn values_that_do_not_work_are_named() {
        assert_eq!(read(|_| ()).unwrap().scale(), 4);
        let changes: [(&str, serde_json::Value); 5] = [
            ("base_dim", 0.into()),
            ("dim_mult", serde_json::json!([1, 2, 0])),
            ("temperal_downsample", serde_json::json!([true])),
            ("latents_mean", serde_json::json!([0.5])),
            ("latents_std", serde_json::json!([1.0, 2.0, 3.0])),
        ];
        for (key, value) in changes {
            let error = read(|json| json[key] = value).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains("config.json"), "{error}");
        }
    }

    #[test]
    fn a_frame_meets_the_last_slice_of_a_causal_kernel() {
        let weights = Weights::random(3, Kind::Float, tch::Device::Cpu);
        let conv = FrameConv::new(&weights.scope("conv"), (2, 3), 3);
        let kernel = weights.scope("conv").tensor("weight", &[3, 2, 3, 3, 3], Init::Xavier);
        let frame = Tensor::randn([1, 2, 5, 4], (Kind::Float, tch::Device::Cpu));
        let video = frame.unsqueeze(2).constant_pad_nd([1, 1, 1, 1, 2, 0]);
        let expected = video.conv3d(&kernel, None::<&Tensor>, [1; 3], [0; 3], [1; 3], 1).squeeze_dim(2);
        let difference = (conv.forward(&frame) - expected).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{difference}");
    }
}
