//! The rollout: from the initial noises of a task to the transitions that are trained and the latents that are scored.
//!
//! TempFlow-GRPO follows one deterministic *trunk* per seed. At each trained step it leaves the trunk K times at random,
//! and completes each of these *branches* deterministically, so that an image's reward is owed to one random move:
//!
//! ```text
//! step         0         1         2         3
//! trunk   x₀ ──┬── x₁ ───┬── x₂ ───┬            after its last branch point nobody follows the trunk
//!              ├─ y₀₀ ───┼── · ────┼── · ────── image     reward of the move x₀ → y₀₀
//!              └─ y₀₁ ───┼── · ────┼── · ────── image     reward of the move x₀ → y₀₁
//!                        ├─ y₁₀ ───┼── · ────── image
//!                        └─ y₁₁ ───┼── · ────── image
//!                                  ├─ y₂₀ ───── image
//! rows per seed                    └─ y₂₁ ───── image
//! (K = 2)      1         3         5         6
//! ```
//!
//! One would follow the branches one after another; but everything in one column is at the same noise level. So the
//! *front*, all latents alive at a step, goes through the network as one batch and moves on to the next column: T network
//! calls instead of T²/2, for the same numbers.
//!
//! A Flow-GRPO path is the special case in which the random move is not a branch but the way on.
//!
//! Nothing in here reads a file, a socket or a clock. The network is a closure and the noise an argument, so a rollout
//! is a function of its arguments. Equal chunks of rows go through the network whatever else the machine does: matrix
//! products round differently in different batches, and a task run twice must give the same bytes.

mod non_finite;

use flow::{
    Schedule, TransitionCoefficients, TransitionRows, log_probability, next_latents, ode_step,
    repeat_for_branches, transition_mean,
};
use run_setup::TrainedSteps;
use tch::{Kind, Tensor};

use self::non_finite::first_non_finite_row;
pub use self::non_finite::{NonFinite, Row};

/// Predicts the velocity of some latents at a step: `(latents [B, …], step) → [B, …]`, f32.
pub type Velocity<'a> = dyn FnMut(&Tensor, usize) -> Tensor + 'a;

/// The randomness of a task, drawn for all its S seeds at once.
pub trait Noise {
    /// Initial latents: `[S, …]`, f32.
    fn initial(&self) -> Tensor;

    /// Noise of the random move at a step, for each of K branches: `[S, K, …]`, f32.
    fn transition(&self, step: usize, n_branches: usize) -> Tensor;
}

/// What a rollout follows, apart from network and noise.
#[derive(Debug)]
pub struct Rollout {
    schedule: Schedule,
    steps: TrainedSteps,
    max_rows: usize,
}

/// What a rollout leaves behind: S seeds, B trained steps, K branches.
#[derive(Debug)]
pub struct Trajectories {
    /// Latents before each random move: `[S, B, …]`.
    pub states: Tensor,
    /// Means of the random moves, shared by the branches: `[S, B, …]`.
    pub means: Tensor,
    /// Latents after each random move: `[S, B, K, …]`.
    pub next_latents: Tensor,
    /// Log-probabilities of the random moves: `[S, B, K]`.
    pub log_probabilities: Tensor,
    /// Finished latents, one per image, branches of the first trained step first: `[S, images, …]`.
    pub finished: Tensor,
    /// Guided network evaluations, rows counted one by one.
    pub network_evaluations: u64,
}

/// One random move of all seeds.
struct Move {
    state: Tensor,
    mean: Tensor,
    next: Tensor,
    log_probability: Tensor,
}

impl Rollout {
    /// A rollout of `steps` along the schedule that they are of, with at most `max_rows` latents in one network call.
    pub fn new(schedule: Schedule, steps: TrainedSteps, max_rows: usize) -> Self {
        Self { schedule, steps, max_rows }
    }

