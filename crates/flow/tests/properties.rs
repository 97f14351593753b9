//! Facts that tie the pieces together, on a toy policy whose velocity is a linear map of the latents.

use config::{AdvantageGroup, KlDenominator, RatioNormalization, StepRule, StepWeight};
use flow::{
    ClippedObjective, NoiseGrid, Schedule, SchedulerConfig, SeedRewards, TransitionCoefficients,
    TransitionRows, advantages, kl_divergence, log_probability, log_ratio, next_latents,
    next_latents_on_host, ode_step, repeat_for_branches, step_weights, transition_mean,
};
use noise::{NoiseKey, Purpose, standard_normal};
use tch::{Device, Kind, Tensor};

const N_SEEDS: usize = 3;
const N_BRANCHES: usize = 6;
const LEN: i64 = 16;
const OBJECTIVE: ClippedObjective =
    ClippedObjective { clip_below: 1e-4, clip_above: 1e-4, advantage_clip: 5.0 };

fn schedule() -> Schedule {
    let config = SchedulerConfig { shift: 3.0, ..SchedulerConfig::default() };
    Schedule::new(&config, NoiseGrid::Scheduler, 10, 0).unwrap()
}

fn normals(seed_index: u32, shape: &[i64]) -> Tensor {
    let key = NoiseKey::initial(11, Purpose::Rollout, 0, 0, seed_index);
    Tensor::from_slice(&standard_normal(&key, shape.iter().product::<i64>() as usize)).view(shape)
}

/// Latents `[S, D]`, their sampled moves `[S·K, D]`, and what the sampling policy thought of them.
struct Sampled {
    latents: Tensor,
    next: Tensor,
    mean_old: Tensor,
    coefficients: [TransitionCoefficients; N_SEEDS],
    advantages: Tensor,
    weights: Tensor,
}

fn sample(policy: &Tensor, rule: StepRule, step: usize) -> Sampled {
    let schedule = schedule();
    let coefficient = |step| TransitionCoefficients::new(rule, &schedule, step, 0.7).unwrap();
    let coefficients = [coefficient(step); N_SEEDS];
    let rows = TransitionRows::new(&coefficients, Device::Cpu);
    let latents = normals(1, &[N_SEEDS as i64, LEN]);
    let mean_old = transition_mean(&latents, &latents.matmul(policy), &rows);
    let noise = normals(2, &[(N_SEEDS * N_BRANCHES) as i64, LEN]);
    let repeated = rows.repeat_for_branches(N_BRANCHES);
    let next = next_latents(&repeat_for_branches(&mean_old, N_BRANCHES), &repeated.std, &noise);

    let rewards: Vec<SeedRewards> = (0..N_SEEDS as u32)
        .map(|seed_index| {
            let rewards =
                standard_normal(&NoiseKey::initial(3, Purpose::Rollout, 0, 0, seed_index), N_BRANCHES);
            SeedRewards { prompt_slot: 0, seed_index, rewards }
        })
        .collect();
    let advantages = advantages(AdvantageGroup::Seed, &rewards, 1, N_BRANCHES).unwrap().concat();
    let all: Vec<TransitionCoefficients> = (0..9).map(coefficient).collect();
    let weight = step_weights(StepWeight::Noise, &all[step..step + 1], &all)[0] as f32;
    Sampled {
        latents,
        next,
        mean_old,
        coefficients,
        advantages: Tensor::from_slice(&advantages),
        weights: Tensor::from_slice(&[weight; N_SEEDS * N_BRANCHES]),
    }
}

/// Velocity of a policy that moved a little since it sampled, ready to be differentiated.
fn moved_policy(policy: &Tensor) -> Tensor {
    (policy + normals(5, &[LEN, LEN]) * 1e-3).set_requires_grad(true)
}

fn shared_forward_gradient(policy: &Tensor, sampled: &Sampled) -> Tensor {
    let rows = TransitionRows::new(&sampled.coefficients, Device::Cpu);
    let mean_new = transition_mean(&sampled.latents, &sampled.latents.matmul(policy), &rows);
    let ratio = log_ratio(
        &sampled.next,
        (&repeat_for_branches(&mean_new, N_BRANCHES), &repeat_for_branches(&sampled.mean_old, N_BRANCHES)),
        &rows.repeat_for_branches(N_BRANCHES),
        RatioNormalization::None,
    );
    let policy_loss = OBJECTIVE.policy_loss(&ratio, &sampled.advantages, &sampled.weights).loss;
    let divergence = kl_divergence(&mean_new, &sampled.latents, &sampled.coefficients, KlDenominator::Std);
    (policy_loss + divergence.mean(Kind::Float) * 0.004).backward();
    policy.grad()
}

