//! The difference between a user's mistake and a failure on the way.

/// What the user gave cannot be used: nothing was started, and the process ends with exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct BadInput(pub anyhow::Error);

impl BadInput {
    /// For `map_err` on whatever the user can set right.
    pub fn from_error(error: impl Into<anyhow::Error>) -> anyhow::Error {
        Self(error.into()).into()
    }
}
