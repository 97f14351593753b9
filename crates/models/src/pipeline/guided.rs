//! The two predictions that classifier-free guidance is made of.

use tch::Tensor;

use super::Conditioning;

/// Predicts the velocity of `latents` `[B, …]` at times `[B]` for texts of one or of B rows.
pub(super) type Predict<'a> = dyn FnMut(&Tensor, &Tensor, &Conditioning) -> Tensor + 'a;

/// Velocities for the prompt and for the negative prompt.
///
/// They share one batch where both texts have equally many tokens. Else one follows the other: joined, the shorter text
/// would need padding, and a network that masks it takes slower ways. Since a task's texts alone decide, its rollout and
/// its training do the same.
pub(super) fn both_velocities(
    (latents, times): (&Tensor, &Tensor),
    positive: &Conditioning,
    negative: &Conditioning,
    predict: &mut Predict,
) -> (Tensor, Tensor) {
    let rows = latents.size()[0];
    if positive.tokens() != negative.tokens() {
        return (predict(latents, times, positive), predict(latents, times, negative));
    }
    let both = Conditioning::cat(&[&negative.expand(rows), &positive.expand(rows)]);
    let doubled = |x: &Tensor| Tensor::cat(&[x, x], 0);
    let velocity = predict(&doubled(latents), &doubled(times), &both);
    (velocity.narrow(0, rows, rows), velocity.narrow(0, 0, rows))
}