/// One forward pass per row, as if the K branches of a seed had nothing in common.
fn separate_rows_gradient(policy: &Tensor, sampled: &Sampled) -> Tensor {
    let n_rows = (N_SEEDS * N_BRANCHES) as i64;
    for row in 0..n_rows {
        let seed = row / N_BRANCHES as i64;
        let rows = TransitionRows::new(&sampled.coefficients[..1], Device::Cpu);
        let latents = sampled.latents.narrow(0, seed, 1);
        let mean_new = transition_mean(&latents, &latents.matmul(policy), &rows);
        let ratio = log_ratio(
            &sampled.next.narrow(0, row, 1),
            (&mean_new, &sampled.mean_old.narrow(0, seed, 1)),
            &rows,
            RatioNormalization::None,
        );
        let (advantage, weight) = (sampled.advantages.narrow(0, row, 1), sampled.weights.narrow(0, row, 1));
        let policy_loss = OBJECTIVE.policy_loss(&ratio, &advantage, &weight).loss;
        let divergence = kl_divergence(&mean_new, &latents, &sampled.coefficients[..1], KlDenominator::Std);
        ((policy_loss + divergence.mean(Kind::Float) * 0.004) / n_rows as f64).backward();
    }
    policy.grad()
}

#[test]
fn one_forward_for_all_branches_has_the_gradient_of_separate_rows() {
    let policy = normals(4, &[LEN, LEN]) * 0.1;
    for rule in [StepRule::FlowSde, StepRule::Cps] {
        for step in [0, 4, 8] {
            let sampled = sample(&policy, rule, step);
            let shared = shared_forward_gradient(&moved_policy(&policy), &sampled);
            let separate = separate_rows_gradient(&moved_policy(&policy), &sampled);
            let error = (&shared - &separate).norm().double_value(&[]) / separate.norm().double_value(&[]);
            assert!(error < 1e-5, "{rule:?} step {step}: relative error {error:e}");
            assert!(separate.norm().double_value(&[]) > 1e-6);
        }
    }
}

#[test]
fn ratio_is_one_on_policy_and_advantages_of_a_seed_cancel() {
    let policy = normals(4, &[LEN, LEN]) * 0.1;
    for step in 0..9 {
        let sampled = sample(&policy, StepRule::FlowSde, step);
        let rows = TransitionRows::new(&sampled.coefficients, Device::Cpu);
        let mean_new = transition_mean(&sampled.latents, &sampled.latents.matmul(&policy), &rows);
        let repeated = rows.repeat_for_branches(N_BRANCHES);
        let old = repeat_for_branches(&sampled.mean_old, N_BRANCHES);
        let means = (&repeat_for_branches(&mean_new, N_BRANCHES), &old);
        let ratio = log_ratio(&sampled.next, means, &repeated, RatioNormalization::None);
        let loss = OBJECTIVE.policy_loss(&ratio, &sampled.advantages, &sampled.weights);
        assert!((&loss.ratio - 1.0).abs().max().double_value(&[]) < 1e-6);
        assert_eq!(loss.clip_fraction_above.double_value(&[]), 0.0);
        assert_eq!(loss.clip_fraction_below.double_value(&[]), 0.0);
        let sums = sampled.advantages.view([N_SEEDS as i64, N_BRANCHES as i64]).sum_dim_intlist(
            1,
            false,
            Kind::Float,
        );
        assert!(sums.abs().max().double_value(&[]) < 1e-5);
    }
}

#[test]
fn branch_pushed_back_onto_the_trunk_is_the_trunk() {
    let schedule = schedule();
    let policy = normals(4, &[LEN, LEN]) * 0.1;
    let delta = |step| Tensor::from_slice(&[schedule.delta_sigma(step)]);
    let complete = |mut latents: Tensor, from: usize| {
        for step in from..schedule.steps() {
            latents = ode_step(&latents, &latents.matmul(&policy), &delta(step));
        }
        latents
    };
    let mut trunk = normals(1, &[1, LEN]);
    let image = complete(trunk.copy(), 0);
    for step in 0..schedule.steps() - 1 {
        let rows = TransitionRows::new(
            &[TransitionCoefficients::new(StepRule::FlowSde, &schedule, step, 0.7).unwrap()],
            Device::Cpu,
        );
        let velocity = trunk.matmul(&policy);
        let mean = transition_mean(&trunk, &velocity, &rows);
        let trunk_next = ode_step(&trunk, &velocity, &delta(step));
        let forced_noise = (&trunk_next - &mean) / &rows.std;
        let branch_image = complete(next_latents(&mean, &rows.std, &forced_noise), step + 1);
        let apart = (branch_image - &image).abs().max().double_value(&[]);
        assert!(apart < 1e-5, "branch at step {step} ends {apart} away from the trunk's image");
        trunk = trunk_next;
    }
}

#[test]
fn rebuilt_latents_have_the_log_probability_that_was_sampled() {
    let coefficients =
        TransitionCoefficients::new(StepRule::FlowSde, &schedule(), 3, 0.7).expect("a step of the schedule");
    let rows = TransitionRows::new(&[coefficients], Device::Cpu);
    let key = NoiseKey::initial(11, Purpose::Rollout, 5, 2, 1).transition(3, 4);
    let noise = standard_normal(&key, 4096);
    let mean = normals(9, &[1, 4096]);
    let sampled = next_latents(&mean, &rows.std, &Tensor::from_slice(&noise).view([1, 4096]));
    let mean_on_host: Vec<f32> = Vec::try_from(mean.view([-1])).unwrap();
    let rebuilt = next_latents_on_host(&mean_on_host, coefficients.std as f32, &standard_normal(&key, 4096));
    let rebuilt = Tensor::from_slice(&rebuilt).view([1, 4096]);
    let log_probability = |next: &Tensor| log_probability(next, &mean, &rows).double_value(&[0]);
    assert_eq!(log_probability(&rebuilt), log_probability(&sampled));
}
