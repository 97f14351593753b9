//! What one rank sums of the tree before it meets the others.

use crate::{CollectiveError, TreePlan};
use std::ops::Range;

/// The gradients of one rank's shards, added as far as the tree allows without other ranks.
///
/// Shards are added in ascending order. While they come, at most log₂ S + 1 gradients are held where up to 64 shards lie
/// evenly ([`TreePlan::even`]), however many of them a rank has; with up to 1024 shards, two more.
#[derive(Clone, Debug)]
pub struct SubtreeSums {
    rank: usize,
    length: usize,
    next_shard: usize,
    held: Vec<(Range<usize>, Vec<f32>)>,
}

impl SubtreeSums {
    /// Nothing yet, for gradients of `length` numbers on that rank.
    pub fn new(rank: usize, length: usize) -> Self {
        Self { rank, length, next_shard: 0, held: Vec::new() }
    }

    /// Adds the gradient of a shard.
    ///
    /// # Errors
    /// If it lies on another rank or nowhere, has another length, or comes after a later one.
    pub fn add(&mut self, plan: &TreePlan, shard: usize, gradient: Vec<f32>) -> Result<(), CollectiveError> {
        let problem = if shard >= plan.n_shards() || plan.rank_of(shard) != Some(self.rank) {
            format!("shard {shard} does not lie on rank {}", self.rank)
        } else if shard < self.next_shard {
            format!("shard {shard} comes after shard {}; add them in order", self.next_shard - 1)
        } else if gradient.len() != self.length {
            format!("the gradient of shard {shard} has {} numbers, not {}", gradient.len(), self.length)
        } else {
            self.next_shard = shard + 1;
            self.held.push((shard..shard + 1, gradient));
            self.join(plan);
            return Ok(());
        };
        Err(CollectiveError::Argument(problem))
    }

    /// Adds up the neighbours at the end that nothing can come between any more.
    fn join(&mut self, plan: &TreePlan) {
        loop {
            // Upwards while the other half is empty.
            let Some((shards, _)) = self.held.last_mut() else { return };
            let parent = parent(shards);
            if parent.end > plan.n_shards() {
                return;
            }
            let is_left = shards.start == parent.start;
            let sibling = if is_left { shards.end..parent.end } else { parent.start..shards.start };
            if sibling.clone().all(|shard| plan.rank_of(shard).is_none()) {
                *shards = parent;
                continue;
            }
            let is_whole =
                parent.clone().all(|shard| plan.rank_of(shard).is_none_or(|rank| rank == self.rank));
            if is_left || !is_whole {
                return;
            }
            let Some((_, right)) = self.held.pop() else { return };
            match self.held.last_mut().filter(|(left, _)| *left == sibling) {
                Some((left, sum)) => {
                    *left = parent;
                    add_to(sum, &right);
                }
                // A shard of the left half never came; `into_subtrees` will say so.
                None => return self.held.push((sibling.end..parent.end, right)),
            }
        }
    }

    /// How many gradients are held.
    pub fn n_held(&self) -> usize {
        self.held.len()
    }

    /// How many numbers a gradient has.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The rank whose shards these are.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The sums of this rank's subtrees, in the plan's order.
    ///
    /// # Errors
    /// If a shard is missing.
    pub fn into_subtrees(self, plan: &TreePlan) -> Result<Vec<Vec<f32>>, CollectiveError> {
        let own = plan.subtrees().iter().filter(|subtree| subtree.rank == self.rank);
        let held = self.held.iter().map(|(shards, _)| Some(shards)).chain(std::iter::repeat(None));
        if let Some((missing, _)) = own.zip(held).find(|(own, held)| *held != Some(&own.shards)) {
            let Range { start, end } = missing.shards;
            let problem = format!("not all gradients of shards {start} to {} were added", end - 1);
            return Err(CollectiveError::Argument(problem));
        }
        Ok(self.held.into_iter().map(|(_, sum)| sum).collect())
    }
}

/// The shards of the node above.
fn parent(shards: &Range<usize>) -> Range<usize> {
    let width = 2 * shards.len();
    let start = shards.start / width * width;
    start..start + width
}

/// Adds numbers one by one: `sum` is the left side.
pub(super) fn add_to(sum: &mut [f32], right: &[f32]) {
    for (sum, right) in sum.iter_mut().zip(right) {
        *sum += right;
    }
}
