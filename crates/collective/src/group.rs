//! What a group of ranks can do together.

use crate::CollectiveError;
use std::time::Instant;

/// A group of ranks, as one of them sees it. All call the same operations in the same order.
///
/// Every operation ends by its deadline: done, or with an error that names who was waited for. After an error other than
/// [`CollectiveError::Argument`] the group is of no use any more, and the other ranks find out at once.
pub trait Collective: Send {
    /// This process's number, below [`Self::n_ranks`].
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn n_ranks(&self) -> usize;

    /// Copies the bytes of rank `root` to all others, whose `bytes` have the same length.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn broadcast(&mut self, root: usize, bytes: &mut [u8], deadline: Instant) -> Result<(), CollectiveError>;

    /// Fills in the parts of all others. Rank r's part lies from `bounds[r]` to `bounds[r + 1]`; `bounds` has one number
    /// more than there are ranks, and is the same on all.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn all_gather(
        &mut self,
        bytes: &mut [u8],
        bounds: &[usize],
        deadline: Instant,
    ) -> Result<(), CollectiveError>;

    /// Sends `outgoing[r]` to every rank r, and receives what r has for this one in `incoming[r]`, whose length must be what
    /// r sends. What a rank has for itself is not copied.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn all_to_all(
        &mut self,
        outgoing: &[&[u8]],
        incoming: &mut [&mut [u8]],
        deadline: Instant,
    ) -> Result<(), CollectiveError>;

    /// Returns when every rank has called it.
    ///
    /// # Errors
    /// See [`CollectiveError`].
    fn barrier(&mut self, deadline: Instant) -> Result<(), CollectiveError>;

    /// What ends this group from another thread.
    fn aborter(&self) -> Aborter;
}

/// Ends a group of ranks from any thread: what waits in it returns at once, and the other ranks lose this one.
#[derive(Clone)]
pub struct Aborter(std::sync::Arc<dyn Fn(&str) + Send + Sync>);

impl Aborter {
    /// An aborter that calls `abort` with the reason.
    pub fn new(abort: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(std::sync::Arc::new(abort))
    }

    /// Ends the group; the first reason counts.
    pub fn abort(&self, reason: &str) {
        (self.0)(reason);
    }
}