    /// Where it branches, and by which moves.
    pub fn trained_steps(&self) -> &TrainedSteps {
        &self.steps
    }

    /// The noise levels it follows.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// Samples all seeds of a task.
    ///
    /// # Errors
    /// If a velocity or a log-probability is not finite.
    pub fn sample(&self, noise: &dyn Noise, velocity: &mut Velocity) -> Result<Trajectories, NonFinite> {
        let mut front = noise.initial().unsqueeze(1); // [S, …] → [S, rows, …]; the trunk is row 0 while it lives
        let n_branches = self.steps.plan.branches();
        let mut moves = Vec::with_capacity(self.steps.steps().len());
        let mut network_evaluations = 0;
        let mut unchecked: Option<(usize, Tensor)> = None;
        for step in 0..self.schedule.steps() {
            let velocities = self.evaluate(&front, step, velocity);
            // Drawn while a card computes the velocities, since the check waits for them.
            let position = self.steps.steps().binary_search(&step).ok();
            let drawn = position.map(|position| (position, noise.transition(step, n_branches)));
            self.check(&velocities, step, unchecked.take())?;
            network_evaluations += (front.size()[0] * front.size()[1]) as u64;
            let mut advanced = advance(&front, &velocities, self.schedule.delta_sigma(step));
            if let Some((position, drawn)) = drawn {
                let transition = &self.steps.coefficients[position];
                let trunk = (front.select(1, 0), velocities.select(1, 0)); // [S, rows, …] → [S, …]
                let random = self.explore(trunk, transition, &drawn);
                unchecked = Some((step, random.log_probability.shallow_clone()));
                advanced = Tensor::cat(&[&advanced, &random.next], 1);
                moves.push(random);
            }
            front = self.still_followed(advanced, step + 1);
        }
        if let Some((step, log_probabilities)) = unchecked {
            self.check_log_probabilities(&log_probabilities, step)?;
        }
        Ok(Trajectories {
            states: stack(&moves, |random| &random.state),
            means: stack(&moves, |random| &random.mean),
            next_latents: stack(&moves, |random| &random.next),
            log_probabilities: stack(&moves, |random| &random.log_probability),
            finished: front,
            network_evaluations,
        })
    }

    /// Velocities of the whole front, in network calls of at most `max_rows` rows; seed-major, branch-minor.
    fn evaluate(&self, front: &Tensor, step: usize, velocity: &mut Velocity) -> Tensor {
        let rows = front.flatten(0, 1); // [S, rows, …] → [S·rows, …]
        let chunks: Vec<Tensor> =
            rows.split(self.max_rows as i64, 0).iter().map(|chunk| velocity(chunk, step)).collect();
        Tensor::cat(&chunks, 0).view_as(front)
    }

    /// Looks at the velocities of a step, and at the log-probabilities of the step before where it has any: together, since
    /// each look makes the host wait for the device.
    fn check(
        &self,
        velocities: &Tensor,
        step: usize,
        before: Option<(usize, Tensor)>,
    ) -> Result<(), NonFinite> {
        let is_finite = velocities.isfinite().all();
        let is_finite = match &before {
            Some((_, log_probabilities)) => is_finite.logical_and(&log_probabilities.isfinite().all()),
            None => is_finite,
        };
        if bool::try_from(is_finite).is_ok_and(|is_finite| is_finite) {
            return Ok(());
        }
        if let Some((step, log_probabilities)) = before {
            self.check_log_probabilities(&log_probabilities, step)?;
        }
        match first_non_finite_row(&velocities.flatten(0, 1)) {
            None => Ok(()),
            Some(row) => {
                let rows_per_seed = velocities.size()[1] as usize;
                let (seed, row) = (row / rows_per_seed, row % rows_per_seed);
                Err(NonFinite { quantity: "velocity", seed, step, row: self.row(row, step) })
            }
        }
    }

