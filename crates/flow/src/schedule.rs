//! The noise levels a sampler walks through, as diffusers' `FlowMatchEulerDiscreteScheduler` lays them out.
//!
//! A flow-matching model mixes data and noise as `x = (1 − σ)·data + σ·noise`. Sampling starts at `σ = 1`, pure noise,
//! and ends at `σ = 0`; how fast it falls in between is the schedule's business. Two kinds are in use:
//!
//! * **Static shift** (SD3): `f(s) = shift·s / (1 + (shift − 1)·s)` bends an even grid towards the noisy end. The
//!   scheduler applies it twice, once to the training grid that bounds the even one and once to the even grid itself.
//! * **Dynamic shift** (FLUX, Qwen-Image): the bend grows with the number of image tokens, through
//!   `σ = e^μ / (e^μ + 1/u − 1)` with `μ` linear in that number; Qwen-Image then stretches the end to a given value.
//!
//! The arithmetic below keeps to float32 or float64 exactly where diffusers does, because a trained adapter feels
//! the last bit of a time step less than a comparison test does.

use serde::{Deserialize, Serialize};

use crate::FlowError;

/// The `scheduler_config.json` of a diffusers pipeline; keys that do not shape a schedule are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// Name of the scheduler's class, where the file has one.
    #[serde(rename = "_class_name")]
    pub class_name: Option<String>,
    /// Length of the training grid; a time step is `σ` times this.
    pub num_train_timesteps: usize,
    /// Factor of the static shift.
    pub shift: f64,
    /// Whether the shift depends on the number of image tokens.
    pub use_dynamic_shifting: bool,
    /// `μ` at `base_image_seq_len` tokens.
    pub base_shift: Option<f64>,
    /// `μ` at `max_image_seq_len` tokens.
    pub max_shift: Option<f64>,
    /// Number of tokens at which `μ` is `base_shift`.
    pub base_image_seq_len: usize,
    /// Number of tokens at which `μ` is `max_shift`.
    pub max_image_seq_len: usize,
    /// The last noise level before 0, if the schedule is to be stretched to it.
    pub shift_terminal: Option<f64>,
    /// Form of the dynamic shift.
    pub time_shift_type: TimeShift,
    /// Counts `σ` the other way round; not supported.
    pub invert_sigmas: bool,
    /// Karras spacing; not supported.
    pub use_karras_sigmas: bool,
    /// Exponential spacing; not supported.
    pub use_exponential_sigmas: bool,
    /// Beta-distributed spacing; not supported.
    pub use_beta_sigmas: bool,
    /// The scheduler's own random step; not supported, this crate has its own.
    pub stochastic_sampling: bool,
}

/// Form of the dynamic shift.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeShift {
    /// `e^μ / (e^μ + 1/u − 1)`.
    Exponential,
    /// `μ / (μ + 1/u − 1)`.
    Linear,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            class_name: None,
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: Some(0.5),
            max_shift: Some(1.15),
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            shift_terminal: None,
            time_shift_type: TimeShift::Exponential,
            invert_sigmas: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            stochastic_sampling: false,
        }
    }
}

/// Noise levels and time steps of one trajectory; index 0 is the noisiest.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// `steps + 1` noise levels, falling from 1 to 0: step `i` goes from `sigmas[i]` to `sigmas[i + 1]`.
    pub sigmas: Vec<f32>,
    /// `steps` time steps, `num_train_timesteps·σ`, as SD3's network takes them (others divide by that number again).
    pub timesteps: Vec<f32>,
}

