//! Cases that need no model: noise levels, and random steps with their probabilities.

use anyhow::{Context, ensure};
use config::{StepRule, StepWeight};
use flow::{
    NoiseGrid, Schedule, SchedulerConfig, TransitionCoefficients, TransitionRows, log_probability,
    next_latents, step_weights, transition_mean,
};
use models::reference_case::ReferenceCase;
use tch::Tensor;

use super::{Computed, LazyModel};

/// The families in the names of cases, as in `sigmas_flux_1024_10`, and whether their pipelines pass noise levels.
const FAMILIES: [(&str, bool); 3] = [("flux", true), ("qwen", true), ("sd3", false)];

/// The scheduler's settings stand among the arguments of the call, those left out at diffusers' defaults.
fn schedule(case: &ReferenceCase) -> anyhow::Result<Schedule> {
    let config =
        SchedulerConfig::read(&case.call().clone().into()).context("reading the call's scheduler")?;
    let sequence_length = case.optional_argument("image_seq_len")?.unwrap_or_default();
    Ok(Schedule::new(&config, noise_grid(case, &config)?, case.argument("steps")?, sequence_length)?)
}

/// The grid of the family in the case's name; where it names none, of the families that are published with such a bend.
fn noise_grid(case: &ReferenceCase, config: &SchedulerConfig) -> anyhow::Result<NoiseGrid> {
    let name = case.name();
    let named = |family: &str| name.split(['_', '-', '.']).any(|part| part == family);
    let family = FAMILIES.iter().find(|(family, _)| named(family));
    let passes_noise_levels = match family {
        // The one pipeline that looks for the key.
        Some(("flux", _)) => !case.optional_argument("use_flow_sigmas")?.unwrap_or(false),
        Some((_, passes_noise_levels)) => *passes_noise_levels,
        None => config.use_dynamic_shifting,
    };
    Ok(NoiseGrid::of_pipeline(passes_noise_levels))
}

/// Noise levels and time steps.
pub(super) fn sigmas(case: &ReferenceCase, _: &mut LazyModel) -> Computed {
    let schedule = schedule(case)?;
    let named = [("sigmas", &schedule.sigmas), ("timesteps", &schedule.timesteps)];
    Ok(named.map(|(name, values)| (name.to_owned(), Tensor::from_slice(values))).into())
}

/// Row `i` takes step `i`: where it goes, how likely that was, and how much the step counts.
pub(super) fn flow_sde(case: &ReferenceCase, _: &mut LazyModel) -> Computed {
    let schedule = schedule(case)?;
    let noise_level = case.argument("noise_level")?;
    let (latents, velocity, noise) = (case.input("latents")?, case.input("velocity")?, case.input("noise")?);
    for (name, tensor) in [("velocity", &velocity), ("noise", &noise)] {
        let (found, expected) = (tensor.size(), latents.size());
        ensure!(found == expected, "in.{name} has shape {found:?}, but in.latents has {expected:?}");
    }
    let n_rows = latents.size().first().copied().unwrap_or_default();
    let coefficients = (0..n_rows as usize)
        .map(|step| TransitionCoefficients::new(StepRule::FlowSde, &schedule, step, noise_level))
        .collect::<Result<Vec<_>, _>>()?;
    let rows = TransitionRows::new(&coefficients, latents.device());
    let mean = transition_mean(&latents, &velocity, &rows);
    let next = next_latents(&mean, &rows.std, &noise);
    let weights = step_weights(StepWeight::Noise, &coefficients, &coefficients);
    let weights: Vec<f32> = weights.into_iter().map(|weight| weight as f32).collect();
    let computed = [
        ("log_prob", log_probability(&next, &mean, &rows)),
        ("mean", mean),
        ("next_latents", next),
        ("std", rows.std),
        ("weights_mean_one", Tensor::from_slice(&weights)),
    ];
    Ok(computed.map(|(name, tensor)| (name.to_owned(), tensor)).into())
}
