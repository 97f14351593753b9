//! Which means a probability ratio is measured against.
//!
//! A ratio compares the policy that is trained with the one that sampled. Workers send the means of their moves, but matrix
//! products round differently in batches of another size, and in half precision that moves a log-probability by more than a
//! clip range: ratios against the sent means would be wrong from the first update on, all to the same side. So the sent
//! means count only where they are good to float32's rounding; everywhere else the learner's own kernels decide, and what
//! was sent tells how far workers have drifted from them.

use crate::{Dtype, RunConfig};

/// Where the mean comes from that a move's probability ratio is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldMeans {
    /// It is the mean that is differentiated, detached: the policy is the one that sampled, and its ratio is exactly 1.
    Own,
    /// The learner computes it, without gradients, from the version that sampled.
    Recomputed,
    /// It is the one that the worker sent.
    Sent,
}

impl RunConfig {
    /// Against which means the ratios of an iteration's part are measured, parts being counted from 0 by the updates made.
    pub fn old_means(&self, iteration: u32, part: usize) -> OldMeans {
        let has_moved = part > 0 || self.policy_version(iteration) != iteration;
        match (has_moved, self.model.dtype) {
            (false, _) => OldMeans::Own,
            (true, Dtype::Bfloat16) => OldMeans::Recomputed,
            (true, Dtype::Float32) => OldMeans::Sent,
        }
    }

    /// Whether the version that sampled has to be at hand in training.
    pub fn recomputes_means(&self) -> bool {
        self.share_of_recomputed_means() > 0.0
    }

    /// Share of an iteration's tasks whose means are computed twice, when the run is under way.
    pub fn share_of_recomputed_means(&self) -> f64 {
        let ends = self.update_ends();
        // Any iteration but the first, which is sampled with the version that it trains whatever the lag.
        let is_recomputed = |part: &usize| self.old_means(self.run.lag + 1, *part) == OldMeans::Recomputed;
        let starts = std::iter::once(&0).chain(&ends);
        let lengths: Vec<usize> = ends.iter().zip(starts).map(|(end, start)| end - start).collect();
        let recomputed: usize = (0..lengths.len()).filter(is_recomputed).map(|part| lengths[part]).sum();
        recomputed as f64 / self.n_train_tasks().max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preset;

    fn config(dtype: Dtype, lag: u32, updates: usize) -> RunConfig {
        let mut config = preset("tempflow-tiny-cpu").expect("a preset").config;
        config.model.dtype = dtype;
        config.run.lag = lag;
        config.training.updates_per_iteration = updates;
        config
    }

    #[test]
    fn sent_means_count_in_float32_alone_and_only_after_the_policy_has_moved() {
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            let moved = if dtype == Dtype::Float32 { OldMeans::Sent } else { OldMeans::Recomputed };
            let strict = config(dtype, 0, 3);
            for iteration in [0, 1, 9] {
                let parts = [0, 1, 2].map(|part| strict.old_means(iteration, part));
                assert_eq!(parts, [OldMeans::Own, moved, moved], "{dtype:?} {iteration}");
            }
            let lagging = config(dtype, 1, 2);
            assert_eq!([0, 1].map(|part| lagging.old_means(0, part)), [OldMeans::Own, moved], "{dtype:?}");
            assert_eq!([0, 1].map(|part| lagging.old_means(1, part)), [moved, moved], "{dtype:?}");
        }
    }

    #[test]
    fn the_share_of_recomputed_means_is_that_of_the_tasks() {
        let share = |dtype, lag, updates| config(dtype, lag, updates).share_of_recomputed_means();
        assert_eq!(share(Dtype::Float32, 1, 4), 0.0);
        assert_eq!(share(Dtype::Bfloat16, 0, 1), 0.0);
        assert_eq!(share(Dtype::Bfloat16, 0, 2), 0.5);
        assert_eq!(share(Dtype::Bfloat16, 1, 1), 1.0);
        // Sixteen tasks in parts of five, five and six.
        assert_eq!(share(Dtype::Bfloat16, 0, 3), 11.0 / 16.0);
        assert!(config(Dtype::Bfloat16, 0, 2).recomputes_means());
        assert!(!config(Dtype::Bfloat16, 0, 1).recomputes_means());
    }
}
