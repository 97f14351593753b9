//! The noise levels a sampler walks through, as diffusers' pipelines and their `FlowMatchEulerDiscreteScheduler` lay them
//! out.
//!
//! A flow-matching model mixes data and noise as `x = (1 − σ)·data + σ·noise`. Sampling starts at `σ = 1`, pure noise,
//! and ends at `σ = 0`; how fast it falls in between is the schedule's business. Two things decide it, each by itself:
//!
//! * **The grid** ([`NoiseGrid`]) belongs to the pipeline. FLUX and Qwen-Image hand their scheduler the even levels `1`
//!   to `1/steps`; SD3 lets the scheduler make its own, even between the ends of the grid it was trained on.
//! * **The bend** belongs to the scheduler's configuration. Either is `b / (b + 1/u − 1)` of an even level `u`: the static
//!   `b` is `shift`, written `shift·u / (1 + (shift − 1)·u)`; the dynamic one grows with the number of image tokens, as
//!   `e^μ` or `μ` with `μ` linear in that number. A terminal value then stretches the end, if there is one.
//!
//! A static shift bends the training grid, too, and with it the ends of the scheduler's own grid: SD3 is shifted twice.
//!
//! The arithmetic below keeps to float32 or float64 exactly where diffusers does, because a trained adapter feels
//! the last bit of a time step less than a comparison test does.

mod scheduler_config;

pub use scheduler_config::{SchedulerConfig, TimeShift};

use crate::FlowError;

/// More than any sampler takes, and few enough to lay out.
pub(crate) const MOST_STEPS: usize = 1_000_000;

/// Who lays out the even noise levels that the scheduler bends; the class of the pipeline tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoiseGrid {
    /// The pipeline: `1` to `1/steps`.
    Pipeline,
    /// The scheduler: from the highest level of its training grid to the lowest.
    Scheduler,
}

/// Noise levels and time steps of one trajectory; index 0 is the noisiest.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// `steps + 1` noise levels, falling from 1 to 0: step `i` goes from `sigmas[i]` to `sigmas[i + 1]`.
    pub sigmas: Vec<f32>,
    /// `steps` time steps, `num_train_timesteps·σ`, as SD3's network takes them (others divide by 1000 again).
    pub timesteps: Vec<f32>,
}

impl NoiseGrid {
    /// The grid of a pipeline that does or does not hand its scheduler noise levels.
    pub fn of_pipeline(passes_noise_levels: bool) -> Self {
        if passes_noise_levels { Self::Pipeline } else { Self::Scheduler }
    }

    /// The even levels, and the arithmetic in which they are then bent: the scheduler takes what it is handed as float32.
    fn levels(self, config: &SchedulerConfig, steps: usize) -> (Vec<f64>, Arithmetic) {
        match self {
            Self::Pipeline => {
                let arithmetic = Arithmetic::Float32;
                let levels = linspace(1.0, 1.0 / steps as f64, steps);
                (levels.into_iter().map(|level| arithmetic.round(level)).collect(), arithmetic)
            }
            Self::Scheduler => {
                let (highest, lowest) = config.training_ends();
                let train_steps = config.num_train_timesteps as f64;
                let timesteps = linspace(highest * train_steps, lowest * train_steps, steps);
                (timesteps.into_iter().map(|step| step / train_steps).collect(), Arithmetic::Float64)
            }
        }
    }
}

