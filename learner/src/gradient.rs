//! From the trajectories of a task to a gradient.
//!
//! A *cell* is one trained step of one seed. Its K branches left the same state, so one forward pass of the network
//! serves all K transitions. Cells at different steps, hence noise levels, share a batch. Which cells share one depends
//! on the task's data alone, so the gradient is the same sum whoever sampled the task and whenever it arrived.

use config::KlDenominator;
use config::{RunConfig, TaskSpec};
use flow::{
    ClippedObjective, PolicyLoss, TransitionCoefficients, TransitionRows, kl_divergence, log_probability,
    log_ratio, repeat_for_branches, transition_mean,
};
use models::{Conditioning, Guidance};
use tch::{Kind, Tensor};

use crate::outcome::Trajectories;
use crate::policy::Policy;
use crate::rules::{self, TrainedSteps};

/// What is differentiated, and in what portions.
#[derive(Debug)]
pub struct Objective {
    clipped: ClippedObjective,
    kl_beta: f64,
    kl_denominator: KlDenominator,
    guidance_scale: f64,
    n_branches: usize,
    max_rows: usize,
    latent_shape: Vec<i64>,
}

/// A task that is ready for training.
pub struct TrainingTask<'a> {
    /// Its name and its seeds.
    pub task: &'a TaskSpec,
    /// What was sampled.
    pub trajectories: &'a Trajectories,
    /// Of each seed: trained steps × branches.
    pub advantages: &'a [Vec<f32>],
    /// The prompt's embedding.
    pub positive: Conditioning,
    /// The negative prompt's, with guidance.
    pub negative: Option<Conditioning>,
}

/// Sums over the cells of an update; divided in the metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Cells in all.
    pub cells: u64,
    /// Cells that went through the network.
    pub trained_cells: u64,
    /// Policy losses.
    pub policy_loss: f64,
    /// Divergences from the base model, before β.
    pub kl: f64,
    /// Divergences from the sampling policy.
    pub approx_kl: f64,
    /// Shares of clipped transitions: all, above, below.
    pub clip_fractions: [f64; 3],
    /// Largest `|ratio − 1|`.
    pub ratio_deviation: f64,
    /// Largest difference of a log-probability to the sampler's own.
    pub log_prob_deviation: f64,
}

/// Where a loss stopped being a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NonFiniteCell {
    /// Seed of the prompt.
    pub seed: u32,
    /// Step of the schedule.
    pub step: usize,
}

/// A cell by its place in the task.
#[derive(Clone, Copy)]
struct Cell {
    seed: usize,
    step: usize,
}

/// Cells that share a forward pass.
struct Batch {
    states: Tensor,
    old_means: Tensor,
    next: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    sigmas: Tensor,
    coefficients: Vec<TransitionCoefficients>,
}

impl Objective {
    /// The objective that the config describes, for latents of `latent_shape`.
    pub fn new(config: &RunConfig, latent_shape: &[i64]) -> Self {
        Self {
            clipped: rules::objective(config),
            kl_beta: config.training.kl_beta,
            kl_denominator: config.training.kl_denominator,
            guidance_scale: config.sampling.guidance_scale,
            n_branches: config.sampling.branches_per_seed,
            max_rows: config.training.max_rows.max(1),
            latent_shape: latent_shape.to_vec(),
        }
    }

    /// Adds the gradient of `scale · Σ over cells (mean of K policy terms + β·KL)` to the policy's.
    ///
    /// Without a KL term, a cell whose advantages are all 0 has no gradient and is not computed.
    ///
    /// # Errors
    /// The first cell whose loss is not finite; the gradient is then of no use.
    pub fn accumulate(
        &self,
        policy: &Policy,
        task: &TrainingTask,
        steps: &TrainedSteps,
        scale: f64,
    ) -> Result<LossSums, NonFiniteCell> {
        let cells = (0..task.advantages.len())
            .flat_map(|seed| (0..steps.steps.len()).map(move |step| Cell { seed, step }))
            .filter(|cell| self.kl_beta > 0.0 || self.advantages(task, *cell).iter().any(|a| *a != 0.0));
        let cells: Vec<Cell> = cells.collect();
        let n_cells = (task.advantages.len() * steps.steps.len()) as u64;
        let mut sums = LossSums { cells: n_cells, ..LossSums::default() };
        for chunk in cells.chunks(self.max_rows) {
            let batch = self.batch(task, steps, chunk, policy);
            sums.add(&self.backward(policy, task, &batch, scale).map_err(|row| {
                let Cell { seed, step } = chunk[row];
                NonFiniteCell { seed: task.task.first_seed + seed as u32, step: steps.steps[step] }
            })?);
        }
        Ok(sums)
    }

