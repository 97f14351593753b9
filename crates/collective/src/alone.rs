//! A group of one rank, which has nobody to wait for.

use crate::tree::are_bounds;
use crate::{Aborter, Collective, CollectiveError};
use std::time::Instant;

/// The only rank of its group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn n_ranks(&self) -> usize {
        1
    }

    fn broadcast(&mut self, root: usize, _: &mut [u8], _: Instant) -> Result<(), CollectiveError> {
        match root {
            0 => Ok(()),
            _ => Err(CollectiveError::Argument(format!("rank {root} cannot broadcast: there is one rank"))),
        }
    }

    fn all_gather(&mut self, bytes: &mut [u8], bounds: &[usize], _: Instant) -> Result<(), CollectiveError> {
        match are_bounds(bounds, 1, bytes.len()) {
            true => Ok(()),
            false => Err(CollectiveError::Argument(format!("{bounds:?} are not all {} bytes", bytes.len()))),
        }
    }

    fn all_to_all(
        &mut self,
        outgoing: &[&[u8]],
        incoming: &mut [&mut [u8]],
        _: Instant,
    ) -> Result<(), CollectiveError> {
        match (outgoing.len(), incoming.len()) {
            (1, 1) => Ok(()),
            (n_out, n_in) => Err(CollectiveError::Argument(format!(
                "{n_out} outgoing and {n_in} incoming parts are not one for the one rank"
            ))),
        }
    }

    fn barrier(&mut self, _: Instant) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn aborter(&self) -> Aborter {
        Aborter::new(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SubtreeSums, TreePlan, ordered_sum};

    #[test]
    fn one_rank_sums_alone() {
        let plan = TreePlan::even(4, 1).expect("a plan");
        let mut sums = SubtreeSums::new(0, 2);
        for shard in 0..4 {
            sums.add(&plan, shard, vec![shard as f32, 1.0]).expect("its shard");
        }
        assert_eq!(ordered_sum(&mut Alone, &plan, sums, Instant::now()), Ok(vec![6.0, 4.0]));
    }
}
