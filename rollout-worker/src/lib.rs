//! The `rollout-worker` crate.
