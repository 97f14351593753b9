//! How queries and keys are turned by their tokens' positions: frame, row and column.
//!
//! Rows and columns count from the middle of the image, so that images of all sizes share the middle. A word has one
//! position on all axes; words follow the last row or column, whichever is further out.

use tch::{Device, Kind, Tensor};

use super::config::QwenImageConfig;
use crate::layers::rotary_frequencies;

/// Base of the frequencies, the same in every Qwen-Image model.
const THETA: f64 = 10_000.0;

/// Cosine and sine of the angle by which each pair of neighbouring features is turned, words before patches.
///
/// # Shapes
/// `[words + patches, 1, head width / 2, 2]`, float32.
pub(super) fn rotation(
    words: i64,
    (rows, columns): (i64, i64),
    config: &QwenImageConfig,
    device: Device,
) -> Tensor {
    let axis = |from: i64, to: i64| Tensor::arange_start(from, to, (Kind::Float, device));
    let centred = |length: i64| axis(length / 2 - length, length / 2);
    let first_word = (rows / 2).max(columns / 2);
    let words = axis(first_word, first_word + words);
    let grid = |positions: Tensor| positions.expand([rows, columns], false).flatten(0, 1);
    let patches =
        [axis(0, 1).unsqueeze(0), centred(rows).unsqueeze(1), centred(columns).unsqueeze(0)].map(grid);
    let angles = patches.iter().zip(config.axes_dims_rope).map(|(patches, features)| {
        let positions = Tensor::cat(&[&words, patches], 0);
        positions.outer(&rotary_frequencies(THETA, features, device))
    });
    let angles = Tensor::cat(&angles.collect::<Vec<_>>(), 1);
    Tensor::stack(&[angles.cos(), angles.sin()], -1).unsqueeze(1)
}

/// Turns each pair of neighbouring features, in float32.
///
/// # Shapes
/// `x` `[batch, tokens, …, heads, head width]`; `rotation` as of [`rotation`], with as many axes before the last two.
pub(super) fn rotate(x: &Tensor, rotation: &Tensor) -> Tensor {
    let pairs = x.to_kind(Kind::Float).unflatten(-1, [-1, 2]).contiguous().view_as_complex();
    let turned = pairs * rotation.view_as_complex();
    turned.view_as_real().flatten(-2, -1).to_kind(x.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_count_from_the_middle_and_words_go_on_from_the_edge() {
        let config: QwenImageConfig = serde_json::from_str(
            r#"{"attention_head_dim": 6, "axes_dims_rope": [2, 2, 2], "in_channels": 64}"#,
        )
        .unwrap();
        let rotation = rotation(2, (3, 4), &config, Device::Cpu);
        assert_eq!(rotation.size(), [2 + 12, 1, 3, 2]);
        let angle = |token: i64, axis: i64| {
            let part = |which| rotation.double_value(&[token, 0, axis, which]);
            part(1).atan2(part(0))
        };
        let close = |got: f64, want: f64| (got - want).abs() < 1e-6;
        // Each axis has one frequency, 1; words are at 2 and 3 on all of them.
        for axis in 0..3 {
            assert!(close(angle(0, axis), 2.0) && close(angle(1, axis), 3.0), "{axis}");
        }
        // The first patch is row -2 of -2..1 and column -2 of -2..2, the last one row 0 and column 1.
        assert!(close(angle(2, 0), 0.0) && close(angle(2, 1), -2.0) && close(angle(2, 2), -2.0));
        assert!(close(angle(13, 0), 0.0) && close(angle(13, 1), 0.0) && close(angle(13, 2), 1.0));
    }

    #[test]
    fn a_quarter_turn_moves_the_first_feature_of_a_pair_to_the_second() {
        let quarter = Tensor::from_slice(&[0.0_f32, 1.0, 1.0, 0.0]).view([1, 1, 2, 2]);
        let turned = rotate(&Tensor::from_slice(&[3.0_f32, 4.0, 5.0, 6.0]).view([1, 1, 1, 4]), &quarter);
        assert_eq!(turned.flatten(0, -1), Tensor::from_slice(&[-4.0_f32, 3.0, 5.0, 6.0]));
    }
}
