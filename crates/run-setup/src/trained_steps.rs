//! The trained steps of an iteration, and what of them does not depend on any trajectory.

use config::{
    BranchSteps, RolloutPlan, RolloutPlanError, RunConfig, StepDraw, StepDrawError, StepRule, StepWeight,
};
use flow::{FlowError, Schedule, TransitionCoefficients, step_weights};

/// What a run config says of random steps.
#[derive(Clone, Debug, PartialEq)]
pub struct StepSettings {
    /// Stochastic transition.
    pub step_rule: StepRule,
    /// How strong its noise is, as `sampling.noise_level`.
    pub noise_level: f64,
    /// Which steps are trained.
    pub branch_steps: BranchSteps,
    /// Weight of a step in the policy loss.
    pub step_weight: StepWeight,
}

/// The trained steps of an iteration.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainedSteps {
    /// Where the rollouts of the iteration branch.
    pub plan: RolloutPlan,
    /// Of each trained step, its random move.
    pub coefficients: Vec<TransitionCoefficients>,
    /// Of each trained step, its weight in the policy loss.
    pub weights: Vec<f32>,
}

/// A step that can be drawn for training.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawableStep {
    /// Position in the schedule.
    pub step: usize,
    /// Its random move.
    pub coefficients: TransitionCoefficients,
    /// Its weight in the policy loss.
    pub weight: f64,
}

/// Steps, branches or a noise level that contradict each other or the schedule.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TrainedStepsError {
    /// Of the config's numbers.
    #[error(transparent)]
    Plan(#[from] RolloutPlanError),
    /// Of its branch steps.
    #[error(transparent)]
    Draw(#[from] StepDrawError),
    /// Of the noise level or the schedule.
    #[error(transparent)]
    Flow(#[from] FlowError),
}

impl StepSettings {
    /// Those of a run.
    pub fn new(config: &RunConfig) -> Self {
        let sampling = &config.sampling;
        Self {
            step_rule: sampling.step_rule,
            noise_level: sampling.noise_level,
            branch_steps: sampling.branch_steps.clone(),
            step_weight: config.training.step_weight,
        }
    }

    /// All steps that can be drawn for training, with their weights.
    ///
    /// # Errors
    /// If branch steps or noise level do not suit the schedule.
    pub fn drawable(&self, schedule: &Schedule) -> Result<Vec<DrawableStep>, TrainedStepsError> {
        let draw = StepDraw::new(&self.branch_steps, schedule.steps())?;
        let moves = self.moves(schedule, draw.drawable())?;
        let weights = step_weights(self.step_weight, &moves, &moves);
        let steps = draw.drawable().iter().zip(moves).zip(weights);
        Ok(steps.map(|((&step, coefficients), weight)| DrawableStep { step, coefficients, weight }).collect())
    }

    fn moves(&self, schedule: &Schedule, steps: &[usize]) -> Result<Vec<TransitionCoefficients>, FlowError> {
        let of_step = |&step| TransitionCoefficients::new(self.step_rule, schedule, step, self.noise_level);
        steps.iter().map(of_step).collect()
    }
}

impl TrainedSteps {
    /// The trained steps of `iteration`.
    ///
    /// # Errors
    /// If the config's steps, branches or noise level contradict each other or the schedule.
    pub fn new(config: &RunConfig, schedule: &Schedule, iteration: u32) -> Result<Self, TrainedStepsError> {
        Self::of_plan(config.rollout_plan(iteration)?, &StepSettings::new(config), schedule)
    }

    /// The trained steps of a plan.
    ///
    /// # Errors
    /// If plan or settings do not suit the schedule.
    pub fn of_plan(
        plan: RolloutPlan,
        settings: &StepSettings,
        schedule: &Schedule,
    ) -> Result<Self, TrainedStepsError> {
        let coefficients = settings.moves(schedule, plan.trained_steps())?;
        let drawable = StepDraw::new(&settings.branch_steps, schedule.steps())?;
        let drawable = settings.moves(schedule, drawable.drawable())?;
        let weights = step_weights(settings.step_weight, &coefficients, &drawable);
        let weights = weights.into_iter().map(|weight| weight as f32).collect();
        Ok(Self { plan, coefficients, weights })
    }

    /// Positions in the schedule, rising.
    pub fn steps(&self) -> &[usize] {
        self.plan.trained_steps()
    }

    /// The steps as the wire counts them.
    pub fn on_the_wire(&self) -> Vec<u32> {
        self.steps().iter().map(|step| *step as u32).collect()
    }
}

/// Standard deviation of the random move at every step but the last, which is never random.
///
/// # Errors
/// If the noise level does not suit the step rule.
pub fn move_stds(config: &RunConfig, schedule: &Schedule) -> Result<Vec<f32>, FlowError> {
    let steps: Vec<usize> = (0..schedule.steps().saturating_sub(1)).collect();
    let moves = StepSettings::new(config).moves(schedule, &steps)?;
    Ok(moves.iter().map(|coefficients| coefficients.std as f32).collect())
}
