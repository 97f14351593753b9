//! From outcomes to an updated policy, in the order of tasks.
//!
//! [`shares`] says which tasks are whose, [`trainer`] takes an iteration's tasks one after another, [`comparison`] makes
//! advantages of what they scored, [`gradient`] differentiates one, [`policy`] holds what is trained and steps it.

pub mod comparison;
pub mod gradient;
pub mod metrics;
pub mod policy;
mod rank_state;
pub mod shares;
mod trained_tensors;
pub mod trainer;
