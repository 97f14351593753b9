//! Shifts, scales and gates of all blocks, from the condition vector by one matrix product.
//!
//! Every block has its own modulation layer, but all read the same vector, so the whole network needs one call.

use tch::Tensor;

use super::config::Sd3Config;
use crate::projection::{AdapterMode, Projection};
use crate::weights::{Init, Scope};

/// How a layer norm is followed up.
#[derive(Clone, Copy)]
enum Layout {
    /// Shift, scale and gate of each of this many branches.
    Branches(i64),
    /// A scale, then a shift: the norms whose branch has no gate.
    ScaleShift,
}

impl Layout {
    fn chunks(self) -> i64 {
        match self {
            Self::Branches(branches) => 3 * branches,
            Self::ScaleShift => 2,
        }
    }

    fn is_scale(self, chunk: i64) -> bool {
        match self {
            Self::Branches(_) => chunk % 3 == 1,
            Self::ScaleShift => chunk == 0,
        }
    }
}

/// Shift, scale (one already added) and gate of one residual branch.
///
/// # Shapes
/// Each `[batch, 1, width]`.
pub(super) struct Branch {
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
}

impl Branch {
    /// `normed·scale + shift`.
    pub(super) fn modulate(&self, normed: &Tensor) -> Tensor {
        self.shift.addcmul(normed, &self.scale)
    }

    /// `x + gate·update`.
    pub(super) fn add(&self, x: &Tensor, update: &Tensor) -> Tensor {
        x.addcmul(&self.gate, update)
    }
}

/// The modulation layers of the whole network.
pub(super) struct Modulation {
    projection: Projection,
    /// One where a scale is, so that `1 + scale` costs one addition for the network.
    ones: Tensor,
    width: i64,
    /// Where the chunks of each block begin, and after the last block those of the network's output.
    starts: Vec<usize>,
}

impl Modulation {
    pub(super) fn new(root: &Scope, config: &Sd3Config) -> Self {
        let width = config.width();
        let (mut layers, mut starts, mut start) = (Vec::new(), vec![0], 0);
        for i in 0..config.num_layers {
            let block = root.child("transformer_blocks").child(i);
            let branches = if config.dual_attention_layers.contains(&i) { 3 } else { 2 };
            let text = if i == config.num_layers - 1 { Layout::ScaleShift } else { Layout::Branches(2) };
            layers.push((block.child("norm1.linear"), Layout::Branches(branches)));
            layers.push((block.child("norm1_context.linear"), text));
            start += (Layout::Branches(branches).chunks() + text.chunks()) as usize;
            starts.push(start);
        }
        layers.push((root.child("norm_out.linear"), Layout::ScaleShift));
        let modules: Vec<_> =
            layers.iter().map(|(scope, layout)| (scope.clone(), layout.chunks() * width)).collect();
        let ones: Vec<f32> = layers
            .iter()
            .flat_map(|(_, layout)| (0..layout.chunks()).map(|chunk| f32::from(layout.is_scale(chunk))))
            .collect();
        let ones = Tensor::from_slice(&ones).unsqueeze(1).expand([-1, width], false).flatten(0, 1);
        Self {
            // Zero, so that every block of a network trained from nothing starts as the identity.
            projection: Projection::new(&modules, width, Init::Zeros),
            ones: ones.to_device(root.device()).to_kind(root.kind()),
            width,
            starts,
        }
    }

    /// Shifts, scales and gates of the whole network, split at once so that the backward pass joins them at once.
    ///
    /// # Shapes
    /// `condition` `[batch, width]` → each `[batch, 1, width]`.
    pub(super) fn forward(&self, condition: &Tensor, mode: AdapterMode) -> Vec<Tensor> {
        let all = self.projection.forward(&condition.silu(), mode) + &self.ones;
        all.unsqueeze(1).split(self.width, 2)
    }

    /// Those of one block, out of what [`Self::forward`] gave; past the last block, those of the network's output.
    pub(super) fn chunks_of_block<'a>(&self, all: &'a [Tensor], block_idx: usize) -> Chunks<'a> {
        Chunks(all[self.starts[block_idx]..].iter())
    }

    pub(super) fn projection(&self) -> &Projection {
        &self.projection
    }

    pub(super) fn projection_mut(&mut self) -> &mut Projection {
        &mut self.projection
    }
}

/// The modulation tensors, handed out in the order in which the network uses them.
pub(super) struct Chunks<'a>(std::slice::Iter<'a, Tensor>);

impl Chunks<'_> {
    fn next(&mut self) -> Tensor {
        self.0
            .next()
            .map(Tensor::shallow_clone)
            .expect("modulation has as many chunks as the blocks take; fewer is a bug")
    }

    pub(super) fn branch(&mut self) -> Branch {
        Branch { shift: self.next(), scale: self.next(), gate: self.next() }
    }

    /// `normed·scale + shift` of a norm without a gate.
    pub(super) fn scale_and_shift(&mut self, normed: &Tensor) -> Tensor {
        let scale = self.next();
        self.next().addcmul(normed, &scale)
    }

    #[cfg(test)]
    pub(super) fn remaining(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Weights;
    use tch::{Device, Kind};

    #[test]
    fn a_network_with_zero_modulation_scales_by_one_and_gates_by_zero() {
        let config: Sd3Config = serde_json::from_str(
            r#"{"num_layers": 2, "dual_attention_layers": [0], "num_attention_heads": 1, "attention_head_dim": 4}"#,
        )
        .unwrap();
        let weights = Weights::random(1, Kind::Float, Device::Cpu);
        let modulation = Modulation::new(&weights.scope(""), &config);
        let all = modulation.forward(&Tensor::ones([3, 4], (Kind::Float, Device::Cpu)), AdapterMode::Off);
        let mut chunks = modulation.chunks_of_block(&all, 0);
        let x = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([3, 1, 4]);
        for _ in 0..3 + 2 {
            let branch = chunks.branch();
            assert_eq!(branch.modulate(&x), x);
            assert_eq!(branch.add(&x, &x), x);
        }
        assert_eq!(chunks.remaining(), modulation.chunks_of_block(&all, 1).remaining());
        for _ in 0..2 {
            assert_eq!(chunks.branch().add(&x, &x), x);
        }
        assert_eq!(chunks.scale_and_shift(&x), x);
        assert_eq!(chunks.remaining(), modulation.chunks_of_block(&all, 2).remaining());
        assert_eq!(chunks.scale_and_shift(&x), x);
        assert_eq!(chunks.remaining(), 0);
    }
}
