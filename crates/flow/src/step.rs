//! One move of the sampler, from latents at noise level `σ` to latents at the next one, and how likely it was.
//!
//! The network predicts a velocity `v = dx/dσ`. Writing `Δ = σ_next − σ` (negative, since noise falls), there are two
//! ways to move:
//!
//! ```text
//! deterministic    x' = x + Δ·v                                  `ode_step`: the trunk, completions, evaluation
//! random           x' = mean + S·ε,   ε ~ N(0, 1)                `transition_mean`, then `next_latents`
//! ```
//!
//! The random move is what makes reinforcement learning possible: it is an *action* drawn from a Gaussian policy whose
//! mean depends on the network, so it has a probability, and the probability has a gradient. It is built to leave the
//! distribution of latents at `σ_next` where the deterministic move would have put it, so images stay images. Under
//! either [`StepRule`] the mean is a sum of two products,
//!
//! ```text
//! mean = mean_latent·x + mean_velocity·v
//! ```
//!
//! whose factors, like the standard deviation `S`, depend on the schedule alone. [`TransitionCoefficients`] works them
//! out on the host in float64; [`TransitionRows`] lines them up on a device, one row of a batch each, so that rows at
//! different steps can share a batch. All tensor arithmetic is float32, whatever the network computed in.
//!
//! Three properties that the rest of the system leans on:
//!
//! 1. **The log-probability is written once**, in [`log_probability`] and its difference [`log_ratio`]; rollout
//!    and training both call them.
//! 2. **The next latents can be rebuilt without a device.** [`next_latents`] multiplies, rounds, adds and rounds;
//!    [`next_latents_on_host`] does the same to slices and gives the same bits. A trajectory therefore travels as
//!    mean and key of the noise (see the crate `noise`).
//! 3. **Explorations of a branch point share its mean.** [`repeat_for_branches`] hands a seed's one mean to rows
//!    `seed·K + branch`, and their gradients add up in it: one network call trains K transitions.
//!
//! Source: Flow-GRPO (arXiv:2505.05470) for the SDE, coefficients-preserving sampling (arXiv:2509.05952) for CPS.

use std::f64::consts::{FRAC_PI_2, TAU};

use config::{RatioNormalization, StepRule};
use tch::{Device, Kind, Tensor};

use crate::transfer::upload;
use crate::{FlowError, Schedule};

/// Everything about the random move at one step that does not depend on the latents.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TransitionCoefficients {
    /// The rule they belong to.
    pub rule: StepRule,
    /// Noise level the move starts from.
    pub sigma: f64,
    /// Noise level it arrives at.
    pub sigma_next: f64,
    /// Factor of the latents in the mean.
    pub mean_latent: f64,
    /// Factor of the velocity in the mean.
    pub mean_velocity: f64,
    /// Standard deviation `S` of the move.
    pub std: f64,
    /// Diffusion coefficient `η = S / √(σ − σ_next)`: the noise per root of "time".
    pub eta: f64,
}

impl TransitionCoefficients {
    /// The coefficients of step `step` of a schedule.
    ///
    /// # Errors
    /// If the schedule has no such step, or if the noise level is out of the rule's range. A noise level of 0 is
    /// refused because a move without noise has no probability.
    pub fn new(
        rule: StepRule,
        schedule: &Schedule,
        step: usize,
        noise_level: f64,
    ) -> Result<Self, FlowError> {
        if step >= schedule.steps() {
            return Err(FlowError::NoSuchStep { step, steps: schedule.steps() });
        }
        check_noise_level(rule, noise_level)?;
        let sigma = f64::from(schedule.sigmas[step]);
        let sigma_next = f64::from(schedule.sigmas[step + 1]);
        Ok(match rule {
            StepRule::FlowSde => {
                // η divides by 1 − σ, which is 0 at the first step: there, and only there, the next σ stands in.
                let sigma_in_eta = if step == 0 { sigma_next } else { sigma };
                let eta = noise_level * (sigma / (1.0 - sigma_in_eta)).sqrt();
                Self::flow_sde(sigma, sigma_next, eta)
            }
            StepRule::Cps => Self::cps(sigma, sigma_next, noise_level),
        })
    }

    fn flow_sde(sigma: f64, sigma_next: f64, eta: f64) -> Self {
        let delta = sigma_next - sigma;
        let drift = eta * eta / (2.0 * sigma);
        Self {
            rule: StepRule::FlowSde,
            sigma,
            sigma_next,
            mean_latent: 1.0 + drift * delta,
            mean_velocity: (1.0 + drift * (1.0 - sigma)) * delta,
            std: eta * (-delta).sqrt(),
            eta,
        }
    }

