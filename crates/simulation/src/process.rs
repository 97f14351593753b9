//! Simulated processes, and how they name themselves.

use service::Holder;

/// A simulated process; numbers are not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u32);

/// What a simulated process says of itself.
pub fn process(own: ProcessId) -> proto::Process {
    protocol::process(u128::from(own.0).to_le_bytes(), "simulated", own.0)
}

/// A process, as the record names it.
pub fn holder(own: ProcessId) -> Holder {
    Holder::of(&process(own))
}
