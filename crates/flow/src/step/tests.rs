//! One move against worked numbers, limits and identities.

use super::*;
use crate::{NoiseGrid, SchedulerConfig};
use noise::{NoiseKey, Purpose, standard_normal};

fn sd3() -> Schedule {
    let config = SchedulerConfig { shift: 3.0, ..SchedulerConfig::default() };
    Schedule::new(&config, NoiseGrid::Scheduler, 10, 0).unwrap()
}

fn flow_sde(step: usize) -> TransitionCoefficients {
    TransitionCoefficients::new(StepRule::FlowSde, &sd3(), step, 0.7).unwrap()
}

fn cps(step: usize, noise_level: f64) -> TransitionCoefficients {
    TransitionCoefficients::new(StepRule::Cps, &sd3(), step, noise_level).unwrap()
}

fn row(values: &[f32]) -> Tensor {
    Tensor::from_slice(values).unsqueeze(0)
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

fn assert_close(got: &Tensor, expected: &[f64], tolerance: f64) {
    let got = floats(got);
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((f64::from(*got) - expected).abs() < tolerance, "{got} is not {expected}");
    }
}

fn on_cpu(coefficients: TransitionCoefficients) -> TransitionRows {
    TransitionRows::new(&[coefficients], Device::Cpu)
}

#[test]
fn eta_and_std_follow_the_tables() {
    let sd3_table = [
        (3.50567108, 0.70000000),
        (3.43507347, 0.74296410),
        (2.27263390, 0.53615205),
        (1.71850029, 0.44589713),
        (1.35920287, 0.39179430),
        (1.08809280, 0.35279711),
        (0.86117456, 0.31907012),
        (0.65243825, 0.28200677),
        (0.43441480, 0.22536048),
        (0.06644106, 0.00627809),
    ];
    for (step, (eta, std)) in sd3_table.into_iter().enumerate() {
        let got = flow_sde(step);
        assert!((got.eta - eta).abs() < 1e-5 && (got.std - std).abs() < 2e-6, "step {step}: {got:?}");
    }
}

#[test]
fn first_step_has_the_noise_level_as_its_deviation() {
    for noise_level in [0.3, 0.7, 1.2] {
        let first = TransitionCoefficients::new(StepRule::FlowSde, &sd3(), 0, noise_level).unwrap();
        assert!((first.std - noise_level).abs() < 1e-12);
        assert!((first.mean_latent - (1.0 - noise_level * noise_level / 2.0)).abs() < 1e-12);
        assert!((first.mean_velocity - (first.sigma_next - first.sigma)).abs() < 1e-12);
    }
}

#[test]
fn later_steps_have_the_closed_form() {
    for step in 1..10 {
        let got = flow_sde(step);
        let length = got.sigma - got.sigma_next;
        let mean_latent = 1.0 - 0.49 * length / (2.0 * (1.0 - got.sigma));
        assert!((got.mean_latent - mean_latent).abs() < 1e-12, "step {step}");
        assert!((got.mean_velocity + length * (1.0 + 0.49 / 2.0)).abs() < 1e-12, "step {step}");
    }
}

#[test]
fn deviation_rises_once_and_then_falls() {
    let stds: Vec<f64> = (0..9).map(|step| flow_sde(step).std).collect();
    assert!(stds[1] > stds[0]);
    assert!(stds[1..].windows(2).all(|pair| pair[1] < pair[0]));
}

#[test]
fn one_flow_sde_step_matches_the_worked_numbers() {
    let cases = [
        (0, 0.5, -0.3, 1.2, [0.5119612069, 0.3894612069, 0.7, 1.2294612069, -1.2822635893]),
        (3, 0.5, -0.3, 1.2, [0.5201972107, 0.4671922696, 0.4458971335, 1.0022688297, -0.8312715372]),
        (8, -0.25, 0.8, -0.6, [-0.4652961671, -0.4952116968, 0.2253604836, -0.6304279870, 0.3911154761]),
    ];
    for (step, x, v, epsilon, [ode, mean, std, next, log_prob]) in cases {
        let (x, v, epsilon) = (row(&[x]), row(&[v]), row(&[epsilon]));
        let delta = Tensor::from_slice(&[sd3().delta_sigma(step)]);
        let rows = on_cpu(flow_sde(step));
        assert_close(&ode_step(&x, &v, &delta), &[ode], 1e-6);
        let got_mean = transition_mean(&x, &v, &rows);
        assert_close(&got_mean, &[mean], 1e-6);
        assert_close(&rows.std, &[std], 1e-6);
        let got_next = next_latents(&got_mean, &rows.std, &epsilon);
        assert_close(&got_next, &[next], 1e-6);
        assert_close(&log_probability(&got_next, &got_mean, &rows), &[log_prob], 1e-6);
    }
}

