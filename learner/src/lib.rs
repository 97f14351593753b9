//! The `learner` crate.
