//! Bringing the processes of a run to life and keeping them so.

pub mod capacity;
mod local;
mod restart;
mod supervisor;

pub use local::{ExitReport, LocalLauncher, Program, is_member_process, living_processes, programs};
pub use restart::{RestartDecision, RestartHistory};
pub use supervisor::Supervisor;

/// Member id of the learner.
pub const LEARNER: &str = "learner";

/// Member id of a rollout worker.
pub fn worker_id(position: u32) -> String {
    format!("worker-{position}")
}

/// Position of the rollout worker with that member id.
pub fn worker_position(member_id: &str) -> Option<u32> {
    member_id.strip_prefix("worker-")?.parse().ok()
}
