//! The building blocks that networks share: linear, convolution, norms, activations, attention, time embedding.

use tch::{Device, Kind, Tensor};

use crate::weights::{Init, Scope};

/// `y = x·Wᵀ + b` over the last dimension.
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// Takes `weight` and, if asked for, `bias` from a scope.
    pub fn new(scope: &Scope, inputs: i64, outputs: i64, bias: bool) -> Self {
        let weight = scope.tensor("weight", &[outputs, inputs], Init::Xavier);
        Self { weight, bias: bias.then(|| scope.tensor("bias", &[outputs], Init::Zeros)) }
    }

    /// The layer of a weight `[outputs, inputs]` and a bias `[outputs]`.
    pub fn of(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// # Shapes
    /// `[..., inputs]` → `[..., outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// `x·Wᵀ + b` over the last dimension, by the same matrix product however many rows `x` has and however they lie: libtorch
/// takes another one, and rounds otherwise, for a tensor of three dimensions that is not contiguous, and half of a split one
/// is contiguous where there is one row only.
///
/// # Shapes
/// `x` `[..., inputs]`, `weight` `[outputs, inputs]`, `bias` `[outputs]` → `[..., outputs]`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    x.contiguous().linear(weight, bias)
}

/// A two-dimensional convolution.
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv2d {
    /// Takes `weight` and `bias` from a scope; `kernel` is the side of the square kernel, in pixels.
    pub fn new(scope: &Scope, channels: (i64, i64), kernel: i64, stride: i64, padding: i64) -> Self {
        let (inputs, outputs) = channels;
        let weight = scope.tensor("weight", &[outputs, inputs, kernel, kernel], Init::Xavier);
        Self { weight, bias: scope.tensor("bias", &[outputs], Init::Zeros), stride, padding }
    }

    /// # Shapes
    /// `[batch, inputs, height, width]` → `[batch, outputs, height', width']`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        x.conv2d(&self.weight, Some(&self.bias), stride, padding, [1, 1], 1)
    }
}

/// Layer norm with weight and bias over the last dimension.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    /// Takes `weight` and `bias` from a scope.
    pub fn new(scope: &Scope, width: i64, epsilon: f64) -> Self {
        let weight = scope.tensor("weight", &[width], Init::Ones);
        Self { weight, bias: scope.tensor("bias", &[width], Init::Zeros), epsilon }
    }

    /// # Shapes
    /// `[..., width]` → the same.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.epsilon, true)
    }
}

/// Layer norm without weight or bias over the last dimension.
pub fn layer_norm(x: &Tensor, epsilon: f64) -> Tensor {
    let width = x.size().last().copied().unwrap_or(1);
    x.layer_norm([width], None::<&Tensor>, None::<&Tensor>, epsilon, true)
}

/// Root-mean-square norm with a weight over the last dimension; the mean square is formed in float32.
pub struct RmsNorm {
    weight: Tensor,
    epsilon: f64,
}

impl RmsNorm {
    /// Takes `weight` from a scope.
    pub fn new(scope: &Scope, width: i64, epsilon: f64) -> Self {
        Self { weight: scope.tensor("weight", &[width], Init::Ones), epsilon }
    }

    /// # Shapes
    /// `[..., width]` → the same.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        rms_norm(x, &self.weight, self.epsilon)
    }
}

/// `x / √(mean(x²) + ε) · weight` over the last dimension; `weight` broadcasts against `x`.
///
/// On CUDA the quotient is one kernel, which reads and writes the type of `x` and computes in float32.
///
/// Source: Zhang and Sennrich 2019, with the float32 mean of the reference networks, which round before they multiply by
/// the weight.
pub fn rms_norm(x: &Tensor, weight: &Tensor, epsilon: f64) -> Tensor {
    let width = x.size().last().copied().unwrap_or(1);
    let (normed, _inverse_root) = x.internal_fused_rms_norm([width], None::<&Tensor>, epsilon);
    normed * weight
}

