//! Where a trajectory is random, and what that costs in network evaluations.
//!
//! * **TempFlow-GRPO** follows one deterministic trunk per seed. At each trained step it branches off K explorations,
//!   each of which takes one random step and is then completed deterministically to an image of its own; the reward of
//!   that image belongs to that one random step.
//! * **Flow-GRPO** follows one path per seed that is random at every trained step; its single image's reward is shared
//!   by them all.
//!
//! A TempFlow rollout is evaluated as a *wavefront*: at step `j` the trunk and every branch that left it earlier stand at
//! the same noise level, so they make up one batch. Counts below are of *rows* per seed, one row being one guided
//! evaluation (two forward rows under classifier-free guidance).

use crate::{Algorithm, BranchSteps, RunConfig, StepDraw, StepDrawError};

/// One seed's rollout: what is evaluated, what is random, what is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutPlan {
    algorithm: Algorithm,
    steps: usize,
    trained_steps: Vec<usize>,
    branches: usize,
}

impl RolloutPlan {
    /// Plans a rollout of `steps` steps with `branches` explorations per trained step (1 for Flow-GRPO).
    ///
    /// # Errors
    /// If `branches` does not suit the algorithm, or `trained_steps` cannot all be trained.
    pub fn new(
        algorithm: Algorithm,
        steps: usize,
        trained_steps: Vec<usize>,
        branches: usize,
    ) -> Result<Self, RolloutPlanError> {
        let misfit = |algorithm, remedy| RolloutPlanError::Branches { branches, algorithm, remedy };
        match (algorithm, branches) {
            (Algorithm::TempflowGrpo, 0) => return Err(misfit("tempflow-grpo", "1 or more")),
            (Algorithm::FlowGrpo, 0 | 2..) => {
                return Err(misfit("flow-grpo", "1, and more seeds per prompt instead"));
            }
            (Algorithm::TempflowGrpo | Algorithm::FlowGrpo, _) => {}
        }
        let trained = StepDraw::new(&BranchSteps::List(trained_steps), steps)?;
        Ok(Self { algorithm, steps, trained_steps: trained.drawable().to_vec(), branches })
    }

    /// The trained steps in rising order.
    pub fn trained_steps(&self) -> &[usize] {
        &self.trained_steps
    }

    /// Explorations of each trained step; 1 along a Flow-GRPO path.
    pub fn branches(&self) -> usize {
        self.branches
    }

    /// Whether the trunk itself has to be evaluated at `step`: up to the last branch point, or all along a Flow-GRPO path.
    pub fn evaluates_trunk(&self, step: usize) -> bool {
        match self.algorithm {
            Algorithm::TempflowGrpo => self.trained_steps.last().is_some_and(|last| step <= *last),
            Algorithm::FlowGrpo => step < self.steps,
        }
    }

    /// Whether `step` is one of the trained ones.
    pub fn is_trained(&self, step: usize) -> bool {
        self.trained_steps.binary_search(&step).is_ok()
    }

    /// Rows that one seed puts into the wavefront's batch at `step`.
    pub fn rows(&self, step: usize) -> usize {
        usize::from(self.evaluates_trunk(step)) + self.live_branches(step)
    }

    /// The largest number of rows that one seed has at any step.
    pub fn max_wavefront_rows(&self) -> usize {
        (0..self.steps).map(|step| self.rows(step)).max().unwrap_or(0)
    }

    /// Guided network evaluations (NFE) that one seed costs.
    pub fn evaluations_per_seed(&self) -> usize {
        (0..self.steps).map(|step| self.rows(step)).sum()
    }

    /// Images that are decoded and scored for one seed.
    pub fn images_per_seed(&self) -> usize {
        match self.algorithm {
            Algorithm::TempflowGrpo => self.trained_steps.len() * self.branches,
            Algorithm::FlowGrpo => 1,
        }
    }

    /// Explorations that left the trunk before `step`.
    fn live_branches(&self, step: usize) -> usize {
        match self.algorithm {
            Algorithm::TempflowGrpo if step < self.steps => {
                self.branches * self.trained_steps.partition_point(|trained| *trained < step)
            }
            Algorithm::TempflowGrpo | Algorithm::FlowGrpo => 0,
        }
    }
}

/// Settings of a rollout that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RolloutPlanError {
    /// The number of explorations per branch point does not suit the algorithm.
    #[error("{branches} branches per seed do not suit {algorithm}; use {remedy}")]
    Branches {
        /// Number asked for.
        branches: usize,
        /// Name of the algorithm.
        algorithm: &'static str,
        /// What is allowed.
        remedy: &'static str,
    },
    /// The trained steps cannot all be trained.
    #[error(transparent)]
    Steps(#[from] StepDrawError),
}

impl RunConfig {
    /// The rollout of the tasks of an iteration.
    ///
    /// # Errors
    /// If steps, branch steps and branches contradict each other.
    pub fn rollout_plan(&self, iteration: u32) -> Result<RolloutPlan, RolloutPlanError> {
        let sampling = &self.sampling;
        let trained = sampling.step_draw()?.draw(self.run.seed, iteration);
        RolloutPlan::new(sampling.algorithm, sampling.steps, trained, sampling.branches_per_seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tempflow(trained_steps: Vec<usize>) -> RolloutPlan {
        RolloutPlan::new(Algorithm::TempflowGrpo, 10, trained_steps, 6).unwrap()
    }

    #[test]
    fn counts_match_the_worked_numbers() {
        let plan = tempflow((0..9).collect());
        assert_eq!(plan.evaluations_per_seed(), 279);
        assert_eq!(4 * plan.evaluations_per_seed(), 1116);
        assert_eq!(4 * plan.images_per_seed(), 216);
        assert_eq!(plan.max_wavefront_rows(), 54);
        let rows: Vec<_> = (0..10).map(|step| plan.rows(step)).collect();
        assert_eq!(rows, [1, 7, 13, 19, 25, 31, 37, 43, 49, 54]);

        let path = RolloutPlan::new(Algorithm::FlowGrpo, 10, (0..9).collect(), 1).unwrap();
        assert_eq!(24 * path.evaluations_per_seed(), 240);
        assert_eq!(24 * path.images_per_seed(), 24);
        assert_eq!((path.max_wavefront_rows(), path.trained_steps().len()), (1, 9));
    }

    #[test]
    fn wavefront_costs_what_the_nested_loop_costs() {
        for trained in [vec![0], vec![8], vec![1, 4, 5], vec![0, 7]] {
            let plan = tempflow(trained.clone());
            let trunk = trained[trained.len() - 1] + 1;
            let completions: usize = trained.iter().map(|step| 6 * (10 - 1 - step)).sum();
            assert_eq!(plan.evaluations_per_seed(), trunk + completions, "{trained:?}");
        }
    }

    #[test]
    fn trunk_is_not_followed_beyond_its_last_branch_point() {
        let plan = tempflow(vec![1, 4]);
        assert!(plan.evaluates_trunk(4) && !plan.evaluates_trunk(5));
        assert!(plan.is_trained(4) && !plan.is_trained(3));
    }

    #[test]
    fn branches_must_suit_the_algorithm() {
        for (algorithm, branches) in [(Algorithm::TempflowGrpo, 0), (Algorithm::FlowGrpo, 6)] {
            let refused = RolloutPlan::new(algorithm, 10, vec![0], branches);
            assert!(matches!(refused, Err(RolloutPlanError::Branches { .. })));
        }
    }
}