impl Schedule {
    /// Lays out `steps` steps for images of `image_seq_len` packed tokens, which only a dynamic shift looks at.
    ///
    /// # Errors
    /// If there are fewer than two steps, if the configuration asks for something unsupported, or if the noise
    /// levels it gives do not fall.
    ///
    /// Source: diffusers 0.38, `scheduling_flow_match_euler_discrete.py`.
    pub fn new(config: &SchedulerConfig, steps: usize, image_seq_len: usize) -> Result<Self, FlowError> {
        if steps < 2 {
            return Err(FlowError::TooFewSteps { steps });
        }
        config.reject_unsupported()?;
        let mut sigmas = match config.use_dynamic_shifting {
            true => dynamic_sigmas(config, steps, config.mu(image_seq_len)?),
            false => static_sigmas(config, steps),
        };
        let timesteps = sigmas.iter().map(|sigma| sigma * config.num_train_timesteps as f32).collect();
        sigmas.push(0.0);
        for (step, pair) in sigmas.windows(2).enumerate() {
            let falls = pair[1] < pair[0];
            if !falls {
                return Err(FlowError::NotDecreasing {
                    steps,
                    step: step + 1,
                    sigma: pair[1],
                    previous: pair[0],
                });
            }
        }
        Ok(Self { sigmas, timesteps })
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.timesteps.len()
    }

    /// `σ[step + 1] − σ[step]`, negative, in float32 as the scheduler subtracts them.
    ///
    /// # Panics
    /// If the schedule has no such step.
    pub fn delta_sigma(&self, step: usize) -> f32 {
        self.sigmas[step + 1] - self.sigmas[step]
    }
}

impl SchedulerConfig {
    /// `μ` for images of `image_seq_len` packed tokens; it is not clamped outside the two lengths that define it.
    ///
    /// # Errors
    /// If the configuration has no `base_shift` or `max_shift`, or defines both at the same length.
    pub fn mu(&self, image_seq_len: usize) -> Result<f64, FlowError> {
        let base_shift = required(self.base_shift, "base_shift")?;
        let max_shift = required(self.max_shift, "max_shift")?;
        if self.base_image_seq_len == self.max_image_seq_len {
            return Err(FlowError::Scheduler {
                setting: "max_image_seq_len",
                value: self.max_image_seq_len.to_string(),
                remedy: "make it differ from `base_image_seq_len`",
            });
        }
        let base_length = self.base_image_seq_len as f64;
        let slope = (max_shift - base_shift) / (self.max_image_seq_len as f64 - base_length);
        Ok(image_seq_len as f64 * slope + (base_shift - slope * base_length))
    }

    fn reject_unsupported(&self) -> Result<(), FlowError> {
        let unsupported = [
            ("invert_sigmas", self.invert_sigmas),
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("stochastic_sampling", self.stochastic_sampling),
        ];
        if let Some((setting, _)) = unsupported.into_iter().find(|(_, set)| *set) {
            return Err(FlowError::Scheduler {
                setting,
                value: "true".to_owned(),
                remedy: "set it to false",
            });
        }
        if let Some(name) = self.class_name.as_ref().filter(|name| *name != "FlowMatchEulerDiscreteScheduler")
        {
            let remedy = "use a pipeline with a FlowMatchEulerDiscreteScheduler";
            return Err(FlowError::Scheduler { setting: "_class_name", value: name.clone(), remedy });
        }
        if self.num_train_timesteps < 2 {
            let value = self.num_train_timesteps.to_string();
            return Err(FlowError::Scheduler { setting: "num_train_timesteps", value, remedy: "use 1000" });
        }
        if !(self.shift.is_finite() && self.shift > 0.0) {
            let value = self.shift.to_string();
            return Err(FlowError::Scheduler { setting: "shift", value, remedy: "use a positive number" });
        }
        match self.shift_terminal {
            Some(terminal) if !(0.0..1.0).contains(&terminal) => Err(FlowError::Scheduler {
                setting: "shift_terminal",
                value: terminal.to_string(),
                remedy: "use a number in [0, 1) or null",
            }),
            _ => Ok(()),
        }
    }
}

fn required(value: Option<f64>, setting: &'static str) -> Result<f64, FlowError> {
    value.ok_or(FlowError::Scheduler {
        setting,
        value: "null".to_owned(),
        remedy: "a dynamic shift needs a number here",
    })
}

/// The last entry is set, not computed, as numpy does it.
fn linspace(first: f64, last: f64, count: usize) -> Vec<f64> {
    let width = (last - first) / (count - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|index| index as f64 * width + first).collect();
    values[count - 1] = last;
    values
}

