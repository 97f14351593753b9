//! The `scenes` crate.
