//! The wavefront against the nested loop it replaces, with a toy network that treats every row by itself.

use std::cell::RefCell;

use super::*;
use config::{Algorithm, BranchSteps, RolloutPlan, StepRule, StepWeight};
use flow::{NoiseGrid, SchedulerConfig};
use noise::{NoiseKey, standard_normal};
use run_setup::{StepSettings, training_key};
use tch::Device;

const LATENT: [i64; 3] = [2, 3, 4];

fn schedule(steps: usize) -> Schedule {
    let config = SchedulerConfig { shift: 3.0, ..SchedulerConfig::default() };
    Schedule::new(&config, NoiseGrid::Scheduler, steps, 0).unwrap()
}

fn rollout(
    algorithm: Algorithm,
    steps: usize,
    trained: &[usize],
    n_branches: usize,
    max_rows: usize,
) -> Rollout {
    let plan = RolloutPlan::new(algorithm, steps, trained.to_vec(), n_branches).unwrap();
    let settings = StepSettings {
        step_rule: StepRule::FlowSde,
        noise_level: 0.7,
        branch_steps: BranchSteps::List(trained.to_vec()),
        step_weight: StepWeight::None,
    };
    let schedule = schedule(steps);
    let trained = TrainedSteps::of_plan(plan, &settings, &schedule).unwrap();
    Rollout::new(schedule, trained, max_rows)
}

/// Element-wise, so that a row's velocity has the same bits in every batch.
fn toy_velocity(latents: &Tensor, step: usize) -> Tensor {
    (latents * (0.5 + step as f64)).sin() - latents * 0.25
}

/// Draws from keys, as tasks do.
struct KeyedNoise {
    n_seeds: u32,
}

impl KeyedNoise {
    fn draw(key: NoiseKey) -> Tensor {
        Tensor::from_slice(&standard_normal(&key, LATENT.iter().product::<i64>() as usize)).view(LATENT)
    }

    fn key(seed: u32) -> NoiseKey {
        training_key(1, 0, 0, seed)
    }
}

impl Noise for KeyedNoise {
    fn initial(&self) -> Tensor {
        Tensor::stack(&(0..self.n_seeds).map(|seed| Self::draw(Self::key(seed))).collect::<Vec<_>>(), 0)
    }

    fn transition(&self, step: usize, n_branches: usize) -> Tensor {
        let of_seed = |seed| {
            let of_branch = |branch| Self::draw(Self::key(seed).transition(step as u32, branch as u32));
            Tensor::stack(&(0..n_branches).map(of_branch).collect::<Vec<_>>(), 0)
        };
        Tensor::stack(&(0..self.n_seeds).map(of_seed).collect::<Vec<_>>(), 0)
    }
}

/// Steps of one latent, without a batch axis.
fn ode(latent: &Tensor, velocity: &Tensor, schedule: &Schedule, step: usize) -> Tensor {
    latent + velocity * f64::from(schedule.delta_sigma(step))
}

/// One seed by the nested loop of the algorithm: trunk outside, branches and completions inside.
fn nested_loop(rollout: &Rollout, seed: usize, n_branches: usize) -> Trajectories {
    let (schedule, noise) = (schedule(rollout.schedule.steps()), KeyedNoise { n_seeds: seed as u32 + 1 });
    let mut trunk = noise.initial().get(seed as i64);
    let (mut states, mut means, mut nexts, mut logs, mut finished) = (vec![], vec![], vec![], vec![], vec![]);
    let mut network_evaluations = 0;
    for step in 0..=*rollout.trained_steps().steps().last().unwrap() {
        let velocity = toy_velocity(&trunk, step);
        network_evaluations += 1;
        if rollout.trained_steps().steps().contains(&step) {
            let coefficients = TransitionCoefficients::new(StepRule::FlowSde, &schedule, step, 0.7).unwrap();
            let rows = TransitionRows::new(&[coefficients], Device::Cpu);
            let mean = transition_mean(&trunk.unsqueeze(0), &velocity.unsqueeze(0), &rows);
            for branch in 0..n_branches {
                let epsilon =
                    noise.transition(step, n_branches).get(seed as i64).get(branch as i64).unsqueeze(0);
                let mut latent = next_latents(&mean, &rows.std, &epsilon);
                logs.push(log_probability(&latent, &mean, &rows));
                nexts.push(latent.squeeze_dim(0));
                for later in step + 1..schedule.steps() {
                    latent = ode(&latent, &toy_velocity(&latent, later), &schedule, later);
                    network_evaluations += 1;
                }
                finished.push(latent.squeeze_dim(0));
            }
            states.push(trunk.shallow_clone());
            means.push(mean.squeeze_dim(0));
        }
        trunk = ode(&trunk, &velocity, &schedule, step);
    }
    let (n_steps, n_branches) = (states.len() as i64, n_branches as i64);
    Trajectories {
        states: Tensor::stack(&states, 0),
        means: Tensor::stack(&means, 0),
        next_latents: Tensor::stack(&nexts, 0).view([n_steps, n_branches, LATENT[0], LATENT[1], LATENT[2]]),
        log_probabilities: Tensor::cat(&logs, 0).view([n_steps, n_branches]),
        finished: Tensor::stack(&finished, 0),
        network_evaluations,
    }
}

