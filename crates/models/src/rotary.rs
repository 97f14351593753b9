//! Rotary embedding: attention whose queries and keys are turned by their tokens' positions.
//!
//! Letters: B rows, T tokens, H heads, D head width. Which features turn together differs: neighbours in the transformers of
//! diffusion models, one of each half in language models and their vision towers.
//!
//! Source: Su et al. 2021 (RoFormer), with several axes, each of which turns features of its own.

use tch::{Device, Kind, Tensor};

use crate::layers::attention;

/// Base of the frequencies, the same in every published model.
const THETA: f64 = 10_000.0;

/// Angular frequencies by which `width` features turn, `theta^(−2i/width)`, formed in float64 as most references do.
///
/// # Shapes
/// `[width / 2]`, float64.
pub(crate) fn frequencies(theta: f64, width: i64, device: Device) -> Tensor {
    let pairs = Tensor::arange(width / 2, (Kind::Double, device));
    (pairs * (-2.0 * theta.ln() / width as f64)).exp()
}

/// Cosine and sine of the angle by which each pair of neighbouring features is turned.
///
/// Each axis has its own [`frequencies`].
///
/// # Shapes
/// `positions` one `[T]` per axis, `axes` their features, D together → `[T, 1, 1, D / 2, 2]`, float32.
pub(crate) fn rotation(positions: &[Tensor], axes: &[i64]) -> Tensor {
    let angles = positions.iter().zip(axes).map(|(positions, width)| {
        positions.to_kind(Kind::Double).outer(&frequencies(THETA, *width, positions.device()))
    });
    let angles = Tensor::cat(&angles.collect::<Vec<_>>(), 1);
    let turns = Tensor::stack(&[angles.cos(), angles.sin()], -1).to_kind(Kind::Float);
    turns.unsqueeze(1).unsqueeze(1)
}

/// Cosines and sines by which each feature of the first half is turned together with its partner in the second.
pub(crate) struct HalfRotation {
    cosines: Tensor,
    sines: Tensor,
}

impl HalfRotation {
    /// # Shapes
    /// `angles` `[..., T, D / 2]`, float64; with the axes before T it broadcasts against what is turned.
    pub(crate) fn new(angles: &Tensor) -> Self {
        let angles = Tensor::cat(&[angles, angles], -1);
        let rounded = |turns: Tensor| turns.to_kind(Kind::Float);
        Self { cosines: rounded(angles.cos()), sines: rounded(angles.sin()) }
    }

    /// Turns the features, in float32.
    ///
    /// # Shapes
    /// `[..., T, D]` → the same.
    pub(crate) fn apply(&self, x: &Tensor) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let halves = wide.chunk(2, -1);
        let partners = Tensor::cat(&[&halves[1].neg(), &halves[0]], -1);
        (wide * &self.cosines + partners * &self.sines).to_kind(x.kind())
    }
}

/// Turns each pair of neighbouring features, in float32.
///
/// # Shapes
/// `x` `[B, T, parts, H, D]`, `rotation` as of [`rotation`] → as `x`.
fn rotated(x: &Tensor, rotation: &Tensor) -> Tensor {
    let pairs = x.to_kind(Kind::Float).unflatten(-1, [-1, 2]).contiguous();
    // The pair (a, b) is a + ib, and turning it by φ is multiplying it by cos φ + i·sin φ.
    let turned = pairs.view_as_complex() * rotation.view_as_complex();
    turned.view_as_real().flatten(-2, -1).to_kind(x.kind())
}

/// Attention of every token over those that `mask` lets through.
///
/// # Shapes
/// `query_key` `[B, T, 2, H, D]`, `value` `[B, T, 1, H, D]`, `rotation` as of [`rotation`]; `mask`, added to the scores
/// before the softmax, broadcasts to `[B, H, T, T]` → `[B, T, H · D]`.
pub(crate) fn rotary_attention(
    query_key: &Tensor,
    value: &Tensor,
    rotation: &Tensor,
    mask: Option<&Tensor>,
) -> Tensor {
    let query_key = rotated(query_key, rotation).unbind(2);
    let heads_first = |t: &Tensor| t.transpose(1, 2);
    let (query, key) = (heads_first(&query_key[0]), heads_first(&query_key[1]));
    let mixed = attention(&query, &key, &heads_first(&value.squeeze_dim(2)), mask);
    mixed.transpose(1, 2).flatten(2, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_axis_turns_its_own_features_and_slower_the_later_they_are() {
        let positions = [Tensor::from_slice(&[0_i64, 1]), Tensor::from_slice(&[3_i64, 2])];
        let turns = rotation(&positions, &[2, 4]);
        assert_eq!(turns.size(), [2, 1, 1, 3, 2]);
        for (token, angles) in [[0.0, 3.0, 0.03], [1.0, 2.0, 0.02_f64]].iter().enumerate() {
            for (pair, angle) in angles.iter().enumerate() {
                let part = |which| turns.double_value(&[token as i64, 0, 0, pair as i64, which]);
                assert!((part(0) - angle.cos()).abs() < 1e-6 && (part(1) - angle.sin()).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn a_quarter_turn_of_halves_moves_the_first_half_to_the_second() {
        let angles = Tensor::from_slice(&[std::f64::consts::FRAC_PI_2, 0.0]).view([1, 2]);
        let turned = HalfRotation::new(&angles).apply(&Tensor::from_slice(&[3.0_f32, 5.0, 4.0, 6.0]));
        let expected = Tensor::from_slice(&[-4.0_f32, 5.0, 3.0, 6.0]).view([1, 4]);
        assert!((turned - expected).abs().max().double_value(&[]) < 1e-6);
    }

    #[test]
    fn a_quarter_turn_moves_the_first_feature_of_a_pair_to_the_second() {
        let turns = Tensor::from_slice(&[0.0_f32, 1.0, 1.0, 0.0]).view([1, 1, 1, 2, 2]);
        let turned = rotated(&Tensor::from_slice(&[3.0_f32, 4.0, 5.0, 6.0]).view([1, 1, 1, 1, 4]), &turns);
        assert_eq!(turned.flatten(0, -1), Tensor::from_slice(&[-4.0_f32, 3.0, 5.0, 6.0]));
    }
}
