//! From the trajectories of a task to a gradient.
//!
//! A ratio is measured against the mean that the sampling policy had. Which mean that is, [`config::OldMeans`] says: the one
//! that is differentiated, one that was computed before from the version that sampled, or the one that the worker sent.
//! Where it is one of the former two, the distance of what was sent from it is measured as the drift of workers.
//!
//! A *cell* is one trained step of one seed. Its K branches left the same state, so one forward pass of the network
//! serves all K transitions. Cells at different steps, hence noise levels, share a batch. Which cells share one depends
//! on the task's data alone, so the gradient is the same sum whoever sampled the task and whenever it arrived.

use config::{KlDenominator, RatioNormalization, RunConfig, TaskSpec};
use flow::{
    ClippedObjective, PolicyLoss, TransitionCoefficients, TransitionRows, kl_divergence, log_probability,
    log_ratio, repeat_for_branches, transition_mean, upload,
};
use models::{Conditioning, Guidance};
use run_setup::TrainedSteps;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::exchange::outcome::Trajectories;
use crate::training::policy::Policy;

/// Called after every batch.
type OnBatch = Box<dyn Fn() + Send>;

/// What is differentiated, and in what portions.
pub struct Objective {
    clipped: ClippedObjective,
    ratio_normalization: RatioNormalization,
    kl_beta: f64,
    kl_denominator: KlDenominator,
    guidance_scale: f64,
    n_branches: usize,
    max_rows: usize,
    latent_shape: Vec<i64>,
    on_batch: OnBatch,
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

/// The means that the ratios of a task are measured against.
pub enum MeansBefore {
    /// Those that are differentiated, detached.
    Own,
    /// Those that [`Objective::means`] gave for the version that sampled, batch by batch.
    Computed(Vec<Tensor>),
    /// Those that the worker sent.
    Sent,
}

/// Sums over the cells of an update; divided in the metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// Shares of transitions with ratios outside the clip range: above, below.
    pub clip_fractions: [f64; 2],
    /// How far workers have drifted from the learner, where it is known.
    pub drift: Option<Drift>,
}

/// How far what workers sent is from what the learner computes with the version that sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Largest `|ratio − 1|` of the learner's mean against the worker's.
    pub ratio: f64,
    /// Largest difference of a log-probability to the worker's own.
    pub log_prob: f64,
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
    sent_means: Tensor,
    next: Tensor,
    sent_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    sigmas: Tensor,
    coefficients: Vec<TransitionCoefficients>,
}

impl Objective {
    /// The objective that the config describes, for latents of `latent_shape`.
    pub fn new(config: &RunConfig, latent_shape: &[i64]) -> Self {
        Self {
            clipped: run_setup::objective(config),
            ratio_normalization: config.training.ratio_normalization,
            kl_beta: config.training.kl_beta,
            kl_denominator: config.training.kl_denominator,
            guidance_scale: config.sampling.guidance_scale,
            n_branches: config.sampling.branches_per_seed,
            max_rows: config.training.max_rows.max(1),
            latent_shape: latent_shape.to_vec(),
            on_batch: Box::new(|| ()),
        }
    }

    /// The same, telling when it got on: after every batch.
    pub fn telling(self, on_batch: impl Fn() + Send + 'static) -> Self {
        Self { on_batch: Box::new(on_batch), ..self }
    }

    /// How far a ratio may be from 1 on the side where that is less.
    pub fn narrower_clip_range(&self) -> f64 {
        self.clipped.clip_below.min(self.clipped.clip_above)
    }

    /// Adds the gradient of `scale · Σ over cells (mean of K policy terms + β·KL)` to the policy's.
    ///
    /// Without a KL term, a cell whose advantages are all 0 has no gradient and is not computed.
    ///
    /// # Errors
    /// The first cell whose loss is not finite; the gradient is then of no use.
    ///
    /// # Panics
    /// If `before` was computed of another task.
    pub fn accumulate(
        &self,
        policy: &Policy,
        task: &TrainingTask,
        steps: &TrainedSteps,
        (before, scale): (&MeansBefore, f64),
    ) -> Result<LossSums, NonFiniteCell> {
        let cells = self.computed_cells(task, steps);
        let n_cells = (task.advantages.len() * steps.steps().len()) as u64;
        let mut sums = LossSums { cells: n_cells, ..LossSums::default() };
        for (position, chunk) in cells.chunks(self.max_rows).enumerate() {
            let batch = self.batch(task, steps, chunk, policy);
            let mean_before = match before {
                MeansBefore::Own => MeanBefore::Own,
                MeansBefore::Computed(means) => MeanBefore::Computed(&means[position]),
                MeansBefore::Sent => MeanBefore::Sent,
            };
            sums.add(&self.backward(policy, task, &batch, (mean_before, scale)).map_err(|row| {
                let Cell { seed, step } = chunk[row];
                NonFiniteCell { seed: task.task.first_seed + seed as u32, step: steps.steps()[step] }
            })?);
            (self.on_batch)();
        }
        Ok(sums)
    }