#[test]
fn vector_step_and_new_policy_match_the_worked_numbers() {
    let x = row(&[0.5, -1.0, 0.25, 2.0]);
    let v = row(&[-0.3, 0.4, 1.0, -0.7]);
    let rows = on_cpu(flow_sde(3));
    let mean = transition_mean(&x, &v, &rows);
    assert_close(&mean, &[0.46719227, -0.91762085, 0.13720495, 1.82685987], 1e-6);
    let next = next_latents(&mean, &rows.std, &row(&[1.2, -0.5, 0.0, 0.3]));
    assert_close(&next, &[1.00226883, -1.14056942, 0.13720495, 1.96062901], 1e-6);
    assert_close(&log_probability(&next, &mean, &rows), &[-0.3337715372], 1e-6);

    let mean_new = transition_mean(&x, &(v + 0.01), &rows);
    assert_close(&log_probability(&next, &mean_new, &rows), &[-0.3342432466], 1e-6);
    // Means of size 1 in float32 leave a difference of size 2.4e-3 about five digits.
    let plain = log_ratio(&next, (&mean_new, &mean), &rows, RatioNormalization::None);
    assert_close(&plain, &[-4.7170937505e-4], 1e-8);
    assert_close(&plain.exp(), &[0.9995284018], 1e-6);
    let guarded = log_ratio(&next, (&mean_new, &mean), &rows, RatioNormalization::Guard);
    assert_close(&guarded.exp(), &[0.9997904759], 1e-7);
    assert!((flow_sde(3).length().recip() - 14.8535362).abs() < 1e-5);
}

#[test]
fn a_guarded_log_ratio_is_the_noise_times_the_change_of_the_mean() {
    let tensor = |step| {
        let values =
            standard_normal(&NoiseKey::initial(2, Purpose::Rollout, 0, 0, 0).transition(step, 0), 96);
        Tensor::from_slice(&values).view([2, 3, 4, 4])
    };
    let (mean_old, noise) = (tensor(0), tensor(1));
    for coefficients in [[flow_sde(0), flow_sde(8)], [cps(0, 0.8), cps(8, 0.8)]] {
        let rows = TransitionRows::new(&coefficients, Device::Cpu);
        let next = next_latents(&mean_old, &rows.std, &noise);
        let mean_new = (&mean_old + tensor(2) * 1e-2).set_requires_grad(true);
        let guarded = log_ratio(&next, (&mean_new, &mean_old), &rows, RatioNormalization::Guard);
        let expected = mean_over_elements(&(&noise * (&mean_new - &mean_old)));
        assert!(guarded.allclose(&expected, 1e-4, 1e-6, false), "{guarded} {expected}");
        // Written out as the reference does, bias and all, where the log-probability is that of a Gaussian.
        if coefficients[0].rule == StepRule::FlowSde {
            let bias = mean_over_elements(&(&mean_new - &mean_old).square()) / (rows.std.square() * 2.0);
            let difference =
                log_probability(&next, &mean_new, &rows) - log_probability(&next, &mean_old, &rows) + bias;
            assert!(guarded.allclose(&(difference * &rows.std), 1e-3, 1e-6, false));
        }
        // The gradient of a step no longer depends on how loud it is.
        guarded.sum(Kind::Float).backward();
        let elements = mean_old.numel() as f64 / 2.0;
        assert!((mean_new.grad() * elements).allclose(&noise, 1e-3, 1e-4, false));
    }
}

#[test]
fn cps_step_matches_the_worked_numbers() {
    let (x, v) = (row(&[0.5]), row(&[-0.3]));
    let rows = on_cpu(cps(3, 0.8));
    let mean = transition_mean(&x, &v, &rows);
    assert_close(&mean, &[0.2704472832], 1e-6);
    assert_close(&rows.std, &[0.7516848953], 1e-6);
    let next = next_latents(&mean, &rows.std, &row(&[1.2]));
    assert_close(&next, &[1.1724691576], 1e-6);
    assert_close(&log_probability(&next, &mean, &rows), &[-0.8136434619], 1e-6);
}

#[test]
fn cps_without_noise_is_the_ode_step() {
    for step in 0..10 {
        let (sigma, sigma_next) = (f64::from(sd3().sigmas[step]), f64::from(sd3().sigmas[step + 1]));
        let quiet = TransitionCoefficients::cps(sigma, sigma_next, 0.0);
        assert!((quiet.mean_latent - 1.0).abs() < 1e-12, "step {step}");
        assert!((quiet.mean_velocity - (sigma_next - sigma)).abs() < 1e-12, "step {step}");
    }
}

#[test]
fn cps_keeps_the_noise_level_it_promises() {
    for step in 0..9 {
        let coefficients = cps(step, 0.8);
        // Latents made of noise alone, x = σ·e and v = e: what is left of e and what is fresh make up σ_next.
        let kept = coefficients.mean_latent * coefficients.sigma + coefficients.mean_velocity;
        let total = (kept * kept + coefficients.std * coefficients.std).sqrt();
        assert!((total - coefficients.sigma_next).abs() < 1e-12, "step {step}");
    }
}

