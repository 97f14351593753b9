//! The `rewards` crate.
