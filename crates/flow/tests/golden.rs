//! The reference's schedules and steps, recorded with diffusers and PyTorch, against ours.

use std::path::{Path, PathBuf};

use config::{StepRule, StepWeight};
use flow::{
    NoiseGrid, Schedule, SchedulerConfig, TransitionCoefficients, TransitionRows, log_probability,
    next_latents, step_weights, transition_mean,
};
use models::reference_case::{Deviation, ReferenceCase};
use tch::{Device, Tensor};

fn cases(prefix: &str) -> Vec<ReferenceCase> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sde");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix))
        .collect();
    paths.sort();
    paths.iter().map(|path| ReferenceCase::open(path, Device::Cpu).unwrap()).collect()
}

/// The scheduler's own settings are among the arguments of the call.
fn schedule(case: &ReferenceCase, grid: NoiseGrid) -> Schedule {
    let config = SchedulerConfig::read(&case.call().clone().into()).unwrap();
    let image_seq_len = case.optional_argument("image_seq_len").unwrap().unwrap_or(0);
    Schedule::new(&config, grid, case.argument("steps").unwrap(), image_seq_len).unwrap()
}

/// Of the pipeline in a case's name; of FLUX's, `use_flow_sigmas` leaves the grid to the scheduler.
fn grid_of_pipeline(case: &ReferenceCase) -> NoiseGrid {
    let name = case.name();
    let is_left = name.contains("flux") && name.contains("flow_sigmas");
    NoiseGrid::of_pipeline(!name.contains("sd3") && !is_left)
}

#[test]
fn schedules_are_those_of_diffusers_pipelines_under_either_bend() {
    let cases = cases("sigmas_");
    assert_eq!(cases.len(), 10 + 14);
    for case in cases {
        let schedule = schedule(&case, grid_of_pipeline(&case));
        for (name, got) in [("sigmas", &schedule.sigmas), ("timesteps", &schedule.timesteps)] {
            let deviation = Deviation::between(&Tensor::from_slice(got), &case.output(name).unwrap());
            assert!(deviation.is_rounding_of_a_formula(), "{name} of {}: {deviation:?}", case.name());
        }
    }
}

#[test]
fn flow_sde_steps_are_those_of_the_reference() {
    let cases = cases("flow_sde_");
    assert_eq!(cases.len(), 2);
    for case in cases {
        let schedule = schedule(&case, NoiseGrid::Scheduler);
        let noise_level = case.argument("noise_level").unwrap();
        let coefficients: Vec<TransitionCoefficients> = (0..schedule.steps() - 1)
            .map(|step| TransitionCoefficients::new(StepRule::FlowSde, &schedule, step, noise_level).unwrap())
            .collect();
        let rows = TransitionRows::new(&coefficients, Device::Cpu);
        let input = |name| case.input(name).unwrap();
        let mean = transition_mean(&input("latents"), &input("velocity"), &rows);
        let next = next_latents(&mean, &rows.std, &input("noise"));
        let weights = step_weights(StepWeight::Noise, &coefficients, &coefficients);
        let weights: Vec<f32> = weights.into_iter().map(|weight| weight as f32).collect();
        let outputs = [
            ("log_prob", log_probability(&next, &mean, &rows)),
            ("mean", mean),
            ("next_latents", next),
            ("std", rows.std),
            ("weights_mean_one", Tensor::from_slice(&weights)),
        ];
        for (name, got) in outputs {
            let deviation = Deviation::between(&got, &case.output(name).unwrap());
            assert!(deviation.is_rounding(), "{name} of {}: {deviation:?}", case.name());
        }
    }
}