fn static_sigmas(config: &SchedulerConfig, steps: usize) -> Vec<f32> {
    // The scheduler's constructor works in float32, its `set_timesteps` in float64.
    let shift_training =
        |sigma: f32| (config.shift as f32 * sigma) / (1.0 + (config.shift - 1.0) as f32 * sigma);
    let train_steps = config.num_train_timesteps as f64;
    let sigma_max = f64::from(shift_training(1.0));
    let sigma_min = f64::from(shift_training(1.0 / config.num_train_timesteps as f32));
    let shifted: Vec<f64> = linspace(sigma_max * train_steps, sigma_min * train_steps, steps)
        .into_iter()
        .map(|timestep| timestep / train_steps)
        .map(|sigma| config.shift * sigma / (1.0 + (config.shift - 1.0) * sigma))
        .collect();
    let stretched = match terminal(config) {
        Some(terminal) => {
            let scale = (1.0 - shifted[steps - 1]) / (1.0 - terminal);
            shifted.iter().map(|sigma| 1.0 - (1.0 - sigma) / scale).collect()
        }
        None => shifted,
    };
    stretched.into_iter().map(|sigma| sigma as f32).collect()
}

fn dynamic_sigmas(config: &SchedulerConfig, steps: usize, mu: f64) -> Vec<f32> {
    let bend = match config.time_shift_type {
        TimeShift::Exponential => libm::exp(mu) as f32,
        TimeShift::Linear => mu as f32,
    };
    let shifted: Vec<f32> = linspace(1.0, 1.0 / steps as f64, steps)
        .into_iter()
        .map(|even| bend / (bend + (1.0 / even as f32 - 1.0)))
        .collect();
    match terminal(config) {
        Some(terminal) => {
            let scale = (1.0 - shifted[steps - 1]) / (1.0 - terminal) as f32;
            shifted.iter().map(|sigma| 1.0 - (1.0 - sigma) / scale).collect()
        }
        None => shifted,
    }
}

