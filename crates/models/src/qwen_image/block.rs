//! One block: image and text tokens attend to each other, then each stream has its own feed-forward.

use tch::Tensor;

use super::attention::JointAttention;
use super::config::QwenImageConfig;
use crate::layers::{Activation, layer_norm};
use crate::network::{OtherTensor, Streams};
use crate::projection::{AdapterMode, Projection};
use crate::weights::{Init, Scope};

/// Added to the variance in every layer norm.
pub(super) const EPSILON: f64 = 1e-6;

/// Width of the feed-forward's middle, as a multiple of the stream's.
const EXPANSION: i64 = 4;

/// Shift, scale and gate of the attention and of the feed-forward.
const MODULATIONS: i64 = 6;

/// Two linear layers with the tanh-approximated GELU between them.
struct FeedForward([Projection; 2]);

impl FeedForward {
    fn new(scope: &Scope, width: i64) -> Self {
        let inner = EXPANSION * width;
        let first = Projection::single(&scope.child("net.0.proj"), width, inner);
        Self([first, Projection::single(&scope.child("net.2"), inner, width)])
    }

    fn forward(&self, x: &Tensor, mode: AdapterMode) -> Tensor {
        self.0[1].forward(&Activation::GeluTanh.apply(&self.0[0].forward(x, mode)), mode)
    }
}

/// Shift, scale and gate of one residual branch: each `[batch, 1, width]`.
struct Branch<'a>(&'a [Tensor]);

impl Branch<'_> {
    /// `normed·(1 + scale) + shift`.
    fn modulate(&self, x: &Tensor) -> Tensor {
        self.0[0].addcmul(&layer_norm(x, EPSILON), &(&self.0[1] + 1.0))
    }

    /// `x + gate·update`.
    fn add(&self, x: &Tensor, update: &Tensor) -> Tensor {
        x.addcmul(&self.0[2], update)
    }
}

/// One block. Its modulation is its own: joined over all blocks, those layers would be a third of the model in one tensor.
pub(super) struct Block {
    modulation: Projection,
    attention: JointAttention,
    image_ff: FeedForward,
    text_ff: FeedForward,
    width: i64,
}

impl Block {
    pub(super) fn new(scope: &Scope, config: &QwenImageConfig) -> Self {
        let width = config.width();
        let modulation = ["img_mod.1", "txt_mod.1"].map(|name| (scope.child(name), MODULATIONS * width));
        Self {
            // Zero, so that every block of a network trained from nothing starts as the identity.
            modulation: Projection::new(&modulation, width, Init::Zeros),
            attention: JointAttention::new(&scope.child("attn"), config),
            image_ff: FeedForward::new(&scope.child("img_mlp"), width),
            text_ff: FeedForward::new(&scope.child("txt_mlp"), width),
            width,
        }
    }

    /// # Shapes
    /// Streams `[batch, patches, width]` and `[batch, words, width]` → the same; `shared` is the condition
    /// `[batch, width]`, the rotation, and the mask where there is one.
    pub(super) fn forward(&self, streams: Streams, shared: &[Tensor], mode: AdapterMode) -> Streams {
        let (condition, rotation, mask) = (&shared[0], &shared[1], shared.get(2));
        let modulation = self.modulation.forward(condition, mode).unsqueeze(1).split(self.width, 2);
        let branches: Vec<Branch> = modulation.chunks_exact(3).map(Branch).collect();
        let [image_attention, image_ff, text_attention, text_ff] = branches.as_slice() else {
            unreachable!("modulation has twelve parts; else this is a bug")
        };
        let inputs = Streams {
            image: image_attention.modulate(&streams.image),
            text: text_attention.modulate(&streams.text),
        };
        let updates = self.attention.forward(&inputs, rotation, mask, mode);
        let image = image_attention.add(&streams.image, &updates.image);
        let text = text_attention.add(&streams.text, &updates.text);
        Streams {
            image: image_ff.add(&image, &self.image_ff.forward(&image_ff.modulate(&image), mode)),
            text: text_ff.add(&text, &self.text_ff.forward(&text_ff.modulate(&text), mode)),
        }
    }

    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection> {
        std::iter::once(&self.modulation)
            .chain(self.attention.projections())
            .chain(&self.image_ff.0)
            .chain(&self.text_ff.0)
    }

    pub(super) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        std::iter::once(&mut self.modulation)
            .chain(self.attention.projections_mut())
            .chain(&mut self.image_ff.0)
            .chain(&mut self.text_ff.0)
    }

    pub(super) fn norms(&self) -> [OtherTensor; 2] {
        self.attention.norms()
    }
}