    /// The means of a task's moves under `policy` as it is, in the batches of [`Self::accumulate`] and by the same kernels.
    ///
    /// # Shapes
    /// - returns: of each batch `[cells, latent…]`, float32, on the policy's device
    pub fn means(&self, policy: &Policy, task: &TrainingTask, steps: &TrainedSteps) -> Vec<Tensor> {
        let of_batch = |chunk: &[Cell]| {
            let batch = self.batch(task, steps, chunk, policy);
            let velocity = policy.velocity(&batch.states, &batch.sigmas, &self.guidance(task));
            let rows = TransitionRows::new(&batch.coefficients, batch.states.device());
            let means = no_grad(|| transition_mean(&batch.states, &velocity, &rows));
            (self.on_batch)();
            means
        };
        self.computed_cells(task, steps).chunks(self.max_rows).map(of_batch).collect()
    }

    /// The cells that have a gradient, in the order in which they are computed.
    fn computed_cells(&self, task: &TrainingTask, steps: &TrainedSteps) -> Vec<Cell> {
        (0..task.advantages.len())
            .flat_map(|seed| (0..steps.steps().len()).map(move |step| Cell { seed, step }))
            .filter(|cell| self.kl_beta > 0.0 || self.advantages(task, *cell).iter().any(|a| *a != 0.0))
            .collect()
    }

    fn guidance<'a>(&self, task: &'a TrainingTask) -> Guidance<'a> {
        Guidance { positive: &task.positive, negative: task.negative.as_ref(), scale: self.guidance_scale }
    }

    /// On failure, the row of the batch whose loss is not finite.
    fn backward(
        &self,
        policy: &Policy,
        task: &TrainingTask,
        batch: &Batch,
        (before, scale): (MeanBefore, f64),
    ) -> Result<LossSums, usize> {
        let n_cells = batch.coefficients.len() as f64;
        let rows = TransitionRows::new(&batch.coefficients, batch.states.device());
        let guidance = self.guidance(task);
        let training = policy.training_velocity(&batch.states, &batch.sigmas, &guidance);
        let mean = transition_mean(&batch.states, training.velocity(), &rows);

        let mean_before = before.of(&mean, batch);
        let branch_rows = rows.repeat_for_branches(self.n_branches);
        let log_ratio = self.log_ratio(batch, (&mean, &mean_before), &branch_rows);
        let policy_loss = self.clipped.policy_loss(&log_ratio, &batch.advantages, &batch.weights);
        let kl = (self.kl_beta > 0.0).then(|| {
            let velocity = policy.reference_velocity(&batch.states, &batch.sigmas, &guidance);
            let reference = transition_mean(&batch.states, &velocity, &rows);
            kl_divergence(&mean, &reference, &batch.coefficients, self.kl_denominator).sum(Kind::Float)
        });

        let loss = &policy_loss.loss * n_cells;
        let loss = kl.as_ref().map_or(loss.shallow_clone(), |kl| &loss + kl * self.kl_beta);
        policy.differentiate(training, &(&loss * scale));

        let drift = before.is_the_learners().then(|| self.drift(batch, &mean_before, &branch_rows));
        let of_batch = BatchNumbers { loss, kl, drift, policy_loss: &policy_loss };
        of_batch.read(n_cells).ok_or_else(|| first_non_finite(&mean, &policy_loss, self.n_branches))
    }

    /// Log ratios of all branches: the mean that is trained or looked at over the one it is measured against.
    fn log_ratio(&self, batch: &Batch, (mean, before): (&Tensor, &Tensor), rows: &TransitionRows) -> Tensor {
        let of_branches = |mean: &Tensor| repeat_for_branches(mean, self.n_branches);
        log_ratio(&batch.next, (&of_branches(mean), &of_branches(before)), rows, self.ratio_normalization)
    }

    /// How far the worker's numbers are from those of the learner's mean under the version that sampled: the parts of
    /// [`Drift`], scalars.
    fn drift(&self, batch: &Batch, mean_before: &Tensor, rows: &TransitionRows) -> [Tensor; 2] {
        let largest = |deviation: Tensor| deviation.abs().max();
        no_grad(|| {
            let log_ratio = self.log_ratio(batch, (mean_before, &batch.sent_means), rows);
            let means = repeat_for_branches(mean_before, self.n_branches);
            let log_probs = log_probability(&batch.next, &means, rows);
            [largest(log_ratio.exp() - 1.0), largest(log_probs - &batch.sent_log_probs)]
        })
    }

    fn batch(&self, task: &TrainingTask, steps: &TrainedSteps, cells: &[Cell], policy: &Policy) -> Batch {
        let n_steps = steps.steps().len();
        let (latent_len, n_branches) = (self.latent_shape.iter().product::<i64>() as usize, self.n_branches);
        let gather = |source: &[f32], per_cell: usize| -> Vec<f32> {
            let place = |cell: &Cell| (cell.seed * n_steps + cell.step) * per_cell;
            cells.iter().flat_map(|cell| &source[place(cell)..place(cell) + per_cell]).copied().collect()
        };
        let column = |values: &[f32]| upload(&Tensor::from_slice(values), policy.device());
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
            sent_means: latents(&gather(&trajectories.means, latent_len), cells.len()),
            next: latents(
                &gather(&trajectories.next_latents, latent_len * n_branches),
                cells.len() * n_branches,
            ),
            sent_log_probs: column(&gather(&trajectories.log_probs, n_branches)),
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

/// The mean that the ratios of one batch are measured against.
#[derive(Clone, Copy)]
enum MeanBefore<'a> {
    Own,
    Computed(&'a Tensor),
    Sent,
}

impl MeanBefore<'_> {
    fn of(&self, own: &Tensor, batch: &Batch) -> Tensor {
        match self {
            Self::Own => own.detach(),
            Self::Computed(mean) => mean.shallow_clone(),
            Self::Sent => batch.sent_means.shallow_clone(),
        }
    }

    fn is_the_learners(&self) -> bool {
        match self {
            Self::Own | Self::Computed(_) => true,
            Self::Sent => false,
        }
    }
}

