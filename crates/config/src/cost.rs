//! What a run config costs in network evaluations, images and updates. Counting only; nothing is measured here.
//!
//! Source of the counts: TempFlow-GRPO (arXiv 2508.04324) with the trunk stopped after the last branch.

use crate::{Algorithm, BranchSteps, RunConfig};

/// What one iteration costs. A network evaluation is one guided evaluation of one latent.
#[derive(Clone, Debug, PartialEq)]
pub struct IterationCost {
    /// Evaluations to sample one seed, averaged where steps are drawn at random.
    pub evaluations_per_seed: f64,
    /// Evaluations to sample the iteration.
    pub sampling_evaluations: f64,
    /// Images decoded and scored.
    pub images: f64,
    /// (seed, step) cells that the learner evaluates with gradients.
    pub trained_cells: f64,
    /// Optimizer updates.
    pub updates: usize,
    /// Forward-equivalents of the learner: 3 per trained cell, and one more each for a KL term, for activations that are
    /// computed twice, and for a mean that is computed again from the version that sampled.
    pub training_forward_equivalents: f64,
}

/// Step counts of a plan: how many steps are trained, and on average how many evaluations their completions take.
struct TrainedSteps {
    count: f64,
    completion_evaluations: f64,
    trunk_evaluations: f64,
}

impl RunConfig {
    /// Counts what one iteration costs.
    pub fn iteration_cost(&self) -> IterationCost {
        let sampling = &self.sampling;
        let n_seeds = (sampling.prompts_per_iteration * sampling.seeds_per_prompt) as f64;
        let steps = trained_steps(&sampling.branch_steps, sampling.steps);
        let branches = sampling.branches_per_seed as f64;
        let (evaluations_per_seed, images_per_seed) = match sampling.algorithm {
            Algorithm::TempflowGrpo => {
                (steps.trunk_evaluations + branches * steps.completion_evaluations, branches * steps.count)
            }
            Algorithm::FlowGrpo => (sampling.steps as f64, 1.0),
        };
        let trained_cells = n_seeds * steps.count;
        IterationCost {
            evaluations_per_seed,
            sampling_evaluations: n_seeds * evaluations_per_seed,
            images: n_seeds * images_per_seed,
            trained_cells,
            updates: self.training.updates_per_iteration,
            training_forward_equivalents: trained_cells * self.forwards_per_cell(),
        }
    }
}

impl RunConfig {
    fn forwards_per_cell(&self) -> f64 {
        let training = &self.training;
        let further = [training.kl_beta > 0.0, training.gradient_checkpointing];
        let further = further.iter().filter(|&&is_on| is_on).count() as f64;
        3.0 + further + self.share_of_recomputed_means()
    }
}

/// Averages over the draw where the plan is random.
fn trained_steps(plan: &BranchSteps, steps: usize) -> TrainedSteps {
    let exactly = |trained: &[usize]| TrainedSteps {
        count: trained.len() as f64,
        completion_evaluations: trained.iter().map(|step| (steps - 1 - step) as f64).sum(),
        trunk_evaluations: trained.iter().max().map_or(0.0, |last| (last + 1) as f64),
    };
    match plan {
        BranchSteps::All => exactly(&(0..steps - 1).collect::<Vec<_>>()),
        BranchSteps::Range { from, to } => exactly(&(*from..*to).collect::<Vec<_>>()),
        BranchSteps::List(list) => exactly(list),
        BranchSteps::Random { count } => drawn(*count, &(0..steps - 1).collect::<Vec<_>>(), steps),
        BranchSteps::RandomAmong { count, among } => drawn(*count, among, steps),
        BranchSteps::Window { size, from, to } => {
            let windows: Vec<TrainedSteps> = (*from..=to - size)
                .map(|start| exactly(&(start..start + size).collect::<Vec<_>>()))
                .collect();
            let mean =
                |of: fn(&TrainedSteps) -> f64| windows.iter().map(of).sum::<f64>() / windows.len() as f64;
            TrainedSteps {
                count: *size as f64,
                completion_evaluations: mean(|window| window.completion_evaluations),
                trunk_evaluations: mean(|window| window.trunk_evaluations),
            }
        }
    }
}

