//! From outcomes to an updated policy, in the order of tasks.
//!
//! [`trainer`] takes an iteration's tasks one after another, [`gradient`] differentiates one, [`policy`] holds what is
//! trained and steps it.

pub mod gradient;
pub mod metrics;
pub mod policy;
mod trained_tensors;
pub mod trainer;
