//! From log-probability ratios and advantages to a loss.
//!
//! For each transition, with `ρ = exp(log ratio)`, its weight `w` and its advantage `A` clamped to ±`advantage_clip`:
//!
//! ```text
//! policy term = max(−w·A·ρ, −w·A·clamp(ρ, 1 − clip_below, 1 + clip_above))
//! ```
//!
//! The log ratio counts as at most ±20 here. The maximum is pessimistic: a transition that already moved beyond the clip range in the direction its advantage
//! asks for has no gradient left; one that moved the other way keeps it. To this comes β times the divergence from the
//! base model (the same network with its adapter off), unweighted:
//!
//! ```text
//! KL = mean over elements of (mean_new − mean_reference)² / (2·S²)
//! ```
//!
//! which is the exact Kullback–Leibler divergence of the two Gaussians, per element. It does not depend on the explored
//! noise, so it is taken once per seed and step while policy terms are taken for each of its K branches:
//!
//! ```text
//! loss of (seed, step) = mean of K policy terms + β·KL
//! ```
//!
//! Source: PPO's clipped objective in Flow-GRPO (arXiv:2505.05470) with TempFlow-GRPO's weights (arXiv:2508.04324).

use config::KlDenominator;
use tch::{Kind, Tensor};

use crate::{TransitionCoefficients, upload};

/// Beyond it a ratio counts as this one, and has no gradient: far outside any clip range, and its exponential is finite, so
/// that one worker's means, however false, do not end a run.
const LARGEST_LOG_RATIO: f64 = 20.0;

/// The numbers that bound a policy update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClippedObjective {
    /// How far a ratio may be below 1 before clipping sets in; about 1e-4, since log-probabilities are means.
    pub clip_below: f64,
    /// How far it may be above 1.
    pub clip_above: f64,
    /// Advantages are clamped to plus and minus this.
    pub advantage_clip: f64,
}

/// The policy loss of a batch of transitions, and what to log about it.
#[derive(Debug)]
pub struct PolicyLoss {
    /// Mean over rows of the policy terms; scalar, carries the gradient.
    pub loss: Tensor,
    /// Ratios `ρ`, `[rows]`, detached like everything below.
    pub ratio: Tensor,
    /// Half the mean square of the log ratio: an estimate of the divergence from the sampling policy.
    pub approx_kl: Tensor,
    /// Share of rows with `ρ − 1 > clip_above`, whether or not their advantage makes the clip take the gradient.
    pub clip_fraction_above: Tensor,
    /// Share of rows with `1 − ρ > clip_below`, likewise.
    pub clip_fraction_below: Tensor,
}

impl ClippedObjective {
    /// The policy loss of a batch of transitions.
    ///
    /// # Shapes
    /// - `log_ratio`, `advantages`, `weights`: `[rows]`, float32; the gradient flows to `log_ratio`
    ///
    /// # Panics
    /// If the shapes differ: broadcasting here would silently train on the wrong rows.
    pub fn policy_loss(&self, log_ratio: &Tensor, advantages: &Tensor, weights: &Tensor) -> PolicyLoss {
        assert_eq!(log_ratio.size(), advantages.size(), "one advantage per transition; this is a bug");
        assert_eq!(log_ratio.size(), weights.size(), "one weight per transition; this is a bug");
        let weighted = -(weights * advantages.clamp(-self.advantage_clip, self.advantage_clip));
        let log_ratio = log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO);
        let ratio = log_ratio.exp();
        let unclipped = &weighted * &ratio;
        let clipped = &weighted * ratio.clamp(1.0 - self.clip_below, 1.0 + self.clip_above);
        let loss = unclipped.maximum(&clipped).mean(Kind::Float);

        let (ratio, log_ratio) = (ratio.detach(), log_ratio.detach());
        let deviation = &ratio - 1.0;
        let share = |mask: Tensor| mask.mean(Kind::Float);
        PolicyLoss {
            loss,
            approx_kl: log_ratio.square().mean(Kind::Float) * 0.5,
            clip_fraction_above: share(deviation.gt(self.clip_above)),
            clip_fraction_below: share(deviation.lt(-self.clip_below)),
            ratio,
        }
    }
}

/// `2·S²`, the variance of the move, gives the exact divergence; `2·η²`, the variance per unit of time, one smaller by the
/// step's length, so β is about ten times larger.
fn squared_unit(denominator: KlDenominator, coefficients: &TransitionCoefficients) -> f64 {
    let deviation = match denominator {
        KlDenominator::Std => coefficients.std,
        KlDenominator::Eta => coefficients.eta,
    };
    2.0 * deviation * deviation
}