#[test]
fn log_ratio_is_the_difference_of_log_probabilities() {
    let tensor = |step| {
        let values =
            standard_normal(&NoiseKey::initial(1, Purpose::Rollout, 0, 0, 0).transition(step, 0), 96);
        Tensor::from_slice(&values).view([2, 3, 4, 4])
    };
    let (next, mean_old) = (tensor(0), tensor(1));
    let mean_new = &mean_old + tensor(2) * 1e-2;
    for coefficients in [[flow_sde(0), flow_sde(8)], [cps(0, 0.8), cps(8, 0.8)]] {
        let rows = TransitionRows::new(&coefficients, Device::Cpu);
        let direct = log_probability(&next, &mean_new, &rows) - log_probability(&next, &mean_old, &rows);
        let difference = log_ratio(&next, (&mean_new, &mean_old), &rows, RatioNormalization::None);
        assert!(direct.allclose(&difference, 1e-4, 1e-5, false), "{direct} {difference}");
        for normalization in [RatioNormalization::None, RatioNormalization::Guard] {
            let same = log_ratio(&next, (&mean_old, &mean_old), &rows, normalization);
            assert_eq!(floats(&same), [0.0, 0.0]);
        }
    }
}

#[test]
fn rows_of_different_steps_share_a_batch() {
    let x = row(&[0.5, 0.5, -0.25]).transpose(0, 1);
    let v = row(&[-0.3, -0.3, 0.8]).transpose(0, 1);
    let rows = TransitionRows::new(&[flow_sde(0), flow_sde(3), flow_sde(8)], Device::Cpu);
    assert_close(&transition_mean(&x, &v, &rows), &[0.3894612069, 0.4671922696, -0.4952116968], 1e-6);
    let schedule = sd3();
    let delta = Tensor::from_slice(&[0, 3, 8].map(|step| schedule.delta_sigma(step)));
    assert_close(&ode_step(&x, &v, &delta), &[0.5119612069, 0.5201972107, -0.4652961671], 1e-6);
}

#[test]
fn host_rebuilds_next_latents_bit_for_bit() {
    let key = NoiseKey::initial(7, Purpose::Rollout, 0, 0, 0);
    let (n_rows, len) = (9, 1031);
    let coefficients: Vec<_> = (0..n_rows).map(flow_sde).collect();
    let rows = TransitionRows::new(&coefficients, Device::Cpu);
    let means = standard_normal(&key, n_rows * len);
    let noises = standard_normal(&key.transition(0, 0), n_rows * len);
    let shape = [n_rows as i64, len as i64];
    let tensor = |values: &[f32]| Tensor::from_slice(values).view(shape);
    let on_device = floats(&next_latents(&tensor(&means), &rows.std, &tensor(&noises)));
    for (index, coefficients) in coefficients.iter().enumerate() {
        let here = index * len..(index + 1) * len;
        let on_host =
            next_latents_on_host(&means[here.clone()], coefficients.std as f32, &noises[here.clone()]);
        assert!(
            on_host.iter().zip(&on_device[here]).all(|(host, device)| host.to_bits() == device.to_bits())
        );
    }
}

#[test]
fn branches_of_a_seed_are_neighbours() {
    let repeated = repeat_for_branches(&Tensor::from_slice(&[1.0_f32, 2.0]).view([2, 1]), 3);
    assert_eq!(repeated.size(), [6, 1]);
    assert_eq!(floats(&repeated), [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
}

#[test]
fn half_precision_inputs_are_widened_first() {
    let (x, v) = (row(&[0.5]).to_kind(Kind::BFloat16), row(&[-0.3]).to_kind(Kind::BFloat16));
    let rows = on_cpu(flow_sde(3));
    let mean = transition_mean(&x, &v, &rows);
    assert_eq!(mean.kind(), Kind::Float);
    let widened = transition_mean(&x.to_kind(Kind::Float), &v.to_kind(Kind::Float), &rows);
    assert_eq!(floats(&mean), floats(&widened));
}

#[test]
fn noise_levels_and_steps_out_of_range_are_refused() {
    for (rule, noise_level) in
        [(StepRule::FlowSde, 0.0), (StepRule::FlowSde, f64::NAN), (StepRule::Cps, 0.0), (StepRule::Cps, 1.5)]
    {
        let refused = TransitionCoefficients::new(rule, &sd3(), 0, noise_level);
        assert!(matches!(refused, Err(FlowError::NoiseLevel { .. })), "{rule:?} {noise_level}");
    }
    let beyond = TransitionCoefficients::new(StepRule::FlowSde, &sd3(), 10, 0.7);
    assert_eq!(beyond, Err(FlowError::NoSuchStep { step: 10, steps: 10 }));
}
