//! Steps of sampling, the objective, the optimizer and the moving average.

use config::{KlDenominator, RatioNormalization, StepRule};
use flow::{
    AdamW, AdamWSettings, ClippedObjective, Ema, EmaSettings, NoiseGrid, Schedule, SchedulerConfig,
    TransitionCoefficients, TransitionRows, clip_gradient_norm, kl_divergence, log_probability, log_ratio,
    next_latents, ode_step, repeat_for_branches, transition_mean,
};
use noise::{NoiseKey, Purpose, standard_normal};
use tch::{Device, Kind, Tensor};

use crate::{Found, assert_same};

const N_SEEDS: i64 = 3;
const N_BRANCHES: usize = 4;
const LENGTH: i64 = 16;
const OBJECTIVE: ClippedObjective =
    ClippedObjective { clip_below: 1e-4, clip_above: 1e-4, advantage_clip: 5.0 };
const OPTIMIZER: AdamWSettings =
    AdamWSettings { lr: 1e-2, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 1e-2 };

fn normals(seed_index: u32, shape: &[i64], device: Device) -> Tensor {
    let key = NoiseKey::initial(11, Purpose::Rollout, 0, 0, seed_index);
    let numbers = standard_normal(&key, shape.iter().product::<i64>() as usize);
    Tensor::from_slice(&numbers).view(shape).to_device(device)
}

/// The coefficients of as many steps as there are seeds.
fn coefficients(schedule: &Schedule, rule: StepRule) -> Vec<TransitionCoefficients> {
    let of_step = |step| TransitionCoefficients::new(rule, schedule, step, 0.7).expect("in range");
    (1..=N_SEEDS as usize).map(of_step).collect()
}

/// A policy that is a matrix, sampled, judged and moved three times.
fn walk(rule: StepRule, device: Device) -> Found {
    let schedule = Schedule::new(&SchedulerConfig::default(), NoiseGrid::Scheduler, 10, 0).expect("steps");
    let coefficients = coefficients(&schedule, rule);
    let rows = TransitionRows::new(&coefficients, device);
    let branches = rows.repeat_for_branches(N_BRANCHES);
    let n_branches = N_SEEDS * N_BRANCHES as i64;
    let latents = normals(1, &[N_SEEDS, LENGTH], device);
    let policy = normals(2, &[LENGTH, LENGTH], device).set_requires_grad(true);
    let named = [("policy".to_owned(), policy.shallow_clone())];
    let old = tch::no_grad(|| transition_mean(&latents, &latents.matmul(&policy), &rows));
    let old = repeat_for_branches(&old, N_BRANCHES);
    let next = next_latents(&old, &branches.std, &normals(3, &[n_branches, LENGTH], device));
    let delta = Tensor::from_slice(&[schedule.delta_sigma(1); N_SEEDS as usize]).to_device(device);
    let mut found = vec![
        ("ode step".to_owned(), ode_step(&latents, &next.narrow(0, 0, N_SEEDS), &delta)),
        ("log-probability".to_owned(), log_probability(&next, &old, &branches)),
        ("next".to_owned(), next.copy()),
    ];

    let (mut optimizer, mut average) = (AdamW::new(&named, OPTIMIZER), Ema::new(&named, EMA));
    for update in 1..=3 {
        let mean = transition_mean(&latents, &latents.matmul(&policy), &rows);
        let means = (&repeat_for_branches(&mean, N_BRANCHES), &old);
        let ratio = log_ratio(&next, means, &branches, RatioNormalization::None);
        let (advantages, weights) = (normals(4, &[n_branches], device), normals(5, &[n_branches], device));
        let loss = OBJECTIVE.policy_loss(&ratio, &advantages, &weights);
        let divergence = kl_divergence(&mean, &latents, &coefficients, KlDenominator::Std);
        (&loss.loss + divergence.mean(Kind::Float)).backward();
        let norm = clip_gradient_norm(&named, 0.5).expect("finite");
        optimizer.step();
        optimizer.zero_gradients();
        average.update(&named, update);
        found.push((format!("loss {update}"), loss.loss.detach()));
        found.push((format!("norm {update}"), Tensor::from(norm)));
    }
    found.push(("policy".to_owned(), policy.detach()));
    found.extend(average.averages().iter().map(|(_, average)| ("average".to_owned(), average.copy())));
    found.extend(resumed(&named, &optimizer, &mut average));
    found
}

const EMA: EmaSettings = EmaSettings { decay: 0.9, interval: 1 };

/// What an optimizer and an average hold that go on from a saved state, which lies on the host.
fn resumed(named: &[(String, Tensor)], optimizer: &AdamW, average: &mut Ema) -> Found {
    let state = optimizer.state();
    assert!(state.iter().all(|(_, tensor)| tensor.device() == Device::Cpu));
    let mut other = AdamW::new(named, OPTIMIZER);
    other.load_state(&state).expect("its own state");
    let saved = average.averages().iter().map(|(name, tensor)| (name.clone(), flow::host_copy(tensor)));
    average.load_state(&saved.collect::<Vec<_>>()).expect("its own state");
    average.swap(named);
    let swapped = ("swapped".to_owned(), named[0].1.detach().copy());
    other.state().into_iter().chain([swapped]).collect()
}

#[test]
fn a_policy_is_sampled_and_trained_on_the_card() {
    tests::on_stand_in_card("maths::a_policy_is_sampled_and_trained_on_the_card", || {
        for rule in [StepRule::FlowSde, StepRule::Cps] {
            assert_same(|device| walk(rule, device));
        }
    });
}
