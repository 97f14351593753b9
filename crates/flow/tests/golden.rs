//! The reference's schedules and steps, recorded with diffusers and PyTorch, against ours.

use std::path::{Path, PathBuf};

use config::{StepRule, StepWeight};
use flow::{
    Schedule, SchedulerConfig, TransitionCoefficients, TransitionRows, log_probability, next_latents,
    step_weights, transition_mean,
};
use tch::{Device, Kind, Tensor};

/// One recorded case: its tensors and the arguments of the call that made it.
struct Case {
    tensors: Vec<(String, Tensor)>,
    call: serde_json::Value,
}

impl Case {
    fn open(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let header_length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_length]).unwrap();
        let call = serde_json::from_str(header["__metadata__"]["call"].as_str().unwrap()).unwrap();
        Self { tensors: Tensor::read_safetensors(path).unwrap(), call }
    }

    fn tensor(&self, name: &str) -> &Tensor {
        let found = self.tensors.iter().find(|(candidate, _)| candidate == name);
        &found.unwrap_or_else(|| panic!("no tensor {name}")).1
    }

    fn count(&self, name: &str) -> usize {
        self.call[name].as_u64().unwrap_or(0) as usize
    }

    /// The scheduler's own settings are among the arguments.
    fn schedule(&self) -> Schedule {
        let config: SchedulerConfig = serde_json::from_value(self.call.clone()).unwrap();
        Schedule::new(&config, self.count("steps"), self.count("image_seq_len")).unwrap()
    }
}

fn cases(prefix: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sde");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix))
        .collect();
    paths.sort();
    paths
}

fn relative_error(got: &Tensor, reference: &Tensor) -> f64 {
    assert_eq!(got.size(), reference.size());
    let (got, reference) = (got.to_kind(Kind::Double), reference.to_kind(Kind::Double));
    (got - &reference).norm().double_value(&[]) / reference.norm().double_value(&[])
}

#[test]
fn schedules_are_those_of_diffusers_to_the_last_bit_but_one() {
    let paths = cases("sigmas_");
    assert_eq!(paths.len(), 10);
    for path in paths {
        let case = Case::open(&path);
        let schedule = case.schedule();
        for (name, got) in [("out.sigmas", &schedule.sigmas), ("out.timesteps", &schedule.timesteps)] {
            let expected: Vec<f32> = Vec::try_from(case.tensor(name)).unwrap();
            assert_eq!(got.len(), expected.len(), "{name} of {}", path.display());
            for (got, expected) in got.iter().zip(&expected) {
                let apart = got.to_bits().abs_diff(expected.to_bits());
                assert!(apart <= 1, "{name} of {}: {got} is not {expected}", path.display());
            }
        }
    }
}

#[test]
fn static_schedules_are_those_of_diffusers_to_the_last_bit() {
    for path in cases("sigmas_sd3") {
        let case = Case::open(&path);
        let expected: Vec<f32> = Vec::try_from(case.tensor("out.sigmas")).unwrap();
        assert_eq!(case.schedule().sigmas, expected, "{}", path.display());
    }
}

#[test]
fn flow_sde_steps_are_those_of_the_reference() {
    let paths = cases("flow_sde_");
    assert_eq!(paths.len(), 2);
    for path in paths {
        let case = Case::open(&path);
        let schedule = case.schedule();
        let noise_level = case.call["noise_level"].as_f64().unwrap();
        let coefficients: Vec<TransitionCoefficients> = (0..schedule.steps() - 1)
            .map(|step| TransitionCoefficients::new(StepRule::FlowSde, &schedule, step, noise_level).unwrap())
            .collect();
        let rows = TransitionRows::new(&coefficients, Device::Cpu);
        let mean = transition_mean(case.tensor("in.latents"), case.tensor("in.velocity"), &rows);
        let next = next_latents(&mean, &rows.std, case.tensor("in.noise"));
        let weights = step_weights(StepWeight::Noise, &coefficients, &coefficients);
        let weights: Vec<f32> = weights.into_iter().map(|weight| weight as f32).collect();
        let outputs = [
            ("out.log_prob", log_probability(&next, &mean, &rows)),
            ("out.mean", mean),
            ("out.next_latents", next),
            ("out.std", rows.std),
            ("out.weights_mean_one", Tensor::from_slice(&weights)),
        ];
        for (name, got) in outputs {
            let error = relative_error(&got, case.tensor(name));
            assert!(error <= 1e-5, "{name} of {}: relative error {error:e}", path.display());
        }
    }
}
