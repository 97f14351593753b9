//! The transformer of FLUX.1: blocks over image and text side by side, then blocks over both as one stream.
//!
//! Source: diffusers 0.38, `FluxTransformer2DModel`, whose folder layout and tensor names are read.

mod config;
mod single_block;

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::adaptive_norm::OutputHead;
use crate::condition_embedding::ConditionEmbedding;
use crate::error::ModelError;
use crate::joint_block::{BlockContext, JointBlock, JointBlockLayout};
use crate::network::{Network, OtherTensor, Query, Streams};
use crate::patches::{PACKED_SIDE, check_packable, from_patches, to_patches};
use crate::projection::{AdapterMode, Projection};
use crate::rotary;
use crate::weights::{Scope, WeightOptions, Weights};
pub use config::FluxConfig;
use single_block::SingleBlock;

/// The embedding counts time from 0 to this, the network from 0 to 1.
const TIMESTEP_SCALE: f64 = 1000.0;

/// The velocity network of a FLUX.1 pipeline, with an optional adapter.
pub struct FluxTransformer {
    config: FluxConfig,
    image: Projection,
    text: Projection,
    condition: ConditionEmbedding,
    joint_blocks: Vec<JointBlock>,
    single_blocks: Vec<SingleBlock>,
    output: OutputHead,
}

impl FluxTransformer {
    /// Takes the network's tensors from a scope; what is wrong with them is told by [`Weights::finish`].
    pub fn new(scope: &Scope, config: &FluxConfig) -> Self {
        let width = config.width();
        let layout = JointBlockLayout {
            heads: config.num_attention_heads,
            head_width: config.attention_head_dim,
            modulations: ["norm1.linear", "norm1_context.linear"],
            feed_forwards: ["ff", "ff_context"],
        };
        let joint = |i| JointBlock::new(&scope.child("transformer_blocks").child(i), layout);
        let single = |i| SingleBlock::new(&scope.child("single_transformer_blocks").child(i), config);
        Self {
            image: Projection::single(&scope.child("x_embedder"), config.in_channels, width),
            text: Projection::single(&scope.child("context_embedder"), config.joint_attention_dim, width),
            condition: ConditionEmbedding::new(
                &scope.child("time_text_embed"),
                Some(config.pooled_projection_dim),
                width,
                config.guidance_embeds,
            ),
            joint_blocks: (0..config.num_layers).map(joint).collect(),
            single_blocks: (0..config.num_single_layers).map(single).collect(),
            output: OutputHead::new(scope, width, config.in_channels),
            config: config.clone(),
        }
    }

    /// Opens the `transformer` folder of a pipeline.
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration is not supported, or the tensors do not fit it.
    pub fn open(folder: &Path, options: &WeightOptions) -> Result<Self, ModelError> {
        let config = FluxConfig::read(&folder.join("config.json"))?;
        let weights = Weights::open(folder, "diffusion_pytorch_model", options)?;
        let transformer = Self::new(&weights.scope(""), &config);
        weights.finish().map(|()| transformer)
    }

    /// The configuration that the network was built from.
    pub fn config(&self) -> &FluxConfig {
        &self.config
    }

    /// Rotation of `words` text tokens, which are all at the origin, and of the patches of a latent image, which are at
    /// their row and column.
    fn rotation(&self, words: i64, (height, width): (i64, i64), device: Device) -> Tensor {
        let (rows, columns) = (height / PACKED_SIDE, width / PACKED_SIDE);
        let count = |length: i64| Tensor::arange(length, (Kind::Int64, device));
        let grid = |axis: Tensor| axis.expand([rows, columns], false).flatten(0, 1);
        let patches =
            [count(1).unsqueeze(1), count(rows).unsqueeze(1), count(columns).unsqueeze(0)].map(grid);
        let positions = patches.map(|axis| axis.constant_pad_nd([words, 0]));
        rotary::rotation(&positions, &self.config.axes_dims_rope)
    }
}

fn context(shared: &[Tensor]) -> BlockContext<'_> {
    BlockContext { condition: &shared[0], rotation: &shared[1], mask: None }
}

impl Network for FluxTransformer {
    /// All blocks read the condition and the rotation of queries and keys.
    fn begin(&self, query: &Query, mode: AdapterMode) -> (Streams, Vec<Tensor>) {
        let timestep = query.timestep.to_kind(Kind::Float) * TIMESTEP_SCALE;
        let condition = self.condition.forward(&timestep, query.guidance_scale, query.pooled, mode).silu();
        let size = query.latents.size();
        let rotation = self.rotation(query.text.size()[1], (size[2], size[3]), query.latents.device());
        let streams = Streams {
            image: self.image.forward(&to_patches(query.latents, PACKED_SIDE), mode),
            text: self.text.forward(query.text, mode),
        };
        (streams, vec![condition, rotation])
    }

    fn width(&self) -> i64 {
        self.config.width()
    }

    fn n_blocks(&self) -> usize {
        self.joint_blocks.len() + self.single_blocks.len()
    }

    fn block(&self, block_idx: usize, streams: Streams, shared: &[Tensor], mode: AdapterMode) -> Streams {
        if let Some(block) = self.joint_blocks.get(block_idx) {
            return block.forward(streams, context(shared), mode);
        }
        let single_idx = block_idx - self.joint_blocks.len();
        let Streams { image, text } = if single_idx == 0 { joined(&streams) } else { streams };
        Streams { image: self.single_blocks[single_idx].forward(&image, context(shared), mode), text }
    }

    fn end(&self, streams: Streams, shared: &[Tensor], query: &Query, mode: AdapterMode) -> Tensor {
        let (words, size) = (query.text.size()[1], query.latents.size());
        let image = streams.image.narrow(1, words, streams.image.size()[1] - words);
        let patches = self.output.forward(&image, &shared[0], mode);
        from_patches(&patches, (size[2], size[3]), PACKED_SIDE)
    }

    fn projections(&self) -> Vec<&Projection> {
        let first = [&self.image, &self.text].into_iter().chain(self.condition.projections());
        let joint = self.joint_blocks.iter().flat_map(JointBlock::projections);
        let single = self.single_blocks.iter().flat_map(SingleBlock::projections);
        first.chain(joint).chain(single).chain(self.output.projections()).collect()
    }

    fn projections_mut(&mut self) -> Vec<&mut Projection> {
        let first = [&mut self.image, &mut self.text].into_iter().chain(self.condition.projections_mut());
        let joint = self.joint_blocks.iter_mut().flat_map(JointBlock::projections_mut);
        let single = self.single_blocks.iter_mut().flat_map(SingleBlock::projections_mut);
        first.chain(joint).chain(single).chain(self.output.projections_mut()).collect()
    }

    fn other_tensors(&self) -> Vec<OtherTensor> {
        let joint = self.joint_blocks.iter().flat_map(JointBlock::norms);
        joint.chain(self.single_blocks.iter().map(SingleBlock::norms)).collect()
    }

    fn check_size(&self, height: i64, width: i64) -> Result<(), ModelError> {
        check_packable(height, width)
    }
}

/// Text and image as one stream, and no text beside it.
fn joined(streams: &Streams) -> Streams {
    Streams { image: Tensor::cat(&[&streams.text, &streams.image], 1), text: streams.text.narrow(1, 0, 0) }
}