/// Means over all draws of `count` among rising steps, without replacement: every step is as likely as any other, and the
/// r-th of n (from 0) is the last one drawn with probability C(r, count − 1) / C(n, count).
fn drawn(count: usize, among: &[usize], steps: usize) -> TrainedSteps {
    let (n, drawn) = (among.len(), count as f64);
    let mean_completion = among.iter().map(|step| (steps - 1 - step) as f64).sum::<f64>() / n as f64;
    // From the top down: the chance that the step at `rank` is drawn and none above it is.
    let mut none_above = 1.0;
    let mut trunk_evaluations = 0.0;
    for rank in (0..n).rev() {
        let is_last = none_above * (drawn / (rank + 1) as f64).min(1.0);
        trunk_evaluations += is_last * (among[rank] + 1) as f64;
        none_above -= is_last;
    }
    TrainedSteps { count: drawn, completion_evaluations: drawn * mean_completion, trunk_evaluations }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    fn config(steps: usize, branch_steps: BranchSteps) -> RunConfig {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        config.sampling.steps = steps;
        config.sampling.branch_steps = branch_steps;
        config.sampling.branches_per_seed = 6;
        config.sampling.seeds_per_prompt = 4;
        config.sampling.prompts_per_iteration = 1;
        config
    }

    #[test]
    fn counts_equal_the_published_ones() {
        let cost = config(10, BranchSteps::All).iteration_cost();
        assert_eq!(cost.evaluations_per_seed, 279.0);
        assert_eq!(cost.sampling_evaluations, 1116.0);
        assert_eq!(cost.images, 216.0);
        let mut baseline = config(10, BranchSteps::All);
        baseline.sampling.algorithm = Algorithm::FlowGrpo;
        baseline.sampling.branches_per_seed = 1;
        baseline.sampling.seeds_per_prompt = 24;
        assert_eq!(baseline.iteration_cost().sampling_evaluations, 240.0);
    }

    #[test]
    fn the_trunk_stops_after_the_last_branch() {
        let cost = config(10, BranchSteps::Range { from: 0, to: 3 }).iteration_cost();
        assert_eq!(cost.evaluations_per_seed, 3.0 + 6.0 * (9.0 + 8.0 + 7.0));
    }

    #[test]
    fn a_divergence_and_checkpointing_cost_a_forward_each() {
        let mut config = config(10, BranchSteps::All);
        config.training.kl_beta = 0.0;
        let cost = |config: &RunConfig| config.iteration_cost().training_forward_equivalents;
        assert_eq!(cost(&config), 4.0 * 9.0 * 3.0);
        config.training.kl_beta = 0.1;
        config.training.gradient_checkpointing = true;
        assert_eq!(cost(&config), 4.0 * 9.0 * 5.0);
        // In half precision the second of two updates has means to compute again.
        config.model.dtype = crate::Dtype::Bfloat16;
        config.sampling.seeds_per_task = 1;
        config.training.updates_per_iteration = 2;
        assert_eq!(cost(&config), 4.0 * 9.0 * 5.5);
    }

    #[test]
    fn steps_drawn_from_a_list_cost_what_they_do_on_average() {
        let means = |trained: &[&[usize]]| {
            let each = trained.iter().map(|list| trained_steps(&BranchSteps::List(list.to_vec()), 10));
            let sums = each.fold((0.0, 0.0), |sums, steps| {
                (sums.0 + steps.completion_evaluations, sums.1 + steps.trunk_evaluations)
            });
            (sums.0 / trained.len() as f64, sums.1 / trained.len() as f64)
        };
        let (completion, trunk) = means(&[&[1, 2], &[1, 5], &[2, 5]]);
        let drawn = trained_steps(&BranchSteps::RandomAmong { count: 2, among: vec![1, 2, 5] }, 10);
        assert!((drawn.completion_evaluations - completion).abs() < 1e-12);
        assert!((drawn.trunk_evaluations - trunk).abs() < 1e-12);
    }

    #[test]
    fn random_steps_cost_what_they_do_on_average() {
        let (steps, n) = (6, 5);
        let mut total = 0.0;
        let mut draws = 0.0;
        for a in 0..n {
            for b in a + 1..n {
                total += trained_steps(&BranchSteps::List(vec![a, b]), steps).completion_evaluations * 6.0
                    + (b + 1) as f64;
                draws += 1.0;
            }
        }
        let cost = config(steps, BranchSteps::Random { count: 2 }).iteration_cost();
        assert!(
            (cost.evaluations_per_seed - total / draws).abs() < 1e-9,
            "{} {}",
            cost.evaluations_per_seed,
            total / draws
        );
    }
}
