//! A block over two streams: image and text tokens attend to each other, then each stream has its own feed-forward.
//!
//! Text comes before the image wherever both stand together. SD3's blocks, which have no positions inside and some of
//! which lack half of this, are their own ([`crate::sd3`]).

use tch::Tensor;

use crate::adaptive_norm::{Branch, Modulation};
use crate::feed_forward::FeedForward;
use crate::network::{OtherTensor, Streams};
use crate::projection::{AdapterMode, Projection};
use crate::query_key_norm::QueryKeyNorm;
use crate::rotary::rotary_attention;
use crate::weights::{Init, Scope};

/// Sizes of a block, and the names that differ between families.
#[derive(Clone, Copy)]
pub(crate) struct JointBlockLayout {
    pub(crate) heads: i64,
    pub(crate) head_width: i64,
    /// Modulation of the image's stream and of the text's.
    pub(crate) modulations: [&'static str; 2],
    /// Feed-forward of the image's stream and of the text's.
    pub(crate) feed_forwards: [&'static str; 2],
}

/// What all blocks of a network read besides their streams.
#[derive(Clone, Copy)]
pub(crate) struct BlockContext<'a> {
    /// What modulates the norms, `[B, width]`, through its nonlinearity already.
    pub(crate) condition: &'a Tensor,
    /// Of text and image tokens, as [`crate::rotary::rotation`] makes it.
    pub(crate) rotation: &'a Tensor,
    /// Added to attention's scores, where some tokens do not count.
    pub(crate) mask: Option<&'a Tensor>,
}

/// Query, key and value of one stream, with the norms of the first two, and the way back into the stream.
struct AttentionStream {
    qkv: Projection,
    norm: QueryKeyNorm,
    out: Projection,
    heads: i64,
}

impl AttentionStream {
    fn new(scope: &Scope, layout: JointBlockLayout, modules: [&str; 4], norms: [&str; 2]) -> Self {
        let width = layout.heads * layout.head_width;
        let [query, key, value, out] = modules.map(|name| scope.child(name));
        Self {
            qkv: Projection::new(&[(query, width), (key, width), (value, width)], width, Init::Xavier),
            norm: QueryKeyNorm::new(scope, norms, layout.head_width),
            out: Projection::single(&out, width, width),
            heads: layout.heads,
        }
    }

    fn project(&self, x: &Tensor, mode: AdapterMode) -> (Tensor, Tensor) {
        self.norm.split(&self.qkv.forward(x, mode), self.heads)
    }
}

/// One block. Its modulation is its own: joined over all blocks, those layers would be a quarter of FLUX.1 in one tensor.
pub(crate) struct JointBlock {
    modulation: Modulation,
    image: AttentionStream,
    text: AttentionStream,
    image_ff: FeedForward,
    text_ff: FeedForward,
}

impl JointBlock {
    pub(crate) fn new(scope: &Scope, layout: JointBlockLayout) -> Self {
        let (width, attention) = (layout.heads * layout.head_width, scope.child("attn"));
        // Shift, scale and gate of the attention and of the feed-forward.
        let modulations = layout.modulations.map(|name| (scope.child(name), 6));
        let [image_ff, text_ff] =
            layout.feed_forwards.map(|name| FeedForward::new(&scope.child(name), width));
        Self {
            modulation: Modulation::new(&modulations, width),
            image: AttentionStream::new(
                &attention,
                layout,
                ["to_q", "to_k", "to_v", "to_out.0"],
                ["norm_q", "norm_k"],
            ),
            text: AttentionStream::new(
                &attention,
                layout,
                ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"],
                ["norm_added_q", "norm_added_k"],
            ),
            image_ff,
            text_ff,
        }
    }

    /// # Shapes
    /// Streams `[B, patches, width]` and `[B, words, width]` → the same.
    pub(crate) fn forward(&self, streams: Streams, context: BlockContext, mode: AdapterMode) -> Streams {
        let modulation = self.modulation.forward(context.condition, mode);
        let [image_attention, image_ff, text_attention, text_ff] = Branch::all(&modulation);
        let inputs = Streams {
            image: image_attention.modulate(&streams.image),
            text: text_attention.modulate(&streams.text),
        };
        let updates = self.attend(&inputs, context, mode);
        let image = image_attention.add(&streams.image, &updates.image);
        let text = text_attention.add(&streams.text, &updates.text);
        Streams {
            image: image_ff.add(&image, &self.image_ff.forward(&image_ff.modulate(&image), mode)),
            text: text_ff.add(&text, &self.text_ff.forward(&text_ff.modulate(&text), mode)),
        }
    }

    fn attend(&self, streams: &Streams, context: BlockContext, mode: AdapterMode) -> Streams {
        let (text_query_key, text_value) = self.text.project(&streams.text, mode);
        let (image_query_key, image_value) = self.image.project(&streams.image, mode);
        let query_key = Tensor::cat(&[text_query_key, image_query_key], 1);
        let value = Tensor::cat(&[text_value, image_value], 1);
        let mixed = rotary_attention(&query_key, &value, context.rotation, context.mask);
        // Split, where narrowing twice would make the backward pass add up two padded tensors.
        let mixed = mixed.split_with_sizes([streams.text.size()[1], streams.image.size()[1]], 1);
        Streams {
            image: self.image.out.forward(&mixed[1], mode),
            text: self.text.out.forward(&mixed[0], mode),
        }
    }

    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        let attention = [&self.image.qkv, &self.image.out, &self.text.qkv, &self.text.out];
        std::iter::once(self.modulation.projection())
            .chain(attention)
            .chain(self.image_ff.projections())
            .chain(self.text_ff.projections())
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let attention = [&mut self.image.qkv, &mut self.image.out, &mut self.text.qkv, &mut self.text.out];
        std::iter::once(self.modulation.projection_mut())
            .chain(attention)
            .chain(self.image_ff.projections_mut())
            .chain(self.text_ff.projections_mut())
    }

    pub(crate) fn norms(&self) -> [OtherTensor; 2] {
        [self.image.norm.tensor(), self.text.norm.tensor()]
    }
}