    /// Predicted data `x − σ·v` and predicted noise `x + (1 − σ)·v` are mixed anew at `σ_next`, and of the noise's share
    /// `σ_next` a part of size `S` is drawn afresh.
    fn cps(sigma: f64, sigma_next: f64, noise_level: f64) -> Self {
        let std = sigma_next * (noise_level * FRAC_PI_2).sin();
        let data_share = 1.0 - sigma_next;
        let noise_share = (sigma_next * sigma_next - std * std).max(0.0).sqrt();
        Self {
            rule: StepRule::Cps,
            sigma,
            sigma_next,
            mean_latent: data_share + noise_share,
            mean_velocity: (1.0 - sigma) * noise_share - sigma * data_share,
            std,
            eta: std / (sigma - sigma_next).sqrt(),
        }
    }

    /// Length `h = σ − σ_next` of the step.
    pub fn length(&self) -> f64 {
        self.sigma - self.sigma_next
    }

    /// What the squared distance from the mean is divided by in the log-probability.
    ///
    /// The true density has `2S²`. CPS drops it, and with it the normaliser, as its authors do; its gradient then
    /// shrinks with the noise all by itself.
    fn distance_scale(&self) -> f64 {
        match self.rule {
            StepRule::FlowSde => 2.0 * self.std * self.std,
            StepRule::Cps => 1.0,
        }
    }

    /// What is subtracted from the scaled distance: the logarithm of the density's normaliser.
    fn log_normalizer(&self) -> f64 {
        match self.rule {
            StepRule::FlowSde => self.std.ln() + 0.5 * TAU.ln(),
            StepRule::Cps => 0.0,
        }
    }
}

/// The SDE takes any positive noise level, CPS one in (0, 1].
fn check_noise_level(rule: StepRule, noise_level: f64) -> Result<(), FlowError> {
    let (rule, in_range, range) = match rule {
        StepRule::FlowSde => ("flow-sde", noise_level.is_finite() && noise_level > 0.0, "above 0"),
        StepRule::Cps => ("cps", noise_level > 0.0 && noise_level <= 1.0, "above 0 and at most 1"),
    };
    match in_range {
        true => Ok(()),
        false => Err(FlowError::NoiseLevel { rule, noise_level, range }),
    }
}

/// Coefficients on a device, one per row of a batch; each tensor is `[B]`, float32.
#[derive(Debug)]
pub struct TransitionRows {
    /// Factors of the latents in the mean.
    pub mean_latent: Tensor,
    /// Factors of the velocity in the mean.
    pub mean_velocity: Tensor,
    /// Standard deviations.
    pub std: Tensor,
    distance_scale: Tensor,
    log_normalizer: Tensor,
}

impl TransitionRows {
    /// One row per entry of `coefficients`, which may belong to different steps.
    pub fn new(coefficients: &[TransitionCoefficients], device: Device) -> Self {
        let columns: [fn(&TransitionCoefficients) -> f64; 5] = [
            |row| row.mean_latent,
            |row| row.mean_velocity,
            |row| row.std,
            TransitionCoefficients::distance_scale,
            TransitionCoefficients::log_normalizer,
        ];
        let of_column = |value: &fn(&TransitionCoefficients) -> f64| {
            coefficients.iter().map(|row| value(row) as f32).collect::<Vec<_>>()
        };
        let values: Vec<f32> = columns.iter().flat_map(of_column).collect();
        let table = upload(&Tensor::from_slice(&values).view([columns.len() as i64, -1]), device);
        let column = |position| table.get(position);
        Self {
            mean_latent: column(0),
            mean_velocity: column(1),
            std: column(2),
            distance_scale: column(3),
            log_normalizer: column(4),
        }
    }

    /// Every row `n_branches` times in a row, matching [`repeat_for_branches`].
    pub fn repeat_for_branches(&self, n_branches: usize) -> Self {
        let repeat = |column: &Tensor| repeat_for_branches(column, n_branches);
        Self {
            mean_latent: repeat(&self.mean_latent),
            mean_velocity: repeat(&self.mean_velocity),
            std: repeat(&self.std),
            distance_scale: repeat(&self.distance_scale),
            log_normalizer: repeat(&self.log_normalizer),
        }
    }
}

/// Takes the deterministic step `x + Δ·v`.
///
/// # Shapes
/// - `latents`, `velocity`: `[B, ...]`, any float type; computed and returned in float32
/// - `delta_sigma`: `[B]`, [`Schedule::delta_sigma`] of each row's step
///
/// # Panics
/// If the shapes do not agree.
pub fn ode_step(latents: &Tensor, velocity: &Tensor, delta_sigma: &Tensor) -> Tensor {
    let velocity = velocity.to_kind(Kind::Float);
    latents.to_kind(Kind::Float) + per_row(delta_sigma, &velocity) * velocity
}

/// The mean of the random move; gradients flow to both inputs.
///
/// # Shapes
/// - `latents`, `velocity`: `[B, ...]`, any float type; computed and returned in float32
/// - `rows`: B rows
///
/// # Panics
/// If the shapes do not agree.
pub fn transition_mean(latents: &Tensor, velocity: &Tensor, rows: &TransitionRows) -> Tensor {
    let (latents, velocity) = (latents.to_kind(Kind::Float), velocity.to_kind(Kind::Float));
    per_row(&rows.mean_latent, &latents) * &latents + per_row(&rows.mean_velocity, &velocity) * &velocity
}

