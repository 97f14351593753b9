//! The transformer of SD3 and SD3.5: joint blocks over image patches and text tokens.
//!
//! Source: Esser et al. 2024 (MMDiT); the second image attention and query/key norms of SD3.5 as in diffusers'
//! `SD3Transformer2DModel`, whose folder layout and tensor names are read.

mod attention;
mod block;
mod config;
mod embedding;
mod modulation;

use std::path::Path;

use tch::Tensor;

use crate::condition_embedding::ConditionEmbedding;
use crate::error::ModelError;
use crate::layers::layer_norm;
use crate::network::{Network, OtherTensor, Query, Streams};
use crate::projection::{AdapterMode, Projection};
use crate::weights::{Init, Scope, WeightOptions, Weights};
use block::Block;
pub use config::Sd3Config;
use embedding::PatchEmbedding;
use modulation::Modulation;

/// The velocity network of an SD3 pipeline, with an optional adapter.
pub struct Sd3Transformer {
    config: Sd3Config,
    patches: PatchEmbedding,
    condition: ConditionEmbedding,
    text: Projection,
    modulation: Modulation,
    blocks: Vec<Block>,
    out: Projection,
}

impl Sd3Transformer {
    /// Takes the network's tensors from a scope; what is wrong with them is told by [`Weights::finish`].
    pub fn new(scope: &Scope, config: &Sd3Config) -> Self {
        let width = config.width();
        let outputs = config.patch_size * config.patch_size * config.velocity_channels();
        let block = |i| Block::new(&scope.child("transformer_blocks").child(i), config, i);
        Self {
            patches: PatchEmbedding::new(&scope.child("pos_embed"), config),
            condition: ConditionEmbedding::new(
                &scope.child("time_text_embed"),
                Some(config.pooled_projection_dim),
                width,
                false,
            ),
            text: Projection::single(&scope.child("context_embedder"), config.joint_attention_dim, width),
            modulation: Modulation::new(scope, config),
            blocks: (0..config.num_layers).map(block).collect(),
            out: Projection::new(&[(scope.child("proj_out"), outputs)], width, Init::Zeros),
            config: config.clone(),
        }
    }

    /// Opens the `transformer` folder of a pipeline.
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration is not supported, or the tensors do not fit it.
    pub fn open(folder: &Path, options: &WeightOptions) -> Result<Self, ModelError> {
        let config = Sd3Config::read(&folder.join("config.json"))?;
        let weights = Weights::open(folder, "diffusion_pytorch_model", options)?;
        let transformer = Self::new(&weights.scope(""), &config);
        weights.finish().map(|()| transformer)
    }

    /// The configuration that the network was built from.
    pub fn config(&self) -> &Sd3Config {
        &self.config
    }

    /// # Shapes
    /// `[batch, patches, patch² · channels]` → `[batch, channels, height, width]`, of the latents' `size`.
    fn unpatchify(&self, tokens: &Tensor, size: &[i64]) -> Tensor {
        let (patch, channels) = (self.config.patch_size, self.config.velocity_channels());
        let (rows, columns) = (size[2] / patch, size[3] / patch);
        tokens.view([size[0], rows, columns, patch, patch, channels]).permute([0, 5, 1, 3, 2, 4]).reshape([
            size[0],
            channels,
            rows * patch,
            columns * patch,
        ])
    }
}

impl Network for Sd3Transformer {
    /// All blocks read from the modulation of the whole network.
    fn begin(&self, query: &Query, mode: AdapterMode) -> (Streams, Vec<Tensor>) {
        let condition = self.condition.forward(query.timestep, query.guidance_scale, query.pooled, mode);
        let (image, text) = (self.patches.forward(query.latents), self.text.forward(query.text, mode));
        (Streams { image, text }, self.modulation.forward(&condition, mode))
    }

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn width(&self) -> i64 {
        self.config.width()
    }

    fn block(&self, block_idx: usize, streams: Streams, shared: &[Tensor], mode: AdapterMode) -> Streams {
        let mut chunks = self.modulation.chunks_of_block(shared, block_idx);
        self.blocks[block_idx].forward(streams, &mut chunks, &self.config, mode)
    }

    fn end(&self, streams: Streams, shared: &[Tensor], query: &Query, mode: AdapterMode) -> Tensor {
        let mut chunks = self.modulation.chunks_of_block(shared, self.blocks.len());
        let image = chunks.scale_and_shift(&layer_norm(&streams.image, block::EPSILON));
        self.unpatchify(&self.out.forward(&image, mode), &query.latents.size())
    }

    fn projections(&self) -> Vec<&Projection> {
        let blocks = self.blocks.iter().flat_map(Block::projections);
        self.condition
            .projections()
            .chain([&self.text, self.modulation.projection()])
            .chain(blocks)
            .chain([&self.out])
            .collect()
    }

    fn projections_mut(&mut self) -> Vec<&mut Projection> {
        let blocks = self.blocks.iter_mut().flat_map(Block::projections_mut);
        self.condition
            .projections_mut()
            .chain([&mut self.text, self.modulation.projection_mut()])
            .chain(blocks)
            .chain([&mut self.out])
            .collect()
    }

    fn other_tensors(&self) -> Vec<OtherTensor> {
        self.patches.tensors().into_iter().chain(self.blocks.iter().flat_map(Block::norms)).collect()
    }

    fn check_size(&self, height: i64, width: i64) -> Result<(), ModelError> {
        let (patch, most) = (self.config.patch_size, self.config.patch_size * self.config.pos_embed_max_size);
        match [height, width].into_iter().find(|side| *side < patch || side % patch != 0 || *side > most) {
            None => Ok(()),
            Some(side) => Err(ModelError::Input(format!(
                "a latent image of {height}x{width} does not fit the transformer: {side} must be a multiple of \
                 {patch} and at most {most}"
            ))),
        }
    }
}
