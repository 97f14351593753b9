//! What the exit code of a process says to whoever started it.

/// The work is done.
pub const DONE: u8 = 0;
/// The work failed; trying again as is will not help.
pub const FAILED: u8 = 1;
/// Bad usage or a bad config; nothing was started.
pub const BAD_USAGE: u8 = 2;
/// Stopped before the end, nothing lost: start again with the same state.
pub const RETRY: u8 = 75;