    /// Takes K random moves from the trunk of each seed, given its state and velocity there.
    fn explore(
        &self,
        (state, velocity): (Tensor, Tensor),
        transition: &TransitionCoefficients,
        noise: &Tensor,
    ) -> Move {
        let (n_seeds, n_branches) = (state.size()[0], self.steps.plan.branches());
        let per_seed = TransitionRows::new(&vec![*transition; n_seeds as usize], state.device());
        let per_branch = per_seed.repeat_for_branches(n_branches);
        let mean = transition_mean(&state, &velocity, &per_seed);
        let means = repeat_for_branches(&mean, n_branches); // [S, …] → [S·K, …]
        let next = next_latents(&means, &per_branch.std, &noise.flatten(0, 1));
        let log_probability = log_probability(&next, &means, &per_branch).view([n_seeds, n_branches as i64]);
        Move { state, mean, next: next.view_as(noise), log_probability }
    }

    /// Drops what nobody follows any further: the trunk after its last branch point, and of a Flow-GRPO path the
    /// deterministic move where the random one was taken. Either stands first.
    fn still_followed(&self, latents: Tensor, step: usize) -> Tensor {
        if step == self.schedule.steps() {
            return latents;
        }
        let (n_latents, n_followed) = (latents.size()[1], self.steps.plan.rows(step) as i64);
        latents.narrow(1, n_latents - n_followed, n_followed)
    }

    fn check_log_probabilities(&self, log_probabilities: &Tensor, step: usize) -> Result<(), NonFinite> {
        match first_non_finite_row(&log_probabilities.flatten(0, 1)) {
            None => Ok(()),
            Some(row) => {
                let n_branches = self.steps.plan.branches();
                let (seed, branch) = (row / n_branches, row % n_branches);
                let row = Row::Branch { born: step, branch };
                Err(NonFinite { quantity: "log-probability", seed, step, row })
            }
        }
    }

    /// Which latent stands at position `row` of a seed's front at a step.
    fn row(&self, row: usize, step: usize) -> Row {
        match (self.steps.plan.evaluates_trunk(step), row) {
            (true, 0) => Row::Trunk,
            (has_trunk, _) => {
                let (branch, n_branches) = (row - usize::from(has_trunk), self.steps.plan.branches());
                let born = self.steps.steps()[branch / n_branches];
                Row::Branch { born, branch: branch % n_branches }
            }
        }
    }
}

/// Follows the deterministic path from initial to finished latents, as evaluation does; `initial` is `[B, …]`.
///
/// # Errors
/// If a velocity is not finite; the seed named is the row of `initial`.
pub fn sample_deterministically(
    initial: Tensor,
    schedule: &Schedule,
    velocity: &mut Velocity,
) -> Result<Tensor, NonFinite> {
    let mut latents = initial;
    for step in 0..schedule.steps() {
        let velocities = velocity(&latents, step);
        if let Some(seed) = first_non_finite_row(&velocities) {
            return Err(NonFinite { quantity: "velocity", seed, step, row: Row::Trunk });
        }
        let delta_sigma = schedule.delta_sigma(step);
        latents = advance(&latents.unsqueeze(1), &velocities.unsqueeze(1), delta_sigma).squeeze_dim(1);
    }
    Ok(latents)
}

/// The deterministic move of every latent of a front.
fn advance(front: &Tensor, velocity: &Tensor, delta_sigma: f32) -> Tensor {
    let rows = front.flatten(0, 1);
    let delta_sigma = Tensor::full(rows.size()[0], f64::from(delta_sigma), (Kind::Float, rows.device()));
    ode_step(&rows, &velocity.flatten(0, 1), &delta_sigma).view_as(front)
}

fn stack(moves: &[Move], part: fn(&Move) -> &Tensor) -> Tensor {
    Tensor::stack(&moves.iter().map(part).collect::<Vec<_>>(), 1) // B × [S, …] → [S, B, …]
}

#[cfg(test)]
mod tests;
