//! One joint block: image and text tokens attend to each other, then each stream has its own feed-forward.

use super::attention::{ImageAttention, JointAttention};
use super::config::Sd3Config;
use super::modulation::Chunks;
use crate::feed_forward::FeedForward;
use crate::layers::layer_norm;
use crate::network::{OtherTensor, Streams};
use crate::projection::{AdapterMode, Projection};
use crate::weights::Scope;

/// Added to the variance in every layer norm.
pub(super) const EPSILON: f64 = 1e-6;

/// One joint block.
pub(super) struct Block {
    joint: JointAttention,
    dual: Option<ImageAttention>,
    image_ff: FeedForward,
    /// Absent in the last block, whose text output nobody reads.
    text_ff: Option<FeedForward>,
}

impl Block {
    pub(super) fn new(scope: &Scope, config: &Sd3Config, index: i64) -> Self {
        let last = index == config.num_layers - 1;
        let dual = config.dual_attention_layers.contains(&index);
        Self {
            joint: JointAttention::new(&scope.child("attn"), config, last),
            dual: dual.then(|| ImageAttention::new(&scope.child("attn2"), config)),
            image_ff: FeedForward::new(&scope.child("ff"), config.width()),
            text_ff: (!last).then(|| FeedForward::new(&scope.child("ff_context"), config.width())),
        }
    }

    /// # Shapes
    /// Streams `[batch, patches, width]` and `[batch, words, width]` → the same.
    pub(super) fn forward(
        &self,
        streams: Streams,
        chunks: &mut Chunks,
        config: &Sd3Config,
        mode: AdapterMode,
    ) -> Streams {
        let Streams { image, text } = streams;
        let (attention, feed_forward) = (chunks.branch(), chunks.branch());
        let dual = self.dual.as_ref().map(|layer| (layer, chunks.branch()));
        let normed_image = layer_norm(&image, EPSILON);
        let normed_text = layer_norm(&text, EPSILON);
        let (text_branches, joint_text) = match &self.text_ff {
            Some(layer) => {
                let (attention, feed_forward) = (chunks.branch(), chunks.branch());
                let input = attention.modulate(&normed_text);
                (Some((attention, layer, feed_forward)), input)
            }
            None => (None, chunks.scale_and_shift(&normed_text)),
        };
        let (image_update, text_update) =
            self.joint.forward(&attention.modulate(&normed_image), &joint_text, config, mode);

        let mut image = attention.add(&image, &image_update);
        if let Some((layer, branch)) = dual {
            image = branch.add(&image, &layer.forward(&branch.modulate(&normed_image), config, mode));
        }
        let update = self.image_ff.forward(&feed_forward.modulate(&layer_norm(&image, EPSILON)), mode);
        let image = feed_forward.add(&image, &update);

        let text = match (text_branches, text_update) {
            (Some((attention, layer, feed_forward)), Some(update)) => {
                let text = attention.add(&text, &update);
                let update = layer.forward(&feed_forward.modulate(&layer_norm(&text, EPSILON)), mode);
                feed_forward.add(&text, &update)
            }
            _ => text,
        };
        Streams { image, text }
    }

    pub(super) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let dual = self.dual.iter_mut().flat_map(ImageAttention::projections_mut);
        let text_ff = self.text_ff.iter_mut().flat_map(FeedForward::projections_mut);
        self.joint.projections_mut().chain(dual).chain(self.image_ff.projections_mut()).chain(text_ff)
    }

    pub(super) fn projections(&self) -> impl Iterator<Item = &Projection> {
        let dual = self.dual.iter().flat_map(ImageAttention::projections);
        let text_ff = self.text_ff.iter().flat_map(FeedForward::projections);
        self.joint.projections().chain(dual).chain(self.image_ff.projections()).chain(text_ff)
    }

    pub(super) fn norms(&self) -> impl Iterator<Item = OtherTensor> {
        self.joint.norms().chain(self.dual.iter().flat_map(ImageAttention::norms))
    }
}