    /// On failure, the row of the batch whose loss is not finite.
    fn backward(
        &self,
        policy: &Policy,
        task: &TrainingTask,
        batch: &Batch,
        scale: f64,
    ) -> Result<LossSums, usize> {
        let n_cells = batch.coefficients.len() as f64;
        let rows = TransitionRows::new(&batch.coefficients, batch.states.device());
        let guidance = Guidance {
            positive: &task.positive,
            negative: task.negative.as_ref(),
            scale: self.guidance_scale,
        };
        let training = policy.training_velocity(&batch.states, &batch.sigmas, &guidance);
        let mean = transition_mean(&batch.states, training.velocity(), &rows);

        let (branch_rows, branch_means) = self.for_branches(&rows, &mean);
        let old_means = repeat_for_branches(&batch.old_means, self.n_branches);
        let log_ratio = log_ratio(&batch.next, &branch_means, &old_means, &branch_rows);
        let policy_loss = self.clipped.policy_loss(&log_ratio, &batch.advantages, &batch.weights);
        let kl = (self.kl_beta > 0.0).then(|| {
            let velocity = policy.reference_velocity(&batch.states, &batch.sigmas, &guidance);
            let reference = transition_mean(&batch.states, &velocity, &rows);
            kl_divergence(&mean, &reference, &batch.coefficients, self.kl_denominator).sum(Kind::Float)
        });

        let loss = &policy_loss.loss * n_cells;
        let loss = kl.as_ref().map_or(loss.shallow_clone(), |kl| &loss + kl * self.kl_beta);
        if !loss.double_value(&[]).is_finite() {
            return Err(first_non_finite(&mean, &policy_loss, self.n_branches));
        }
        policy.differentiate(training, &(loss * scale));

        let log_probs = tch::no_grad(|| log_probability(&batch.next, &branch_means, &branch_rows));
        Ok(LossSums::of(&policy_loss, kl, n_cells, &(log_probs - &batch.old_log_probs)))
    }

    fn for_branches(&self, rows: &TransitionRows, mean: &Tensor) -> (TransitionRows, Tensor) {
        (rows.repeat_for_branches(self.n_branches), repeat_for_branches(mean, self.n_branches))
    }

    fn batch(&self, task: &TrainingTask, steps: &TrainedSteps, cells: &[Cell], policy: &Policy) -> Batch {
        let n_steps = steps.steps.len();
        let (latent_len, n_branches) = (self.latent_shape.iter().product::<i64>() as usize, self.n_branches);
        let gather = |source: &[f32], per_cell: usize| -> Vec<f32> {
            let place = |cell: &Cell| (cell.seed * n_steps + cell.step) * per_cell;
            cells.iter().flat_map(|cell| &source[place(cell)..place(cell) + per_cell]).copied().collect()
        };
        let column = |values: &[f32]| Tensor::from_slice(values).to_device(policy.device());
        let latents = |values: &[f32], rows: usize| {
            column(values).view([&[rows as i64][..], &self.latent_shape].concat().as_slice())
        };
        let trajectories = task.trajectories;
        let advantages: Vec<f32> =
            cells.iter().flat_map(|cell| self.advantages(task, *cell)).copied().collect();
        let per_branch = |value: f32| std::iter::repeat_n(value, n_branches);
        let weights: Vec<f32> = cells.iter().flat_map(|cell| per_branch(steps.weights[cell.step])).collect();
        let coefficients: Vec<_> = cells.iter().map(|cell| steps.coefficients[cell.step]).collect();
        let sigmas: Vec<f32> = coefficients.iter().map(|move_| move_.sigma as f32).collect();
        Batch {
            states: latents(&gather(&trajectories.states, latent_len), cells.len()),
            old_means: latents(&gather(&trajectories.means, latent_len), cells.len()),
            next: latents(
                &gather(&trajectories.next_latents, latent_len * n_branches),
                cells.len() * n_branches,
            ),
            old_log_probs: column(&gather(&trajectories.log_probs, n_branches)),
            advantages: column(&advantages),
            weights: column(&weights),
            sigmas: column(&sigmas),
            coefficients,
        }
    }

    fn advantages<'a>(&self, task: &TrainingTask<'a>, cell: Cell) -> &'a [f32] {
        &task.advantages[cell.seed][cell.step * self.n_branches..(cell.step + 1) * self.n_branches]
    }
}

/// The first row of the batch in which something is not finite; 0 if only the sum overflowed.
fn first_non_finite(mean: &Tensor, loss: &PolicyLoss, n_branches: usize) -> usize {
    let n_rows = mean.size()[0];
    let ratios = loss.ratio.view([n_rows, n_branches as i64]);
    let is_finite = |tensor: Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
    (0..n_rows).find(|row| !is_finite(mean.get(*row)) || !is_finite(ratios.get(*row))).unwrap_or(0) as usize
}

impl LossSums {
    fn of(loss: &PolicyLoss, kl: Option<Tensor>, n_cells: f64, log_prob_differences: &Tensor) -> Self {
        let value = |tensor: &Tensor| tensor.double_value(&[]);
        let fractions = [&loss.clip_fraction, &loss.clip_fraction_above, &loss.clip_fraction_below];
        Self {
            cells: 0,
            trained_cells: n_cells as u64,
            policy_loss: value(&loss.loss) * n_cells,
            kl: kl.as_ref().map_or(0.0, value),
            approx_kl: value(&loss.approx_kl) * n_cells,
            clip_fractions: fractions.map(|share| value(share) * n_cells),
            ratio_deviation: value(&loss.max_ratio_deviation),
            log_prob_deviation: value(&log_prob_differences.abs().max()),
        }
    }

    /// Adds the sums of other cells.
    pub fn add(&mut self, other: &Self) {
        self.cells += other.cells;
        self.trained_cells += other.trained_cells;
        self.policy_loss += other.policy_loss;
        self.kl += other.kl;
        self.approx_kl += other.approx_kl;
        for (sum, share) in self.clip_fractions.iter_mut().zip(other.clip_fractions) {
            *sum += share;
        }
        self.ratio_deviation = self.ratio_deviation.max(other.ratio_deviation);
        self.log_prob_deviation = self.log_prob_deviation.max(other.log_prob_deviation);
    }
}
