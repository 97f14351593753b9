//! Root-mean-square norms of queries and keys, evaluated as one.

use tch::Tensor;

use crate::layers::rms_norm;
use crate::network::OtherTensor;
use crate::weights::{Init, Scope};

/// Added to the mean square.
pub(crate) const EPSILON: f64 = 1e-6;

/// The weights of both norms.
pub(crate) struct QueryKeyNorm {
    paths: [String; 2],
    /// `[query or key, 1, head width]`.
    weight: Tensor,
}

impl QueryKeyNorm {
    /// Takes the weights of the norms of queries and of keys from a scope.
    pub(crate) fn new(scope: &Scope, names: [&str; 2], width: i64) -> Self {
        let weights = names.map(|name| scope.child(name).tensor("weight", &[width], Init::Ones));
        let paths = names.map(|name| scope.child(name).path().to_owned());
        Self { paths, weight: Tensor::stack(&weights, 0).unsqueeze(1) }
    }

    /// # Shapes
    /// `[query or key, 1, head width]`, which broadcasts to queries and keys `[..., 2, heads, head width]`.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Splits what a projection to queries, keys and values gave; the first two come normed.
    ///
    /// # Shapes
    /// `[batch, tokens, 3 · width]` → `[batch, tokens, 2, heads, head width]` and `[batch, tokens, 1, heads, head width]`.
    pub(crate) fn split(&self, qkv: &Tensor, heads: i64) -> (Tensor, Tensor) {
        let parts = qkv.unflatten(-1, [3, heads, -1]).split_with_sizes([2, 1], 2);
        (rms_norm(&parts[0], &self.weight, EPSILON), parts[1].shallow_clone())
    }

    /// Both weights, as one parameter and as the checkpoint has them.
    pub(crate) fn tensor(&self) -> OtherTensor {
        let named = self.paths.iter().enumerate().map(|(i, path)| {
            let weight = self.weight.detach().select(0, i as i64).squeeze_dim(0);
            (format!("{path}.weight"), weight)
        });
        OtherTensor {
            parameter: Some((format!("{}.weight", self.paths.join("+")), self.weight.shallow_clone())),
            checkpoint: named.collect(),
        }
    }
}