type Part = fn(&Trajectories) -> &Tensor;

fn assert_equal(trajectories: &Trajectories, seed: usize, expected: &Trajectories) {
    let parts: [(&str, Part); 5] = [
        ("states", |t| &t.states),
        ("means", |t| &t.means),
        ("next latents", |t| &t.next_latents),
        ("log-probabilities", |t| &t.log_probabilities),
        ("finished latents", |t| &t.finished),
    ];
    for (name, part) in parts {
        assert_eq!(part(trajectories).get(seed as i64), *part(expected), "{name} of seed {seed}");
    }
}

#[test]
fn wavefront_equals_the_nested_loop_bit_for_bit() {
    for (trained, n_branches) in [((0..4).collect(), 3), (vec![0], 1), (vec![3], 2), (vec![1, 3], 2)] {
        let rollout = rollout(Algorithm::TempflowGrpo, 5, &trained, n_branches, 7);
        let trajectories = rollout.sample(&KeyedNoise { n_seeds: 2 }, &mut toy_velocity).unwrap();
        let expected: Vec<_> = (0..2).map(|seed| nested_loop(&rollout, seed, n_branches)).collect();
        for (seed, expected) in expected.iter().enumerate() {
            assert_equal(&trajectories, seed, expected);
        }
        let evaluations: u64 = expected.iter().map(|seed| seed.network_evaluations).sum();
        assert_eq!(trajectories.network_evaluations, evaluations);
    }
}

#[test]
fn cost_is_279_evaluations_per_seed_at_ten_steps_and_six_branches() {
    let all: Vec<_> = (0..9).collect();
    for (n_seeds, expected) in [(1, 279), (4, 1116)] {
        let rollout = rollout(Algorithm::TempflowGrpo, 10, &all, 6, 64);
        let trajectories = rollout.sample(&KeyedNoise { n_seeds }, &mut toy_velocity).unwrap();
        assert_eq!(trajectories.network_evaluations, expected);
        assert_eq!(trajectories.finished.size(), [i64::from(n_seeds), 54, 2, 3, 4]);
    }
}

#[test]
fn trunk_is_the_deterministic_path() {
    let all: Vec<_> = (0..9).collect();
    let noise = KeyedNoise { n_seeds: 2 };
    let trajectories =
        rollout(Algorithm::TempflowGrpo, 10, &all, 1, 64).sample(&noise, &mut toy_velocity).unwrap();
    for step in 0..9 {
        let until_step = Schedule {
            sigmas: schedule(10).sigmas[..=step].to_vec(),
            timesteps: schedule(10).timesteps[..step].to_vec(),
        };
        let path = sample_deterministically(noise.initial(), &until_step, &mut toy_velocity).unwrap();
        assert_eq!(trajectories.states.select(1, step as i64), path, "step {step}");
    }
}

/// Noise that makes every random move land where the deterministic one does.
struct NoiseBackToTheTrunk;

impl Noise for NoiseBackToTheTrunk {
    fn initial(&self) -> Tensor {
        KeyedNoise { n_seeds: 1 }.initial()
    }

    fn transition(&self, step: usize, n_branches: usize) -> Tensor {
        let schedule = schedule(10);
        let until = |step: usize| {
            let (sigmas, timesteps) =
                (schedule.sigmas[..=step].to_vec(), schedule.timesteps[..step].to_vec());
            let until_step = Schedule { sigmas, timesteps };
            sample_deterministically(self.initial(), &until_step, &mut toy_velocity).unwrap()
        };
        let (state, next) = (until(step), until(step + 1));
        let coefficients = TransitionCoefficients::new(StepRule::FlowSde, &schedule, step, 0.7).unwrap();
        let rows = TransitionRows::new(&[coefficients], Device::Cpu);
        let mean = transition_mean(&state, &toy_velocity(&state, step), &rows);
        ((next - mean) / &rows.std).unsqueeze(1).repeat([1, n_branches as i64, 1, 1, 1])
    }
}

