//! What the exit code of a process says to whoever started it.

/// The work is done.
pub const DONE: u8 = 0;
/// The work failed; trying again as is will not help.
pub const FAILED: u8 = 1;
/// Bad usage or a bad config; nothing was started.
pub const BAD_USAGE: u8 = 2;
/// Whoever read the output has gone, as in `| head`; what a shell says of programs that a broken pipe ends.
pub const READER_GONE: u8 = 141;
/// Stopped before the end, nothing lost: start again with the same state.
pub const RETRY: u8 = 75;
