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
//!
//! The last step is never trained: its noise is so small that its Gaussian is a needle.

use config::{Algorithm, BranchSteps};

use crate::{FlowError, NoiseKey, Purpose, permutation};

/// The trained steps of an iteration, in rising order; a function of its arguments alone.
///
/// # Errors
/// If the setting leaves no step, names one twice, or reaches beyond `steps − 2`.
pub fn trained_steps(
    branch_steps: &BranchSteps,
    steps: usize,
    run_seed: u64,
    iteration: u32,
) -> Result<Vec<usize>, FlowError> {
    if steps < 2 {
        return Err(FlowError::NumberOfSteps { steps });
    }
    let key = NoiseKey::initial(run_seed, Purpose::BranchSteps, iteration, 0, 0);
    let trainable = steps - 1;
    let mut trained: Vec<usize> = match branch_steps {
        BranchSteps::All => (0..trainable).collect(),
        BranchSteps::Range { from, to } => (*from..*to).collect(),
        BranchSteps::List(listed) => listed.clone(),
        BranchSteps::Random { count } if *count > trainable => {
            return Err(misfit(branch_steps, steps, format!("at most {trainable} steps can be drawn")));
        }
        BranchSteps::Random { count } => permutation(&key, trainable)[..*count].to_vec(),
        BranchSteps::RandomAmong { count, among } if *count > among.len() => {
            return Err(misfit(branch_steps, steps, format!("only {} steps can be drawn", among.len())));
        }
        BranchSteps::RandomAmong { count, among } => {
            permutation(&key, among.len())[..*count].iter().map(|&position| among[position]).collect()
        }
        BranchSteps::Window { size, from, to } if from + size > *to || *to > trainable => {
            let problem = format!("the window must lie within 0..{trainable} and hold {size} steps");
            return Err(misfit(branch_steps, steps, problem));
        }
        BranchSteps::Window { size, from, to } => {
            let start = from + permutation(&key, to - from - size + 1)[0];
            (start..start + size).collect()
        }
    };
    trained.sort_unstable();
    match (trained.last(), trained.windows(2).find(|pair| pair[0] == pair[1])) {
        (None, _) => Err(misfit(branch_steps, steps, "no step is left to train".to_owned())),
        (Some(last), _) if *last >= trainable => Err(misfit(
            branch_steps,
            steps,
            format!("step {last} cannot be trained; steps 0 to {} can (never the last)", trainable - 1),
        )),
        (_, Some(pair)) => Err(misfit(branch_steps, steps, format!("step {} is named twice", pair[0]))),
        _ => Ok(trained),
    }
}

/// All steps that [`trained_steps`] can draw, in rising order; those that are always trained where nothing is drawn.
///
/// # Errors
/// As [`trained_steps`].
pub fn drawable_steps(branch_steps: &BranchSteps, steps: usize) -> Result<Vec<usize>, FlowError> {
    let all = match branch_steps {
        BranchSteps::All | BranchSteps::Random { .. } => BranchSteps::All,
        BranchSteps::RandomAmong { among, .. } => BranchSteps::List(among.clone()),
        BranchSteps::Window { from, to, .. } => BranchSteps::Range { from: *from, to: *to },
        BranchSteps::Range { .. } | BranchSteps::List(_) => branch_steps.clone(),
    };
    trained_steps(&all, steps, 0, 0)
}

