//! Velocities that are trained, with the memory of the backward pass as it is chosen: all activations of the network at
//! once, or those of one block at a time.
//!
//! With recomputed activations the network runs without gradients and leaves behind what each block gave. The loss is
//! differentiated down to the network's output; from there [`TrainingVelocity::backward`] walks back block by block:
//!
//! ```text
//! forward    begin ─ s₀ ─ block 0 ─ s₁ ─ block 1 ─ s₂ ─ end ─ output      kept: s₁, s₂, output
//! backward   begin ◀ s₀ ◀ block 0 ◀ s₁ ◀ block 1 ◀ s₂ ◀ end ◀ ∂loss/∂output
//! ```
//!
//! Each piece is run again from what entered it, on leaves, and the sum over its outputs of output times gradient is
//! differentiated. What all blocks share (a modulation that itself depends on trained tensors) collects its gradient
//! over the blocks and is differentiated with the beginning, last. One extra forward pass is the price.
//!
//! Source: Chen et al. 2016 (training deep nets with sublinear memory cost).

use tch::{Kind, Tensor, no_grad};

use crate::network::{Network, Query, Streams};
use crate::projection::AdapterMode;

/// Where the backward pass gets a network's activations from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// They are kept from the forward pass.
    Kept,
    /// Those of one block at a time are computed again.
    Recomputed,
}

/// A velocity whose loss can be differentiated down to the tensors that are trained.
pub struct TrainingVelocity<'a> {
    velocity: Tensor,
    passes: Vec<BlockwisePass<'a>>,
}

impl<'a> TrainingVelocity<'a> {
    /// The velocity that `compose` makes of evaluations of `network`, of which there may be any number.
    pub fn new(
        network: &'a dyn Network,
        activations: Activations,
        compose: impl FnOnce(&mut dyn FnMut(&Query) -> Tensor) -> Tensor,
    ) -> Self {
        let mut passes = Vec::new();
        let velocity = compose(&mut |query| match activations {
            Activations::Kept => network.forward(query, AdapterMode::Trainable),
            Activations::Recomputed => {
                let pass = BlockwisePass::forward(network, query);
                let output = pass.output.shallow_clone();
                passes.push(pass);
                output
            }
        });
        Self { velocity, passes }
    }

    /// The velocity, to form a loss from.
    pub fn velocity(&self) -> &Tensor {
        &self.velocity
    }

    /// Adds the gradient of a loss formed from [`Self::velocity`] to those of the trained tensors.
    ///
    /// # Panics
    /// If the loss is not a scalar that depends on a trained tensor.
    pub fn backward(self, loss: &Tensor) {
        loss.backward();
        self.passes.into_iter().for_each(BlockwisePass::backward);
    }
}

/// One evaluation of a network without its activations.
struct BlockwisePass<'a> {
    network: &'a dyn Network,
    query: KeptQuery,
    /// What each block gave.
    streams: Vec<Streams>,
    /// A leaf that collects the gradient of the loss.
    output: Tensor,
}

impl<'a> BlockwisePass<'a> {
    fn forward(network: &'a dyn Network, query: &Query) -> Self {
        let (streams, output) = no_grad(|| {
            let (first, shared) = network.begin(query, AdapterMode::Trainable);
            let mut given = vec![first];
            for block_idx in 0..network.n_blocks() {
                let input = given[block_idx].shallow_clone();
                given.push(network.block(block_idx, input, &shared, AdapterMode::Trainable));
            }
            let last = given[network.n_blocks()].shallow_clone();
            let output = network.end(last, &shared, query, AdapterMode::Trainable);
            // The backward pass begins anew, since it differentiates the beginning.
            given.remove(0);
            (given, output)
        });
        Self { network, query: KeptQuery::new(query), streams, output: leaf(&output, true) }
    }

    fn backward(self) {
        let Self { network, query, streams, output } = self;
        let query = query.as_query();
        let (first, shared_by_blocks) = network.begin(&query, AdapterMode::Trainable);
        let shared: Vec<Tensor> = shared_by_blocks.iter().map(|t| leaf(t, t.requires_grad())).collect();
        let first_leaves = Streams {
            image: leaf(&first.image, first.image.requires_grad()),
            text: leaf(&first.text, first.text.requires_grad()),
        };
        let later =
            streams.iter().map(|s| Streams { image: leaf(&s.image, true), text: leaf(&s.text, true) });
        let mut entered: Vec<Streams> = std::iter::once(first_leaves).chain(later).collect();
        drop(streams);

        let mut after = pop(&mut entered);
        let last = network.end(after.shallow_clone(), &shared, &query, AdapterMode::Trainable);
        differentiate(&[(&last, &output)]);
        for block_idx in (0..network.n_blocks()).rev() {
            let before = pop(&mut entered);
            let given = network.block(block_idx, before.shallow_clone(), &shared, AdapterMode::Trainable);
            differentiate(&[(&given.image, &after.image), (&given.text, &after.text)]);
            after = before;
        }
        let mut pairs = vec![(&first.image, &after.image), (&first.text, &after.text)];
        pairs.extend(shared_by_blocks.iter().zip(&shared));
        differentiate(&pairs);
    }
}

fn pop(entered: &mut Vec<Streams>) -> Streams {
    entered.pop().expect("streams enter every block and the end; fewer is a bug")
}

/// The values of a tensor without its history, to collect a gradient if one is wanted.
fn leaf(tensor: &Tensor, requires_grad: bool) -> Tensor {
    tensor.detach().set_requires_grad(requires_grad)
}

/// Differentiates `Σ output·gradient`, each gradient being the one that its leaf has collected.
///
/// An output that depends on nothing trained, or that nothing after it has read, has no term. A term is one inner product:
/// its value is of no interest, and no product of the streams' size is kept for it.
fn differentiate(outputs_and_leaves: &[(&Tensor, &Tensor)]) {
    let terms = outputs_and_leaves.iter().filter_map(|(output, leaf)| {
        let gradient = leaf.grad();
        let is_read = output.requires_grad() && gradient.defined();
        is_read.then(|| output.reshape([-1]).dot(&gradient.reshape([-1])).to_kind(Kind::Float))
    });
    let terms: Vec<Tensor> = terms.collect();
    if !terms.is_empty() {
        Tensor::stack(&terms, 0).sum(Kind::Float).backward();
    }
}

/// A [`Query`] that owns its tensors.
struct KeptQuery {
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    pooled: Option<Tensor>,
    text_mask: Option<Tensor>,
    guidance_scale: f64,
}

impl KeptQuery {
    fn new(query: &Query) -> Self {
        Self {
            latents: query.latents.shallow_clone(),
            timestep: query.timestep.shallow_clone(),
            text: query.text.shallow_clone(),
            pooled: query.pooled.map(Tensor::shallow_clone),
            text_mask: query.text_mask.map(Tensor::shallow_clone),
            guidance_scale: query.guidance_scale,
        }
    }

    fn as_query(&self) -> Query<'_> {
        Query {
            latents: &self.latents,
            timestep: &self.timestep,
            text: &self.text,
            pooled: self.pooled.as_ref(),
            text_mask: self.text_mask.as_ref(),
            guidance_scale: self.guidance_scale,
        }
    }
}
