//! What the exit code of a process says to whoever started it.

use protocol::{JoinRefusal, MembershipLoss};

/// The work is done.
pub const DONE: u8 = 0;
/// The work failed; trying again as is will not help.
pub const FAILED: u8 = 1;
/// Bad usage, a bad config, or a coordinator that does not take the process: the same would happen again.
pub const BAD_USAGE: u8 = 2;
/// Whoever read the output has gone, as in `| head`; what a shell says of programs that a broken pipe ends.
pub const READER_GONE: u8 = 141;
/// Stopped before the end, nothing lost: start again with the same state.
pub const RETRY: u8 = 75;
/// Another process has the place of this one, which must not be started again.
pub const FENCED: u8 = 77;

/// That of a process whose membership is lost.
pub fn of_loss(loss: &MembershipLoss) -> u8 {
    match loss {
        MembershipLoss::Gone => RETRY,
        MembershipLoss::Refused(refusal) => of_refusal(refusal),
    }
}

/// That of a process that the coordinator does not take.
pub fn of_refusal(refusal: &JoinRefusal) -> u8 {
    if refusal.is_final { BAD_USAGE } else { FAILED }
}