fn misfit(branch_steps: &BranchSteps, steps: usize, problem: String) -> FlowError {
    FlowError::BranchSteps { branch_steps: branch_steps.to_string(), steps, problem }
}

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
    /// `trained_steps` come from [`trained_steps`] for the same number of steps.
    ///
    /// # Errors
    /// If `branches` does not suit the algorithm or `trained_steps` do not suit `steps`.
    pub fn new(
        algorithm: Algorithm,
        steps: usize,
        trained_steps: Vec<usize>,
        branches: usize,
    ) -> Result<Self, FlowError> {
        match (algorithm, branches) {
            (Algorithm::TempflowGrpo, 0) => {
                return Err(FlowError::Branches {
                    branches,
                    algorithm: "tempflow-grpo",
                    remedy: "1 or more",
                });
            }
            (Algorithm::FlowGrpo, 0 | 2..) => {
                let remedy = "1, and more seeds per prompt instead";
                return Err(FlowError::Branches { branches, algorithm: "flow-grpo", remedy });
            }
            (Algorithm::TempflowGrpo | Algorithm::FlowGrpo, _) => {}
        }
        let trained_steps = self::trained_steps(&BranchSteps::List(trained_steps), steps, 0, 0)?;
        Ok(Self { algorithm, steps, trained_steps, branches })
    }

    /// The trained steps in rising order.
    pub fn trained_steps(&self) -> &[usize] {
        &self.trained_steps
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
            Algorithm::TempflowGrpo => self.transitions_per_seed(),
            Algorithm::FlowGrpo => 1,
        }
    }

    /// Random moves of one seed that are trained on.
    pub fn transitions_per_seed(&self) -> usize {
        self.trained_steps.len() * self.branches
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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
        assert_eq!((path.max_wavefront_rows(), path.transitions_per_seed()), (1, 9));
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
    fn fixed_settings_give_the_steps_they_name() {
        let steps = |branch_steps: BranchSteps| trained_steps(&branch_steps, 10, 1, 2).unwrap();
        assert_eq!(steps(BranchSteps::All), (0..9).collect::<Vec<_>>());
        assert_eq!(steps(BranchSteps::Range { from: 2, to: 5 }), [2, 3, 4]);
        assert_eq!(steps(BranchSteps::List(vec![7, 0, 3])), [0, 3, 7]);
        assert_eq!(trained_steps(&BranchSteps::All, 2, 0, 0).unwrap(), [0]);
    }

    #[test]
    fn drawn_steps_change_with_the_iteration_and_cover_everything_trainable() {
        let draws = [BranchSteps::Random { count: 3 }, BranchSteps::Window { size: 3, from: 0, to: 9 }];
        for branch_steps in draws {
            let mut seen = HashSet::new();
            let mut sets = HashSet::new();
            for iteration in 0..200 {
                let trained = trained_steps(&branch_steps, 10, 5, iteration).unwrap();
                assert_eq!(trained, trained_steps(&branch_steps, 10, 5, iteration).unwrap());
                assert!(trained.len() == 3 && trained.is_sorted());
                seen.extend(trained.clone());
                sets.insert(trained);
            }
            assert_eq!(seen, (0..9).collect());
            assert!(sets.len() > 6, "{branch_steps:?} gave only {} different sets", sets.len());
        }
    }

    #[test]
    fn what_can_be_drawn_is_what_is_drawn_in_the_long_run() {
        for text in ["all", "2..5", "0,3,7", "random:1", "random:4", "random:2@1,2,5", "window:3@1..7"] {
            let branch_steps: BranchSteps = text.parse().unwrap();
            let drawn: HashSet<usize> =
                (0..300).flat_map(|i| trained_steps(&branch_steps, 10, 5, i).unwrap()).collect();
            let drawable = drawable_steps(&branch_steps, 10).unwrap();
            assert!(drawable.is_sorted(), "{text}");
            assert_eq!(drawable.into_iter().collect::<HashSet<_>>(), drawn, "{text}");
        }
        assert!(drawable_steps(&BranchSteps::Window { size: 2, from: 0, to: 10 }, 10).is_err());
    }

    #[test]
    fn steps_are_drawn_from_the_list_alone() {
        let branch_steps = BranchSteps::RandomAmong { count: 2, among: vec![1, 2, 5] };
        let sets: HashSet<Vec<usize>> =
            (0..100).map(|iteration| trained_steps(&branch_steps, 10, 5, iteration).unwrap()).collect();
        assert_eq!(sets, [vec![1, 2], vec![1, 5], vec![2, 5]].into());
    }

    #[test]
    fn window_stays_in_its_range() {
        for iteration in 0..100 {
            let window = BranchSteps::Window { size: 2, from: 1, to: 5 };
            let trained = trained_steps(&window, 10, 0, iteration).unwrap();
            assert!(trained[0] >= 1 && trained[1] == trained[0] + 1 && trained[1] < 5);
        }
    }

    #[test]
    fn steps_that_cannot_be_trained_are_refused() {
        let refused = [
            BranchSteps::List(vec![]),
            BranchSteps::List(vec![1, 9]),
            BranchSteps::List(vec![1, 1]),
            BranchSteps::Range { from: 4, to: 4 },
            BranchSteps::Range { from: 4, to: 10 },
            BranchSteps::Random { count: 0 },
            BranchSteps::Random { count: 10 },
            BranchSteps::RandomAmong { count: 3, among: vec![1, 2] },
            BranchSteps::RandomAmong { count: 1, among: vec![9] },
            BranchSteps::Window { size: 3, from: 0, to: 2 },
            BranchSteps::Window { size: 2, from: 5, to: 10 },
            BranchSteps::Window { size: 0, from: 0, to: 5 },
        ];
        for branch_steps in refused {
            let error = trained_steps(&branch_steps, 10, 0, 0);
            assert!(matches!(error, Err(FlowError::BranchSteps { .. })), "{branch_steps:?}");
        }
    }

    #[test]
    fn branches_must_suit_the_algorithm() {
        for (algorithm, branches) in [(Algorithm::TempflowGrpo, 0), (Algorithm::FlowGrpo, 6)] {
            let refused = RolloutPlan::new(algorithm, 10, vec![0], branches);
            assert!(matches!(refused, Err(FlowError::Branches { .. })));
        }
    }
}
