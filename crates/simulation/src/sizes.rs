//! How large a simulated run may be.

/// Workers that there may be.
pub const MOST_WORKERS: u32 = 5;
/// What the outcome of a training task takes, and that of a task of held-out images.
pub const OUTCOME_BYTES: [u64; 2] = [100, 10];