/// The divergence of each row's Gaussian from the reference's, per element.
///
/// # Shapes
/// - `mean_new`, `mean_reference`: `[S, ...]`, float32; the gradient flows to `mean_new` alone
/// - `coefficients`: one per row
/// - returns: `[S]`
///
/// # Panics
/// If the shapes differ.
pub fn kl_divergence(
    mean_new: &Tensor,
    mean_reference: &Tensor,
    coefficients: &[TransitionCoefficients],
    denominator: KlDenominator,
) -> Tensor {
    let denominators: Vec<f32> =
        coefficients.iter().map(|row| squared_unit(denominator, row) as f32).collect();
    let denominators = upload(&Tensor::from_slice(&denominators), mean_new.device());
    let squares = (mean_new - mean_reference.detach()).square();
    squares.flatten(1, -1).mean_dim(1, false, Kind::Float) / denominators
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NoiseGrid, Schedule, SchedulerConfig};
    use config::StepRule;

    const OBJECTIVE: ClippedObjective =
        ClippedObjective { clip_below: 1e-4, clip_above: 1e-4, advantage_clip: 5.0 };

    fn row(values: &[f32]) -> Tensor {
        Tensor::from_slice(values).unsqueeze(0)
    }

    fn single(value: f32) -> Tensor {
        Tensor::from_slice(&[value])
    }

    fn step_three() -> TransitionCoefficients {
        let config = SchedulerConfig { shift: 3.0, ..SchedulerConfig::default() };
        let schedule = Schedule::new(&config, NoiseGrid::Scheduler, 10, 0).unwrap();
        TransitionCoefficients::new(StepRule::FlowSde, &schedule, 3, 0.7).unwrap()
    }

    #[test]
    fn loss_matches_the_worked_numbers_and_clips_the_gradient() {
        // ln 0.9995284018 from the worked vector step, weight of step 3.
        for (advantage, expected, has_gradient) in
            [(1.5, -1.5056829656, true), (-1.5, 1.5062427385, false), (7.0, -5.0189432186, true)]
        {
            let log_ratio = single(-4.717_093_8e-4).set_requires_grad(true);
            let got = OBJECTIVE.policy_loss(&log_ratio, &single(advantage), &single(1.004_262_2));
            assert!((got.loss.double_value(&[]) - expected).abs() < 1e-6, "advantage {advantage}");
            got.loss.backward();
            let gradient = log_ratio.grad().double_value(&[0]);
            let expected_gradient = if has_gradient { expected } else { 0.0 };
            assert!((gradient - expected_gradient).abs() < 1e-6, "advantage {advantage}: {gradient}");
        }
    }

    #[test]
    fn gradient_inside_the_clip_range_is_that_of_the_plain_ratio() {
        let log_ratio = Tensor::from_slice(&[0.0_f32, 5e-5]).set_requires_grad(true);
        let advantages = Tensor::from_slice(&[2.0_f32, -1.0]);
        let got = OBJECTIVE.policy_loss(&log_ratio, &advantages, &Tensor::from_slice(&[1.0_f32, 0.5]));
        got.loss.backward();
        let gradient = log_ratio.grad();
        assert!((gradient.double_value(&[0]) + 1.0).abs() < 1e-6);
        assert!((gradient.double_value(&[1]) - 0.25 * 5e-5_f64.exp()).abs() < 1e-6);
    }

    #[test]
    fn metrics_tell_both_sides_of_the_clip_range_apart() {
        let log_ratio = Tensor::from_slice(&[0.0_f32, 3e-4, -2e-4, -5e-4]);
        let ones = Tensor::from_slice(&[1.0_f32; 4]);
        let got = OBJECTIVE.policy_loss(&log_ratio, &ones, &ones);
        assert_eq!(got.clip_fraction_above.double_value(&[]), 0.25);
        assert_eq!(got.clip_fraction_below.double_value(&[]), 0.5);
        assert!((got.approx_kl.double_value(&[]) - 0.5 * 38e-8 / 4.0).abs() < 1e-12);
        assert!(((&got.ratio - 1.0).abs().max().double_value(&[]) - 4.99875e-4).abs() < 1e-6);
    }

    #[test]
    fn on_policy_ratio_is_exactly_one() {
        let zeros = Tensor::zeros([6], (Kind::Float, tch::Device::Cpu));
        let got = OBJECTIVE.policy_loss(&zeros, &zeros.ones_like(), &zeros.ones_like());
        assert_eq!(got.ratio, zeros.ones_like());
        assert_eq!(got.clip_fraction_above.double_value(&[]), 0.0);
        assert_eq!(got.clip_fraction_below.double_value(&[]), 0.0);
    }

    #[test]
    fn a_ratio_of_false_means_has_a_finite_loss_and_gradient() {
        for (log_ratio, advantage) in [(1e30, -1.0), (1e30, 1.0), (-1e30, -1.0), (-1e30, 1.0), (100.0, -5.0)]
        {
            let log_ratio = single(log_ratio).set_requires_grad(true);
            let got = OBJECTIVE.policy_loss(&log_ratio, &single(advantage), &single(1.0));
            got.loss.backward();
            let (loss, gradient) = (got.loss.double_value(&[]), log_ratio.grad().double_value(&[0]));
            assert!(loss.is_finite() && gradient == 0.0, "{advantage}: {loss}, {gradient}");
            assert!(got.approx_kl.double_value(&[]).is_finite());
        }
    }

    #[test]
    fn either_side_of_the_clip_range_has_a_width_of_its_own() {
        let objective = ClippedObjective { clip_below: 1e-4, clip_above: 4e-4, advantage_clip: 5.0 };
        // ρ − 1 and A; the loss −A·ρ or, where the clip takes over, −A·(1 ± clip); and whether a gradient is left.
        for (deviation, advantage, expected, has_gradient) in [
            (3e-4, 2.0, -2.0006, true),
            (5e-4, 2.0, -2.0008, false),
            (5e-4, -2.0, 2.001, true),
            (-0.5e-4, -2.0, 1.9999, true),
            (-3e-4, -2.0, 1.9998, false),
            (-3e-4, 2.0, -1.9994, true),
        ] {
            let log_ratio = single(f64::ln_1p(deviation) as f32).set_requires_grad(true);
            let got = objective.policy_loss(&log_ratio, &single(advantage), &single(1.0));
            let loss = got.loss.double_value(&[]);
            assert!((loss - expected).abs() < 1e-6, "{deviation} {advantage}: {loss} is not {expected}");
            got.loss.backward();
            let gradient = log_ratio.grad().double_value(&[0]);
            let expected = if has_gradient { expected } else { 0.0 };
            assert!((gradient - expected).abs() < 1e-6, "{deviation} {advantage}: {gradient}");
        }
        let log_ratio = Tensor::from_slice(&[3e-4_f32, 5e-4, -2e-4, -0.5e-4]);
        let ones = Tensor::from_slice(&[1.0_f32; 4]);
        let got = objective.policy_loss(&log_ratio, &ones, &ones);
        assert_eq!(got.clip_fraction_above.double_value(&[]), 0.25);
        assert_eq!(got.clip_fraction_below.double_value(&[]), 0.25);
    }

    #[test]
    fn a_guarded_loss_matches_the_worked_numbers() {
        // The guarded ratio of the worked vector step, clipped at 2e-6, and 1/h of step 3 as its weight.
        let objective = ClippedObjective { clip_below: 2e-6, clip_above: 2e-6, advantage_clip: 5.0 };
        let (ratio, weight) = (0.999_790_475_9_f64, 14.853_536_2_f64);
        for (advantage, expected, has_gradient) in
            [(1.5, -1.5 * weight * ratio, true), (-1.5, 1.5 * weight * (1.0 - 2e-6), false)]
        {
            let log_ratio = single(ratio.ln() as f32).set_requires_grad(true);
            let got = objective.policy_loss(&log_ratio, &single(advantage), &single(weight as f32));
            assert!((got.loss.double_value(&[]) / expected - 1.0).abs() < 5e-7, "advantage {advantage}");
            got.loss.backward();
            let expected = if has_gradient { expected } else { 0.0 };
            let gradient = log_ratio.grad().double_value(&[0]);
            assert!((gradient - expected).abs() < 3e-5, "advantage {advantage}: {gradient}");
        }
    }

    #[test]
    fn kl_matches_the_worked_numbers() {
        let coefficients = step_three();
        let x = row(&[0.5, -1.0, 0.25, 2.0]);
        let v = row(&[-0.3, 0.4, 1.0, -0.7]);
        // In float64: the numbers have eight digits, and float32 means differing by 8e-4 would keep four.
        let (x, v) = (x.to_kind(Kind::Double), v.to_kind(Kind::Double));
        let mean = |v: &Tensor| &x * coefficients.mean_latent + v * coefficients.mean_velocity;
        let (mean_new, mean_reference) = (mean(&(&v + 0.01)), mean(&v));
        let divergence = |denominator| {
            let squares = (&mean_new - &mean_reference).to_kind(Kind::Float);
            let zero = squares.zeros_like();
            kl_divergence(&squares, &zero, &[coefficients], denominator).double_value(&[0])
        };
        let (by_std, by_eta) = (divergence(KlDenominator::Std), divergence(KlDenominator::Eta));
        assert!((by_std / 1.7667684e-6 - 1.0).abs() < 1e-5, "{by_std}");
        assert!((by_eta / 1.1894598e-7 - 1.0).abs() < 1e-5, "{by_eta}");
        assert!((by_std / by_eta - 14.8535362).abs() < 1e-4);
    }

    #[test]
    fn kl_of_equal_means_is_zero_and_the_reference_gets_no_gradient() {
        let mean = row(&[0.5, -1.0]).set_requires_grad(true);
        let reference = row(&[0.5, 1.0]).set_requires_grad(true);
        let same = kl_divergence(&mean, &mean.detach(), &[step_three()], KlDenominator::Std);
        assert_eq!(same.double_value(&[0]), 0.0);
        kl_divergence(&mean, &reference, &[step_three()], KlDenominator::Std).sum(Kind::Float).backward();
        assert!(mean.grad().defined() && !reference.grad().defined());
    }
}