/// Zero means "no stretch" to the scheduler, like null.
fn terminal(config: &SchedulerConfig) -> Option<f64> {
    config.shift_terminal.filter(|terminal| *terminal != 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sd3() -> SchedulerConfig {
        SchedulerConfig { shift: 3.0, ..SchedulerConfig::default() }
    }

    fn flux() -> SchedulerConfig {
        SchedulerConfig { shift: 3.0, use_dynamic_shifting: true, ..SchedulerConfig::default() }
    }

    fn qwen() -> SchedulerConfig {
        SchedulerConfig {
            use_dynamic_shifting: true,
            max_shift: Some(0.9),
            max_image_seq_len: 8192,
            shift_terminal: Some(0.02),
            ..SchedulerConfig::default()
        }
    }

    fn assert_sigmas(config: &SchedulerConfig, steps: usize, length: usize, expected: &[(usize, f64)]) {
        let schedule = Schedule::new(config, steps, length).unwrap();
        assert_eq!(schedule.sigmas.len(), steps + 1);
        assert_eq!((schedule.sigmas[0], schedule.sigmas[steps]), (1.0, 0.0));
        for &(index, sigma) in expected {
            let got = f64::from(schedule.sigmas[index]);
            assert!((got - sigma).abs() < 1e-6, "sigma {index} of {steps} steps is {got}, not {sigma}");
        }
    }

    #[test]
    fn sd3_schedule_is_shifted_twice() {
        let sigmas = [
            1.0, 0.96012931, 0.91334895, 0.85769231, 0.79036827, 0.70727848, 0.60215054, 0.46487603,
            0.27804878, 0.00892857,
        ];
        let expected: Vec<_> = sigmas.into_iter().enumerate().collect();
        assert_sigmas(&sd3(), 10, 0, &expected);
        let long = [(1, 0.99133083), (2, 0.98235575), (19, 0.76055858), (37, 0.14650873), (38, 0.08104575)];
        assert_sigmas(&sd3(), 40, 0, &long);
        assert_sigmas(&sd3(), 40, 0, &[(39, 0.00892857)]);
    }

    #[test]
    fn flux_schedule_follows_the_number_of_tokens() {
        let sigmas = [
            1.0, 0.96601383, 0.92664734, 0.88051308, 0.82570166, 0.75951092, 0.67798672, 0.57510294,
            0.44119975, 0.25975841,
        ];
        let expected: Vec<_> = sigmas.into_iter().enumerate().collect();
        assert_sigmas(&flux(), 10, 4096, &expected);
        assert_sigmas(&flux(), 50, 4096, &[(1, 0.99357951), (49, 0.06055027)]);
        let short = [(1, 0.90373557), (2, 0.78970484), (3, 0.65248946), (4, 0.48421845), (5, 0.27300333)];
        assert_sigmas(&flux(), 6, 1024, &short);
    }

    #[test]
    fn qwen_schedule_ends_at_its_terminal_value() {
        let sigmas = [
            1.0, 0.92896964, 0.85148479, 0.76662383, 0.67328086, 0.57011730, 0.45549726, 0.32740015,
            0.18330054, 0.02,
        ];
        let expected: Vec<_> = sigmas.into_iter().enumerate().collect();
        assert_sigmas(&qwen(), 10, 1024, &expected);
        assert_sigmas(&qwen(), 50, 1024, &[(1, 0.98806396), (48, 0.05332441), (49, 0.02)]);
        assert_sigmas(&qwen(), 10, 4096, &[(1, 0.93697842), (8, 0.20153003)]);
    }

    #[test]
    fn mu_is_linear_in_the_number_of_tokens() {
        for (config, length, mu) in [
            (flux(), 1024, 0.63),
            (flux(), 2304, 0.8466666667),
            (flux(), 4096, 1.15),
            (qwen(), 1024, 0.5387096774),
            (qwen(), 4096, 0.6935483871),
        ] {
            assert!((config.mu(length).unwrap() - mu).abs() < 1e-9, "{length} tokens");
        }
    }

    #[test]
    fn linear_time_shift_uses_mu_itself() {
        let config = SchedulerConfig { time_shift_type: TimeShift::Linear, ..flux() };
        assert_sigmas(&config, 2, 4096, &[(1, 1.15 / 2.15)]);
    }

    #[test]
    fn timesteps_are_sigmas_on_the_training_grid() {
        let schedule = Schedule::new(&sd3(), 10, 0).unwrap();
        assert_eq!(schedule.timesteps[0], 1000.0);
        assert!((schedule.timesteps[9] - 8.92857).abs() < 1e-4);
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        let refused = [
            (SchedulerConfig { use_karras_sigmas: true, ..sd3() }, "use_karras_sigmas"),
            (SchedulerConfig { invert_sigmas: true, ..sd3() }, "invert_sigmas"),
            (SchedulerConfig { shift: 0.0, ..sd3() }, "`shift`"),
            (SchedulerConfig { shift_terminal: Some(1.5), ..sd3() }, "shift_terminal"),
            (SchedulerConfig { base_shift: None, ..flux() }, "base_shift"),
            (SchedulerConfig { max_image_seq_len: 256, ..flux() }, "max_image_seq_len"),
            (SchedulerConfig { class_name: Some("DDIMScheduler".to_owned()), ..sd3() }, "DDIMScheduler"),
        ];
        for (config, name) in refused {
            let message = Schedule::new(&config, 10, 4096).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn one_step_is_too_few() {
        assert_eq!(Schedule::new(&sd3(), 1, 0), Err(FlowError::TooFewSteps { steps: 1 }));
    }

    #[test]
    fn noise_levels_that_do_not_fall_are_refused() {
        let config = SchedulerConfig { shift: 1e9, ..sd3() };
        assert!(matches!(Schedule::new(&config, 10, 0), Err(FlowError::NotDecreasing { .. })));
    }

    #[test]
    fn the_shipped_json_of_a_pipeline_is_understood() {
        let json = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.38.0",
            "num_train_timesteps": 1000, "shift": 3.0, "shift_terminal": null, "time_shift_type": "exponential"}"#;
        let config: SchedulerConfig = serde_json::from_str(json).unwrap();
        assert_eq!(Schedule::new(&config, 10, 0), Schedule::new(&sd3(), 10, 0));
    }
}