/// What a batch came to, scalars on the policy's device.
struct BatchNumbers<'a> {
    loss: Tensor,
    kl: Option<Tensor>,
    drift: Option<[Tensor; 2]>,
    policy_loss: &'a PolicyLoss,
}

impl BatchNumbers<'_> {
    /// The numbers on the host, for which the device is waited for once; nothing if the loss is not finite.
    fn read(self, n_cells: f64) -> Option<LossSums> {
        let nothing = || self.loss.zeros_like();
        let [ratio, log_prob] = match &self.drift {
            Some(drift) => drift.each_ref().map(Tensor::shallow_clone),
            None => [nothing(), nothing()],
        };
        let of_policy = self.policy_loss;
        let numbers = [
            &self.loss,
            &of_policy.loss,
            &self.kl.as_ref().map_or_else(nothing, Tensor::shallow_clone),
            &of_policy.approx_kl,
            &of_policy.clip_fraction_above,
            &of_policy.clip_fraction_below,
            &ratio,
            &log_prob,
        ]
        .map(|number| number.detach().to_kind(Kind::Double));
        let [loss, policy_loss, kl, approx_kl, above, below, ratio, log_prob] =
            Vec::<f64>::try_from(Tensor::stack(&numbers, 0)).ok()?.try_into().ok()?;
        loss.is_finite().then_some(LossSums {
            cells: 0,
            trained_cells: n_cells as u64,
            policy_loss: policy_loss * n_cells,
            kl,
            approx_kl: approx_kl * n_cells,
            clip_fractions: [above, below].map(|share| share * n_cells),
            drift: self.drift.is_some().then_some(Drift { ratio, log_prob }),
        })
    }
}

impl LossSums {
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
        self.drift = self.drift.into_iter().chain(other.drift).reduce(Drift::larger);
    }
}

impl Drift {
    fn larger(self, other: Self) -> Self {
        Self { ratio: self.ratio.max(other.ratio), log_prob: self.log_prob.max(other.log_prob) }
    }
}
