//! Weights of an `AutoencoderKL` that copies pixels, so that a small pipeline needs no trained autoencoder.
//!
//! The network's norms and nonlinearities cannot be switched off, but they can be made harmless:
//! - each colour `x` becomes four channels `(x, −x, C, −C)`; their group's mean is 0 and, `C` being large, its deviation
//!   `C/√2` whatever `x` is (to 1 part in 2·C²);
//! - the residual blocks add nothing, since their second convolution is 0;
//! - the last norm's gain undoes the deviation and its bias lifts everything to `B`, where SiLU is the identity;
//! - the last convolution takes `((B + x) − (B − x)) / 2 = x`.

use tch::{Device, Kind, Tensor};

/// Colours, and channels of the latents.
pub const COLORS: i64 = 3;
/// Channels inside: four for each colour.
pub const CHANNELS: i64 = 4 * COLORS;

/// The `C` above.
const LARGE: f64 = 100.0;
/// The `B` above: SiLU differs from the identity by less than 1e-7 there.
const LIFT: f64 = 20.0;
/// Logarithm of the encoder's variance: none to speak of.
const LOG_VARIANCE: f64 = -30.0;

/// The tensors by diffusers' names, for `block_out_channels = [12]`, one layer per block, no attention, no quantisation
/// convolutions.
pub fn tensors() -> Vec<(String, Tensor)> {
    let mut tensors = Vec::new();
    for (side, blocks) in [
        ("encoder", &["down_blocks.0.resnets.0", "mid_block.resnets.0", "mid_block.resnets.1"][..]),
        (
            "decoder",
            &["mid_block.resnets.0", "mid_block.resnets.1", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1"]
                [..],
        ),
    ] {
        let mut put = |name: &str, tensor: Tensor| tensors.push((format!("{side}.{name}"), tensor));
        put("conv_in.weight", spread());
        put("conv_in.bias", Tensor::from_slice(&[0.0, 0.0, LARGE as f32, -LARGE as f32]).repeat([COLORS]));
        for block in blocks {
            for norm in ["norm1", "norm2"] {
                put(&format!("{block}.{norm}.weight"), ones(CHANNELS));
                put(&format!("{block}.{norm}.bias"), zeros(&[CHANNELS]));
            }
            for conv in ["conv1", "conv2"] {
                put(&format!("{block}.{conv}.weight"), zeros(&[CHANNELS, CHANNELS, 3, 3]));
                put(&format!("{block}.{conv}.bias"), zeros(&[CHANNELS]));
            }
        }
        put("conv_norm_out.weight", ones(CHANNELS) * (LARGE / 2_f64.sqrt()));
        put("conv_norm_out.bias", ones(CHANNELS) * LIFT);
        if side == "encoder" {
            put("conv_out.weight", Tensor::cat(&[gather(), zeros(&[COLORS, CHANNELS, 3, 3])], 0));
            put("conv_out.bias", Tensor::cat(&[zeros(&[COLORS]), ones(COLORS) * LOG_VARIANCE], 0));
        } else {
            put("conv_out.weight", gather());
            put("conv_out.bias", zeros(&[COLORS]));
        }
    }
    tensors
}

/// `x → (x, −x, 0, 0)` for each colour, as a convolution that looks at its centre only: `[12, 3, 3, 3]`.
fn spread() -> Tensor {
    let weight = zeros(&[CHANNELS, COLORS, 3, 3]);
    for color in 0..COLORS {
        let centre = |channel: i64, value: f64| {
            let _ = weight.get(channel).get(color).get(1).get(1).fill_(value);
        };
        centre(4 * color, 1.0);
        centre(4 * color + 1, -1.0);
    }
    weight
}

/// `(a, b, ·, ·) → (a − b) / 2` for each colour, likewise: `[3, 12, 3, 3]`.
fn gather() -> Tensor {
    let weight = zeros(&[COLORS, CHANNELS, 3, 3]);
    for color in 0..COLORS {
        for (channel, value) in [(4 * color, 0.5), (4 * color + 1, -0.5)] {
            let _ = weight.get(color).get(channel).get(1).get(1).fill_(value);
        }
    }
    weight
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Float, Device::Cpu))
}

fn ones(n: i64) -> Tensor {
    Tensor::ones([n], (Kind::Float, Device::Cpu))
}