/// Group norm with weight and bias over channels.
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    epsilon: f64,
}

impl GroupNorm {
    /// Takes `weight` and `bias` from a scope; `groups` must divide `channels`.
    pub fn new(scope: &Scope, groups: i64, channels: i64, epsilon: f64) -> Self {
        let weight = scope.tensor("weight", &[channels], Init::Ones);
        Self { weight, bias: scope.tensor("bias", &[channels], Init::Zeros), groups, epsilon }
    }

    /// # Shapes
    /// `[batch, channels, ...]` → the same.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.epsilon, true)
    }
}

/// A pointwise nonlinearity, by the names that model configurations use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x·Φ(x)`.
    Gelu,
    /// Its tanh approximation.
    GeluTanh,
    /// `x·σ(1.702·x)`.
    QuickGelu,
    /// `x·σ(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// The activation that transformers and diffusers configurations mean by `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu-approximate" => Self::GeluTanh,
            "quick_gelu" => Self::QuickGelu,
            "silu" | "swish" => Self::Silu,
            "relu" => Self::Relu,
            _ => return None,
        })
    }

    /// Applies it to every element.
    pub fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::QuickGelu => x * (x * 1.702).sigmoid(),
            Self::Silu => x.silu(),
            Self::Relu => x.relu(),
        }
    }
}

/// Softmax attention of every query over every key.
///
/// # Shapes
/// `query` `[batch, heads, queries, width]`, `key` and `value` `[batch, heads, keys, width]`, `mask` (added to the
/// scores before the softmax) broadcasts to `[batch, heads, queries, keys]`; the result is shaped like `query`.
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: Option<&Tensor>) -> Tensor {
    Tensor::scaled_dot_product_attention(query, key, value, mask, 0.0, false, None, false)
}

/// Angular frequencies of a sinusoidal embedding of `width` channels: `10000^(−i / (width/2))`.
///
/// # Shapes
/// `[width / 2]`, float32.
pub fn timestep_frequencies(width: i64, device: Device) -> Tensor {
    let half = width / 2;
    let exponent = Tensor::arange(half, (Kind::Float, device)) * (-(10_000_f64.ln())) / half as f64;
    exponent.exp()
}

/// Sinusoidal embedding of timesteps, cosines first: diffusers' `flip_sin_to_cos` with no frequency shift.
///
/// # Shapes
/// `timestep` `[batch]`, `frequencies` `[width / 2]` → `[batch, width]`, float32.
pub fn timestep_embedding(timestep: &Tensor, frequencies: &Tensor) -> Tensor {
    let angles = timestep.to_kind(Kind::Float).unsqueeze(1) * frequencies;
    Tensor::cat(&[angles.cos(), angles.sin()], 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestep_embedding_puts_cosines_first() {
        let embedding =
            timestep_embedding(&Tensor::from_slice(&[0.0_f32, 2.0]), &timestep_frequencies(4, Device::Cpu));
        let expected = [1.0, 1.0, 0.0, 0.0, 2_f64.cos(), 0.02_f64.cos(), 2_f64.sin(), 0.02_f64.sin()];
        for (i, want) in expected.into_iter().enumerate() {
            assert!((embedding.double_value(&[i as i64 / 4, i as i64 % 4]) - want).abs() < 1e-6);
        }
    }

    #[test]
    fn rms_norm_gives_unit_mean_square_times_the_weight() {
        let normed =
            rms_norm(&Tensor::from_slice(&[3.0_f32, 4.0]), &Tensor::from_slice(&[1.0_f32, 2.0]), 0.0);
        let rms = 12.5_f64.sqrt();
        assert!((normed.double_value(&[0]) - 3.0 / rms).abs() < 1e-6);
        assert!((normed.double_value(&[1]) - 8.0 / rms).abs() < 1e-6);
    }
}