impl Schedule {
    /// Lays out `steps` steps for images of `image_seq_len` packed tokens, which only a dynamic shift looks at.
    ///
    /// # Errors
    /// If there are fewer than two steps or more than a million, or the noise levels do not fall.
    ///
    /// Source: diffusers 0.38, `scheduling_flow_match_euler_discrete.py` and the `__call__` of each pipeline.
    pub fn new(
        config: &SchedulerConfig,
        grid: NoiseGrid,
        steps: usize,
        image_seq_len: usize,
    ) -> Result<Self, FlowError> {
        if !(2..=MOST_STEPS).contains(&steps) {
            return Err(FlowError::NumberOfSteps { steps });
        }
        let (mut levels, arithmetic) = grid.levels(config, steps);
        let bend = config.bend(image_seq_len);
        levels.iter_mut().for_each(|level| *level = bend.apply(*level, arithmetic));
        if let Some(terminal) = config.shift_terminal {
            stretch(&mut levels, terminal, arithmetic);
        }
        let mut sigmas: Vec<f32> = levels.into_iter().map(|level| level as f32).collect();
        let timesteps = sigmas.iter().map(|sigma| sigma * config.num_train_timesteps as f32).collect();
        sigmas.push(0.0);
        check_fall(&sigmas)?;
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

fn check_fall(sigmas: &[f32]) -> Result<(), FlowError> {
    let steps = sigmas.len() - 1;
    // Not `>=`: a NaN does not fall either.
    let stuck = sigmas.windows(2).position(|pair| !matches!(pair, [from, to] if to < from));
    match stuck {
        Some(step) => {
            let (previous, sigma) = (sigmas[step], sigmas[step + 1]);
            Err(FlowError::NotDecreasing { steps, step: step + 1, sigma, previous })
        }
        None => Ok(()),
    }
}

/// The type of the array in which numpy or torch computes: the result of every single operation is rounded to it.
#[derive(Debug, Clone, Copy)]
enum Arithmetic {
    Float32,
    Float64,
}

impl Arithmetic {
    /// Of sums, products and quotients of float32 numbers, the float64 result rounds to what float32 itself would give.
    fn round(self, exact: f64) -> f64 {
        match self {
            Self::Float32 => f64::from(exact as f32),
            Self::Float64 => exact,
        }
    }
}

/// How even levels become those of the schedule.
#[derive(Debug, Clone, Copy)]
enum Bend {
    Static { shift: f64 },
    Dynamic { factor: f64 },
}

impl Bend {
    fn apply(self, even: f64, arithmetic: Arithmetic) -> f64 {
        let round = |exact| arithmetic.round(exact);
        match self {
            Self::Static { shift } => {
                let lowered = round(round(shift - 1.0) * even);
                round(round(round(shift) * even) / round(1.0 + lowered))
            }
            Self::Dynamic { factor } => {
                let factor = round(factor);
                round(factor / round(factor + round(round(1.0 / even) - 1.0)))
            }
        }
    }
}

impl SchedulerConfig {
    /// `μ` for images of `image_seq_len` packed tokens; it is not clamped outside the two lengths that define it.
    pub fn mu(&self, image_seq_len: usize) -> f64 {
        let slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len);
        image_seq_len as f64 * slope + (self.base_shift - slope * self.base_image_seq_len)
    }

    fn bend(&self, image_seq_len: usize) -> Bend {
        if !self.use_dynamic_shifting {
            return Bend::Static { shift: self.shift };
        }
        let mu = self.mu(image_seq_len);
        let factor = match self.time_shift_type {
            TimeShift::Exponential => libm::exp(mu),
            TimeShift::Linear => mu,
        };
        Bend::Dynamic { factor }
    }

    /// Highest and lowest level of the training grid, a float32 tensor, which a static shift has bent.
    fn training_ends(&self) -> (f64, f64) {
        let arithmetic = Arithmetic::Float32;
        let ends = (1.0, arithmetic.round(1.0 / self.num_train_timesteps as f64));
        if self.use_dynamic_shifting {
            return ends;
        }
        let bend = Bend::Static { shift: self.shift };
        (bend.apply(ends.0, arithmetic), bend.apply(ends.1, arithmetic))
    }
}

/// Moves the last level to `terminal` and the others in proportion, 1 excepted.
fn stretch(levels: &mut [f64], terminal: f64, arithmetic: Arithmetic) {
    let round = |exact| arithmetic.round(exact);
    let Some(last) = levels.last() else { return };
    let scale = round(round(1.0 - last) / round(1.0 - terminal));
    levels.iter_mut().for_each(|level| *level = round(1.0 - round(round(1.0 - *level) / scale)));
}

/// The last entry is set, not computed, as numpy does it.
fn linspace(first: f64, last: f64, count: usize) -> Vec<f64> {
    let width = (last - first) / (count - 1) as f64;
    let mut values: Vec<f64> = (0..count).map(|index| index as f64 * width + first).collect();
    values[count - 1] = last;
    values
}

#[cfg(test)]
mod tests;
