//! What a run config costs in network evaluations, images and updates. Counting only; nothing is measured here.
//!
//! Source of the counts: TempFlow-GRPO (arXiv 2508.04324) with the trunk stopped after the last branch.

use crate::{Algorithm, RunConfig};

/// What one iteration costs. A network evaluation is one guided evaluation of one latent.
#[derive(Clone, Debug, PartialEq)]
pub struct IterationCost {
    /// Evaluations to sample one seed, averaged where steps are drawn at random.
    pub evaluations_per_seed: f64,
    /// Evaluations to sample the iteration.
    pub sampling_evaluations: f64,
    /// Images decoded and scored, of one seed.
    pub images_per_seed: usize,
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

impl RunConfig {
    /// Counts what one iteration costs.
    ///
    /// # Panics
    /// If the branch steps do not suit the number of steps, which validation refuses.
    pub fn iteration_cost(&self) -> IterationCost {
        let sampling = &self.sampling;
        let n_seeds = (sampling.prompts_per_iteration * sampling.seeds_per_prompt) as f64;
        let draw = sampling
            .step_draw()
            .expect("the branch steps of a validated config suit its steps; else this is a bug");
        let branches = sampling.branches_per_seed;
        let (evaluations_per_seed, images_per_seed) = match sampling.algorithm {
            Algorithm::TempflowGrpo => {
                let trunk = draw.mean_last() + 1.0;
                let completions = draw.mean_sum(|step| (sampling.steps - 1 - step) as f64);
                (trunk + branches as f64 * completions, branches * draw.n_trained())
            }
            Algorithm::FlowGrpo => (sampling.steps as f64, 1),
        };
        let trained_cells = n_seeds * draw.n_trained() as f64;
        IterationCost {
            evaluations_per_seed,
            sampling_evaluations: n_seeds * evaluations_per_seed,
            images_per_seed,
            images: n_seeds * images_per_seed as f64,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BranchSteps, preset};

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
    fn an_iteration_costs_what_its_rollouts_do_on_average() {
        for text in ["all", "2..5", "0,3", "random:2", "random:2@1,2,5", "window:2@1..5"] {
            for (algorithm, branches) in [(Algorithm::TempflowGrpo, 6), (Algorithm::FlowGrpo, 1)] {
                let mut config = config(7, text.parse().expect("readable"));
                config.sampling.algorithm = algorithm;
                config.sampling.branches_per_seed = branches;
                let n = 20_000;
                let evaluations = |i| config.rollout_plan(i).expect("suits").evaluations_per_seed() as f64;
                let mean = (0..n).map(evaluations).sum::<f64>() / f64::from(n);
                let cost = config.iteration_cost().evaluations_per_seed;
                assert!((mean - cost).abs() < 0.02 * cost, "{text}: {cost}, but drawn {mean}");
            }
        }
    }
}
