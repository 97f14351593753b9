//! The feed-forward of transformer blocks.

use tch::Tensor;

use crate::layers::Activation;
use crate::projection::{AdapterMode, Projection};
use crate::weights::Scope;

/// Width of a feed-forward's middle, as a multiple of the stream's.
pub(crate) const EXPANSION: i64 = 4;

/// Two linear layers with the tanh-approximated GELU between them.
pub(crate) struct FeedForward([Projection; 2]);

impl FeedForward {
    pub(crate) fn new(scope: &Scope, width: i64) -> Self {
        let inner = EXPANSION * width;
        let first = Projection::single(&scope.child("net.0.proj"), width, inner);
        Self([first, Projection::single(&scope.child("net.2"), inner, width)])
    }

    /// # Shapes
    /// `[..., width]` → the same.
    pub(crate) fn forward(&self, x: &Tensor, mode: AdapterMode) -> Tensor {
        self.0[1].forward(&Activation::GeluTanh.apply(&self.0[0].forward(x, mode)), mode)
    }

    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.0.iter()
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.0.iter_mut()
    }
}
