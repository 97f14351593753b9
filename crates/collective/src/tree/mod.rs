//! The ordered tree: the gradients of S shards, a power of two, are added as one binary tree, wherever they lie.
//!
//! Addition of float32 numbers depends on its order. Here the order is that of the tree over shards: first 0 + 1, 2 + 3 and
//! so on, then those sums in pairs, up to the root. Who adds does not show in the bits, so neither does the number of ranks.
//! A shard without tasks is left out: its sibling's sum goes up as it is.

mod exchange;
mod plan;
mod subtree_sums;

pub(crate) use exchange::are_bounds;
pub use exchange::{even_bounds, ordered_sum, ordered_sum_of_slice};
pub use plan::{Subtree, TreePlan, TreeStep};
pub use subtree_sums::SubtreeSums;
