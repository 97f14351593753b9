//! Layer norms whose shifts and scales, and the gates after them, depend on a condition (adaLN).
//!
//! Source: Peebles and Xie 2023 (DiT).

use tch::Tensor;

use crate::layers::layer_norm;
use crate::projection::{AdapterMode, Projection};
use crate::weights::{Init, Scope};

/// Added to the variance in every layer norm.
const EPSILON: f64 = 1e-6;

/// The layers that make shifts, scales and gates of the condition.
pub(crate) struct Modulation {
    projection: Projection,
    width: i64,
}

impl Modulation {
    /// Takes each layer from its scope, with how many vectors of `width` it makes.
    pub(crate) fn new(layers: &[(Scope, i64)], width: i64) -> Self {
        let modules: Vec<_> =
            layers.iter().map(|(scope, vectors)| (scope.clone(), vectors * width)).collect();
        // Zero, so that every block of a network trained from nothing starts as the identity.
        Self { projection: Projection::new(&modules, width, Init::Zeros), width }
    }

    /// # Shapes
    /// `condition` `[batch, width]`, through its nonlinearity already → each `[batch, 1, width]`, layer after layer.
    pub(crate) fn forward(&self, condition: &Tensor, mode: AdapterMode) -> Vec<Tensor> {
        self.projection.forward(condition, mode).unsqueeze(1).split(self.width, 2)
    }

    pub(crate) fn projection(&self) -> &Projection {
        &self.projection
    }

    pub(crate) fn projection_mut(&mut self) -> &mut Projection {
        &mut self.projection
    }
}

/// `norm(x)·(1 + scale) + shift`.
fn modulated(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Tensor {
    shift.addcmul(&layer_norm(x, EPSILON), &(scale + 1.0))
}

/// Shift, scale and gate of one residual branch.
pub(crate) struct Branch<'a>(&'a [Tensor]);

impl<'a> Branch<'a> {
    /// The branches out of what [`Modulation::forward`] gave.
    ///
    /// # Panics
    /// If it made vectors for more or fewer.
    pub(crate) fn all<const N: usize>(modulation: &'a [Tensor]) -> [Self; N] {
        assert_eq!(modulation.len(), 3 * N, "three vectors make a branch; else this is a bug");
        std::array::from_fn(|i| Self(&modulation[3 * i..3 * i + 3]))
    }

    /// What enters the branch.
    pub(crate) fn modulate(&self, x: &Tensor) -> Tensor {
        modulated(x, &self.0[0], &self.0[1])
    }

    /// `x + gate·update`.
    pub(crate) fn add(&self, x: &Tensor, update: &Tensor) -> Tensor {
        x.addcmul(&self.0[2], update)
    }
}

/// The end of a network of packed patches: a norm under the condition, then the layer that makes the velocity's patches.
pub(crate) struct OutputHead {
    modulation: Modulation,
    projection: Projection,
}

impl OutputHead {
    /// Takes `norm_out` and `proj_out` from the network's scope; `features` is what a patch of the velocity has.
    pub(crate) fn new(network: &Scope, width: i64, features: i64) -> Self {
        Self {
            modulation: Modulation::new(&[(network.child("norm_out.linear"), 2)], width),
            projection: Projection::new(&[(network.child("proj_out"), features)], width, Init::Zeros),
        }
    }

    /// # Shapes
    /// `image` `[batch, patches, width]`, `condition` as for [`Modulation::forward`] → `[batch, patches, features]`.
    pub(crate) fn forward(&self, image: &Tensor, condition: &Tensor, mode: AdapterMode) -> Tensor {
        let modulation = self.modulation.forward(condition, mode);
        // Unlike in a branch, the scale comes first.
        let (scale, shift) = (&modulation[0], &modulation[1]);
        self.projection.forward(&modulated(image, shift, scale), mode)
    }

    pub(crate) fn projections(&self) -> [&Projection; 2] {
        [self.modulation.projection(), &self.projection]
    }

    pub(crate) fn projections_mut(&mut self) -> [&mut Projection; 2] {
        [self.modulation.projection_mut(), &mut self.projection]
    }
}
