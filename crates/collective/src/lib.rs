//! What several processes do together: broadcast, all-gather, all-to-all, barriers, and sums of float32 numbers whose bits
//! do not depend on how many processes there are. Never links libtorch.
//!
//! In reading order: [`Collective`] is what a group of ranks can do; [`TreePlan`] says who adds what in which order, and
//! [`SubtreeSums`], [`ordered_sum`] and [`ordered_sum_of_slice`] do it; [`tcp`] connects ranks by TCP on the host.

mod alone;
mod error;
mod group;
pub mod tcp;
mod tree;

pub use alone::Alone;
pub use error::{CollectiveError, Peer};
pub use group::{Aborter, Collective};
pub use tree::{Subtree, SubtreeSums, TreePlan, TreeStep, even_bounds, ordered_sum, ordered_sum_of_slice};
