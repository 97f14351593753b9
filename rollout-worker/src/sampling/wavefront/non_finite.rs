//! Values that are not finite, and where they came up.

use tch::{Kind, Tensor};

/// A NaN or an infinity in the latents of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{quantity} is not finite at step {step}, {}", name(*row))]
pub struct NonFinite {
    /// Which quantity.
    pub quantity: &'static str,
    /// Seed, counted within the task.
    pub seed: usize,
    /// Denoising step.
    pub step: usize,
    /// Which of the seed's latents.
    pub row: Row,
}

/// One of the latents of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// The one that random moves start from.
    Trunk,
    /// The one that left the trunk at step `born` with the noise of `branch`.
    Branch {
        /// Step of the random move.
        born: usize,
        /// Exploration at that step.
        branch: usize,
    },
}

fn name(row: Row) -> String {
    match row {
        Row::Trunk => "on the trunk".to_owned(),
        Row::Branch { born, branch } => format!("in branch {branch} of step {born}"),
    }
}

/// The first row of `[B, …]` that holds a NaN or an infinity.
pub(super) fn first_non_finite_row(values: &Tensor) -> Option<usize> {
    let finite = values.isfinite();
    if bool::try_from(finite.all()).is_ok_and(|all_finite| all_finite) {
        return None;
    }
    let rows = finite.view([finite.size()[0], -1]).all_dim(1, false).to_kind(Kind::Int64);
    Some(rows.argmin(0, false).int64_value(&[]) as usize)
}
