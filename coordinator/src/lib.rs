//! The `coordinator` crate.
