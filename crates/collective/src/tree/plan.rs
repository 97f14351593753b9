//! Which rank sums which part of the tree, and in which order the parts come together.

use crate::CollectiveError;
use std::ops::Range;

/// A part of the tree whose shards all lie on one rank, which sums it without the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subtree {
    /// Its shards, a power of two, beginning at a multiple of their number.
    pub shards: Range<usize>,
    /// Who has them.
    pub rank: usize,
}

/// What who joins the subtrees does next, on a stack of sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeStep {
    /// Lays the sum of that subtree (its place in [`TreePlan::subtrees`]) on the stack.
    Lay(usize),
    /// Takes the upper sum off the stack and adds it to the one below: below + upper.
    Add,
}

/// Where the shards lie and how their gradients are added: the same bits wherever they lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreePlan {
    places: Vec<Option<usize>>,
    n_ranks: usize,
    subtrees: Vec<Subtree>,
    steps: Vec<TreeStep>,
}

impl TreePlan {
    /// Neighbouring shards on each rank, as many on each as on any other, give or take one.
    ///
    /// # Errors
    /// If the number of shards is no power of two, or there are more ranks than shards, or none.
    pub fn even(n_shards: usize, n_ranks: usize) -> Result<Self, CollectiveError> {
        if n_ranks == 0 || n_ranks > n_shards {
            return Err(CollectiveError::Argument(format!(
                "{n_ranks} ranks cannot share {n_shards} shards; have 1 to {n_shards} ranks, or more shards"
            )));
        }
        // The rank of a shard is the last one whose first shard, ⌊rank · shards ÷ ranks⌋, is not above it.
        let rank_of = |shard: usize| ((shard + 1) * n_ranks - 1) / n_shards;
        Self::new((0..n_shards).map(|shard| Some(rank_of(shard))).collect(), n_ranks)
    }

    /// Shards at these ranks; a shard without tasks has none.
    ///
    /// # Errors
    /// If the number of shards is no power of two, or a rank is not below `n_ranks`.
    pub fn new(places: Vec<Option<usize>>, n_ranks: usize) -> Result<Self, CollectiveError> {
        if !places.len().is_power_of_two() {
            let n_shards = places.len();
            let problem = format!("{n_shards} shards make no tree; their number must be a power of two");
            return Err(CollectiveError::Argument(problem));
        }
        if let Some(rank) = places.iter().flatten().find(|&&rank| rank >= n_ranks) {
            let problem = format!("a shard lies on rank {rank}, but there are only {n_ranks} ranks");
            return Err(CollectiveError::Argument(problem));
        }
        let mut plan = Self { places, n_ranks, subtrees: Vec::new(), steps: Vec::new() };
        plan.visit(0..plan.places.len());
        Ok(plan)
    }

    /// The same tree without these shards, which have no tasks in this update.
    #[must_use]
    pub fn without(&self, is_empty: impl Fn(usize) -> bool) -> Self {
        let places = self.places.iter().enumerate();
        let places = places.map(|(shard, place)| place.filter(|_| !is_empty(shard))).collect();
        let mut plan = Self { places, n_ranks: self.n_ranks, subtrees: Vec::new(), steps: Vec::new() };
        plan.visit(0..plan.places.len());
        plan
    }

    /// Lists what is in these shards, children before parents and left before right; says whether anything is.
    fn visit(&mut self, shards: Range<usize>) -> bool {
        let mut ranks = self.places[shards.clone()].iter().flatten();
        let Some(&rank) = ranks.next() else { return false };
        if ranks.all(|&other| other == rank) {
            self.steps.push(TreeStep::Lay(self.subtrees.len()));
            self.subtrees.push(Subtree { shards, rank });
            return true;
        }
        let middle = shards.start + shards.len() / 2;
        let has_left = self.visit(shards.start..middle);
        let has_right = self.visit(middle..shards.end);
        if has_left && has_right {
            self.steps.push(TreeStep::Add);
        }
        true
    }

    /// Who has a shard; nobody where it is empty.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn rank_of(&self, shard: usize) -> Option<usize> {
        self.places[shard]
    }

    /// How many shards there are.
    pub fn n_shards(&self) -> usize {
        self.places.len()
    }

    /// How many ranks there are.
    pub fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// The subtrees that ranks sum by themselves, in the order of shards: as few as can be.
    pub fn subtrees(&self) -> &[Subtree] {
        &self.subtrees
    }

    /// How the subtrees come together; at the end the sum is alone on the stack, which is empty if all shards are.
    pub fn steps(&self) -> &[TreeStep] {
        &self.steps
    }
}
