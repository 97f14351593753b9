//! Classifier-free guidance that leaves each token's velocity as long as it was.

use tch::Tensor;

/// Below this, a token's guided velocity is taken for zero, and stays so.
const SMALLEST_NORM: f64 = 1e-12;

/// `u·‖c‖/‖u‖` with `u = n + scale·(c − n)`, norms over the last axis.
///
/// # Shapes
/// `conditional` c and `unconditional` n `[B, tokens, features]` → the same.
///
/// Source: diffusers 0.38, `pipelines/qwenimage/pipeline_qwenimage.py`.
pub(super) fn rescaled(conditional: &Tensor, unconditional: &Tensor, scale: f64) -> Tensor {
    let guided = unconditional + (conditional - unconditional) * scale;
    let norm = |x: &Tensor| x.norm_scalaropt_dim(2, -1, true);
    let ratio = norm(conditional) / norm(&guided).clamp_min(SMALLEST_NORM);
    guided * ratio
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn token(values: [f64; 2]) -> Tensor {
        Tensor::from_slice(&values).view([1, 1, 2])
    }

    #[test]
    fn a_worked_number() {
        let guided = rescaled(&token([3.0, 4.0]), &token([1.0, 0.0]), 4.0);
        assert!((guided.double_value(&[0, 0, 0]) - 2.451_306_2).abs() < 1e-7);
        assert!((guided.double_value(&[0, 0, 1]) - 4.357_877_7).abs() < 1e-7);
    }

    #[test]
    fn each_token_keeps_its_own_length() {
        let conditional = Tensor::from_slice(&[3.0, 4.0, 0.0, 0.5]).view([1, 2, 2]);
        let guided = rescaled(&conditional, &Tensor::from_slice(&[1.0, 0.0, 2.0, 1.0]).view([1, 2, 2]), 4.0);
        for (idx, length) in [5.0, 0.5].into_iter().enumerate() {
            let found = guided.select(1, idx as i64).norm().double_value(&[]);
            assert!((found - length).abs() < 1e-12, "{found}");
        }
    }

    #[test]
    fn the_gradient_goes_through_the_norms() {
        let loss = |c: &Tensor| (rescaled(c, &token([1.0, 0.0]), 4.0) * token([0.3, -0.7])).sum(Kind::Double);
        let conditional = token([3.0, 4.0]).set_requires_grad(true);
        loss(&conditional).backward();
        const STEP: f64 = 1e-6;
        for (idx, direction) in [token([STEP, 0.0]), token([0.0, STEP])].into_iter().enumerate() {
            let centre = conditional.detach();
            let slope = (loss(&(&centre + &direction)) - loss(&(&centre - &direction))) / (2.0 * STEP);
            let found = conditional.grad().double_value(&[0, 0, idx as i64]);
            assert!((found - slope.double_value(&[])).abs() < 1e-8, "{idx}: {found}");
        }
    }

    #[test]
    fn a_velocity_of_zero_stays_zero_with_a_gradient_that_is_a_number() {
        let conditional = token([0.0, 0.0]).set_requires_grad(true);
        let guided = rescaled(&conditional, &token([0.0, 0.0]), 4.0);
        guided.sum(Kind::Double).backward();
        assert_eq!(guided.abs().max().double_value(&[]), 0.0);
        assert_eq!(conditional.grad().isfinite().all().int64_value(&[]), 1);
    }
}
