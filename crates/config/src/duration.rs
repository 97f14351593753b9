//! How long a run takes at a rate that was measured.
//!
//! A network evaluation is a guided one of one latent. A forward of the learner counts as one, and a backward as two; what
//! decoding, rewards, text encoders and the wire take comes on top.

use crate::RunConfig;

/// How fast a run goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// Network evaluations per second of one worker, and of the learner, on a machine of the same kind.
    OfWorker(f64),
    /// Network evaluations per second of all workers together, the learner's time included: what a run was seen to do.
    OfRun(f64),
}

/// How many prompts there are that are not trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldOutCounts {
    /// Of the list that is evaluated all along.
    pub evaluated: usize,
    /// Of the test where that is another list: the first, the last and the best version are evaluated on it.
    pub tested: usize,
}

/// Versions that are evaluated on the test prompts, where there are others to choose by.
const TESTED_VERSIONS: usize = 3;

impl RunConfig {
    /// Network evaluations of sampling and of evaluations in a whole run.
    pub fn run_evaluations(&self, held_out: HeldOutCounts) -> f64 {
        let sampling = f64::from(self.run.iterations) * self.iteration_cost().sampling_evaluations;
        sampling + self.evaluation_evaluations(held_out)
    }

    /// Seconds of a whole run. Without a lag, sampling and training take turns; with one they overlap.
    pub fn run_seconds(&self, held_out: HeldOutCounts, rate: Rate) -> f64 {
        let per_worker = match rate {
            Rate::OfRun(rate) => return self.run_evaluations(held_out) / rate,
            Rate::OfWorker(rate) => rate,
        };
        let all_workers = per_worker * self.resources.workers.max(1) as f64;
        let cost = self.iteration_cost();
        let (sampling, training) =
            (cost.sampling_evaluations / all_workers, cost.training_forward_equivalents / per_worker);
        let iteration = if self.run.lag == 0 { sampling + training } else { sampling.max(training) };
        f64::from(self.run.iterations) * iteration + self.evaluation_evaluations(held_out) / all_workers
    }

    fn evaluation_evaluations(&self, held_out: HeldOutCounts) -> f64 {
        let evaluated = self.n_evaluated_prompts(held_out.evaluated) * self.n_evaluations() as usize;
        let tested = self.n_evaluated_prompts(held_out.tested) * TESTED_VERSIONS;
        ((evaluated + tested) * self.evaluation.images_per_prompt * self.evaluation.steps) as f64
    }

    /// How many versions are [due](Self::evaluation_due): the first, every so many, and the last.
    fn n_evaluations(&self) -> u32 {
        let (iterations, every) = (self.run.iterations, self.evaluation.every);
        1 + iterations / every + u32::from(!iterations.is_multiple_of(every))
    }

    /// Processes that compute: the workers and the learner.
    pub fn n_processes(&self) -> usize {
        self.resources.workers.max(1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    const HELD_OUT: HeldOutCounts = HeldOutCounts { evaluated: 30, tested: 20 };

    fn config() -> RunConfig {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        config.run.iterations = 10;
        config.evaluation.every = 4;
        config.evaluation.prompts = 0;
        config.evaluation.steps = 5;
        config.evaluation.images_per_prompt = 2;
        config.resources.workers = 4;
        config
    }

    #[test]
    fn a_run_costs_its_iterations_and_its_evaluations() {
        let config = config();
        let sampling = 10.0 * config.iteration_cost().sampling_evaluations;
        // Versions 0, 4, 8 and 10, and three of them once more.
        assert_eq!(config.run_evaluations(HELD_OUT), sampling + (4.0 * 30.0 + 3.0 * 20.0) * 2.0 * 5.0);
        assert_eq!(config.run_seconds(HELD_OUT, Rate::OfRun(20.0)), config.run_evaluations(HELD_OUT) / 20.0);
    }

    #[test]
    fn as_many_evaluations_are_counted_as_are_due() {
        for (iterations, every) in [(1, 1), (1, 5), (10, 4), (12, 4), (150, 25)] {
            let mut config = config();
            (config.run.iterations, config.evaluation.every) = (iterations, every);
            let n_due = (0..=iterations).filter(|version| config.evaluation_due(*version)).count();
            assert_eq!(config.n_evaluations() as usize, n_due, "{iterations} by {every}");
        }
    }

    #[test]
    fn workers_share_the_sampling_and_a_lag_hides_the_shorter_part() {
        let mut config = config();
        let cost = config.iteration_cost();
        let (sampling, training) =
            (cost.sampling_evaluations / 40.0, cost.training_forward_equivalents / 10.0);
        let evaluations = 1800.0 / 40.0;
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * b, "{a} is not {b}");
        close(config.run_seconds(HELD_OUT, Rate::OfWorker(10.0)), 10.0 * (sampling + training) + evaluations);
        config.run.lag = 1;
        close(
            config.run_seconds(HELD_OUT, Rate::OfWorker(10.0)),
            10.0 * sampling.max(training) + evaluations,
        );
        config.resources.workers = 0;
        assert_eq!(config.n_processes(), 2, "some worker must come from elsewhere");
    }
}
