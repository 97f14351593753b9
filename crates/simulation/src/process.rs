//! Simulated processes, and how they name themselves.

use service::Holder;

/// A simulated process; numbers are not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u32);

/// Where a simulated process is reached.
pub fn address(own: ProcessId) -> String {
    format!("{}:1", own.0)
}

/// Who is reached there; an address that is none leads to nobody.
pub fn process_at(address: &str) -> Option<ProcessId> {
    address.strip_suffix(":1")?.parse().ok().map(ProcessId)
}

/// What a simulated process says of itself.
pub fn process(own: ProcessId) -> proto::Process {
    protocol::process(u128::from(own.0).to_le_bytes(), "simulated", own.0)
}

/// A process, as the record names it.
pub fn holder(own: ProcessId) -> Holder {
    Holder::of(&process(own))
}
