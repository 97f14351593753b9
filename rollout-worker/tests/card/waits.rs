//! How often a rollout makes the host wait for the card, which then has nothing to do.

use config::{Algorithm, BranchSteps, RolloutPlan, StepRule, StepWeight};
use flow::{NoiseGrid, Schedule, SchedulerConfig};
use models::{AdapterMode, Guidance};
use rollout_worker::sampling::task_noise::TaskNoise;
use rollout_worker::sampling::wavefront::Rollout;
use run_setup::{StepSettings, TrainedSteps, training_key};
use tch::{Kind, Tensor, no_grad};

use crate::CARD;
use crate::families::{SIDE, embeddings, open};

/// Tells the test started again what to sample: a family and a number of steps.
const SAMPLES: &str = "ROLLOUT_ON_STAND_IN_CARD";

/// A rollout that branches at every step but the last, in several network calls a step.
fn rollout(steps: usize) -> Rollout {
    let trained: Vec<usize> = (0..steps - 1).collect();
    let plan = RolloutPlan::new(Algorithm::TempflowGrpo, steps, trained.clone(), 3).expect("a plan");
    let settings = StepSettings {
        step_rule: StepRule::FlowSde,
        noise_level: 0.7,
        branch_steps: BranchSteps::List(trained),
        step_weight: StepWeight::Noise,
    };
    let schedule = Schedule::new(&SchedulerConfig::default(), NoiseGrid::Scheduler, steps, 0).expect("steps");
    let trained = TrainedSteps::of_plan(plan, &settings, &schedule).expect("trained steps");
    Rollout::new(schedule, trained, 4)
}

fn sample(family: &str, steps: usize) {
    let model = open(family, Kind::Float, CARD, None);
    let (positive, negative) = embeddings(model.as_ref());
    let positive = positive.select(&[0]);
    let latent_shape = model.latent_shape(SIDE, SIDE).expect("a size that fits");
    let rollout = rollout(steps);
    let keys = (0..2).map(|seed| training_key(1, 0, 0, seed)).collect();
    let noise = TaskNoise { keys, latent_shape, device: CARD };
    let guidance = Guidance { positive: &positive, negative: negative.as_ref(), scale: 3.0 };
    let sigmas = &rollout.schedule().sigmas;
    let mut velocity = |latents: &Tensor, step: usize| {
        let sigmas = Tensor::full(latents.size()[0], f64::from(sigmas[step]), (Kind::Float, CARD));
        no_grad(|| model.velocity(latents, &sigmas, &guidance, AdapterMode::Frozen))
    };
    let sampled = rollout.sample(&noise, &mut velocity).expect("finite numbers");
    assert_eq!(sampled.finished.device(), CARD);
}

#[test]
fn a_sampling_step_waits_for_the_card_once() {
    if let Ok(told) = std::env::var(SAMPLES) {
        let (family, steps) = told.split_once(' ').expect("a family and a number");
        return sample(family, steps.parse().expect("a number"));
    }
    for family in ["sd3", "flux", "qwen-image"] {
        let traffic = |steps: usize| {
            let test = "waits::a_sampling_step_waits_for_the_card_once";
            tests::traffic_on_stand_in_card(test, SAMPLES, &format!("{family} {steps}"))
        };
        let (few, many) = (traffic(4), traffic(7));
        assert_eq!(many.waits - few.waits, 3, "{family}: {few:?} in 4 steps, {many:?} in 7");
    }
}