/// Carries out the random move: `mean + std·noise`, rounded after the product and after the sum.
///
/// # Shapes
/// - `mean`, `noise`: `[B, ...]`, float32
/// - `std`: `[B]`, float32
///
/// # Panics
/// If the shapes do not agree.
pub fn next_latents(mean: &Tensor, std: &Tensor, noise: &Tensor) -> Tensor {
    // Two kernels, so that no device can fuse them into one rounding.
    let scaled_noise = per_row(std, noise) * noise;
    mean + scaled_noise
}

/// [`next_latents`] for one row, without a device and with the same bits.
///
/// # Panics
/// If `mean` and `noise` differ in length.
pub fn next_latents_on_host(mean: &[f32], std: f32, noise: &[f32]) -> Vec<f32> {
    assert_eq!(mean.len(), noise.len(), "a row of latents needs as much noise as it has elements");
    mean.iter().zip(noise).map(|(mean, noise)| mean + std * noise).collect()
}

/// The log-probability of having moved to `next`, in nats per element.
///
/// It is the *mean* over the elements, not the sum: ratios of sums over 10⁵ elements would leave any clip range at
/// once. The clip ranges in use (about 10⁻⁴) rest on this. No gradient flows to `next`: it is the action taken.
///
/// # Shapes
/// - `next`, `mean`: `[B, ...]`, float32
/// - `rows`: B rows
/// - returns: `[B]`, float32
///
/// # Panics
/// If the shapes do not agree.
pub fn log_probability(next: &Tensor, mean: &Tensor, rows: &TransitionRows) -> Tensor {
    let distance = mean_over_elements(&(next.detach() - mean).square());
    -(distance / &rows.distance_scale) - &rows.log_normalizer
}

/// The log ratio of the same move's probabilities under a new mean and under the old one.
///
/// Without normalization it is the difference of two [`log_probability`] but for rounding: `a² − b²` is taken as
/// `(a − b)(a + b)`, which is exactly 0 where the means agree and keeps its digits where they nearly do.
///
/// GRPO-Guard's normalization takes two things out of it: the square of the means' distance, by which it is below 0 on
/// average for any policy that has moved, and the step's deviation, by which it spreads wider at quiet steps than at loud
/// ones. What is left is the same under either [`StepRule`], `ε` being the noise that was drawn:
///
/// ```text
/// (log ratio + mean over elements of (mean_new − mean_old)² / 2S²)·S = mean over elements of ε·(mean_new − mean_old)
/// ```
///
/// # Shapes
/// - `next`, `mean_new`, `mean_old`: `[B, ...]`, float32; the gradient flows to `mean_new` alone
/// - `rows`: B rows
/// - returns: `[B]`, float32
///
/// # Panics
/// If the shapes do not agree.
///
/// Source: GRPO-Guard (arXiv:2510.22319).
pub fn log_ratio(
    next: &Tensor,
    (mean_new, mean_old): (&Tensor, &Tensor),
    rows: &TransitionRows,
    normalization: RatioNormalization,
) -> Tensor {
    let (next, mean_old) = (next.detach(), mean_old.detach());
    let change = mean_new - &mean_old;
    match normalization {
        RatioNormalization::None => {
            mean_over_elements(&(change * (next * 2.0 - mean_new - &mean_old))) / &rows.distance_scale
        }
        RatioNormalization::Guard => mean_over_elements(&(change * (next - &mean_old))) / &rows.std,
    }
}

/// Gives every seed's row to each of its explorations: row `seed·n_branches + branch` of the result is row `seed`.
///
/// # Shapes
/// - `rows`: `[S, ...]`
/// - returns: `[S·n_branches, ...]`; in the backward pass the branches' gradients are summed
pub fn repeat_for_branches(rows: &Tensor, n_branches: usize) -> Tensor {
    let mut shape = rows.size();
    let mut expanded = shape.clone();
    expanded.insert(1, n_branches as i64);
    shape[0] *= n_branches as i64;
    rows.unsqueeze(1).expand(expanded, false).reshape(shape) // [S, ...] → [S, K, ...] → [S·K, ...]
}

/// `[B]` → `[B, 1, ..., 1]`, with as many axes as `like`.
fn per_row(column: &Tensor, like: &Tensor) -> Tensor {
    let mut shape = vec![1; like.dim()];
    shape[0] = column.size()[0];
    column.view(shape.as_slice())
}

/// `[B, ...]` → `[B]`.
fn mean_over_elements(values: &Tensor) -> Tensor {
    values.flatten(1, -1).mean_dim(1, false, None::<Kind>)
}

#[cfg(test)]
mod tests;