#[test]
fn branch_that_lands_on_the_trunk_ends_in_the_trunks_image() {
    let all: Vec<_> = (0..9).collect();
    let rollout = rollout(Algorithm::TempflowGrpo, 10, &all, 2, 64);
    let trajectories = rollout.sample(&NoiseBackToTheTrunk, &mut toy_velocity).unwrap();
    let image =
        sample_deterministically(NoiseBackToTheTrunk.initial(), &schedule(10), &mut toy_velocity).unwrap();
    let images = image.unsqueeze(1).expand_as(&trajectories.finished);
    assert!(trajectories.finished.allclose(&images, 1e-4, 1e-4, false));
}

#[test]
fn network_sees_the_whole_front_in_chunks_of_at_most_max_rows() {
    let calls = RefCell::new(Vec::new());
    let mut velocity = |latents: &Tensor, step| {
        calls.borrow_mut().push((step, latents.size()[0]));
        toy_velocity(latents, step)
    };
    let small = rollout(Algorithm::TempflowGrpo, 4, &[0, 1, 2], 3, 8);
    let trajectories = small.sample(&KeyedNoise { n_seeds: 2 }, &mut velocity).unwrap();
    let expected = [(0, 2), (1, 8), (2, 8), (2, 6), (3, 8), (3, 8), (3, 2)];
    assert_eq!(*calls.borrow(), expected);
    let in_one_go = rollout(Algorithm::TempflowGrpo, 4, &[0, 1, 2], 3, 1000);
    let same = in_one_go.sample(&KeyedNoise { n_seeds: 2 }, &mut toy_velocity).unwrap();
    assert_eq!(trajectories.finished, same.finished);
}

#[test]
fn flow_grpo_path_is_random_at_trained_steps_and_deterministic_elsewhere() {
    let (noise, schedule) = (KeyedNoise { n_seeds: 2 }, schedule(6));
    let rollout = rollout(Algorithm::FlowGrpo, 6, &[1, 2], 1, 64);
    let trajectories = rollout.sample(&noise, &mut toy_velocity).unwrap();
    let mut path = noise.initial();
    for step in 0..6 {
        let velocity = toy_velocity(&path, step);
        if let Ok(position) = [1, 2].binary_search(&step) {
            let coefficients = TransitionCoefficients::new(StepRule::FlowSde, &schedule, step, 0.7).unwrap();
            let rows = TransitionRows::new(&[coefficients; 2], Device::Cpu);
            assert_eq!(trajectories.states.select(1, position as i64), path);
            let mean = transition_mean(&path, &velocity, &rows);
            path = next_latents(&mean, &rows.std, &noise.transition(step, 1).squeeze_dim(1));
            assert_eq!(trajectories.next_latents.select(1, position as i64).squeeze_dim(1), path);
        } else {
            path = ode(&path, &velocity, &schedule, step);
        }
    }
    assert_eq!(trajectories.finished, path.unsqueeze(1));
    assert_eq!(trajectories.network_evaluations, 12);
}

#[test]
fn values_that_are_not_finite_are_found_and_named() {
    let rollout = rollout(Algorithm::TempflowGrpo, 4, &[0, 2], 2, 64);
    // At step 3 the front of each seed is: branches 0 and 1 of step 0, branches 0 and 1 of step 2.
    let mut broken = |latents: &Tensor, step| {
        let velocity = toy_velocity(latents, step);
        if step == 3 {
            let _ = velocity.get(6).flatten(0, -1).get(0).fill_(f64::NAN);
        }
        velocity
    };
    let error = rollout.sample(&KeyedNoise { n_seeds: 2 }, &mut broken).unwrap_err();
    let row = Row::Branch { born: 2, branch: 0 };
    assert_eq!(error, NonFinite { quantity: "velocity", seed: 1, step: 3, row });
    assert_eq!(error.to_string(), "velocity is not finite at step 3, in branch 0 of step 2");

    let mut infinite = |latents: &Tensor, step| toy_velocity(latents, step) / f64::from(step != 1);
    let error = rollout.sample(&KeyedNoise { n_seeds: 2 }, &mut infinite).unwrap_err();
    assert_eq!((error.step, error.seed, error.row), (1, 0, Row::Trunk));

    let error = rollout.sample(&BrokenNoise, &mut toy_velocity).unwrap_err();
    let row = Row::Branch { born: 0, branch: 1 };
    assert_eq!(error, NonFinite { quantity: "log-probability", seed: 0, step: 0, row });
}

/// Noise with a NaN in its second branch.
struct BrokenNoise;

impl Noise for BrokenNoise {
    fn initial(&self) -> Tensor {
        KeyedNoise { n_seeds: 1 }.initial()
    }

    fn transition(&self, step: usize, n_branches: usize) -> Tensor {
        let noise = KeyedNoise { n_seeds: 1 }.transition(step, n_branches);
        let _ = noise.get(0).get(1).fill_(f64::NAN);
        noise
    }
}
