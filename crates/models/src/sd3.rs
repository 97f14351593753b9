//! The transformer of SD3 and SD3.5: joint blocks over image patches and text tokens.
//!
//! Source: Esser et al. 2024 (MMDiT); the second image attention and query/key norms of SD3.5 as in diffusers'
//! `SD3Transformer2DModel`, whose folder layout and tensor names are read.

mod adapter;
mod attention;
mod block;
mod config;
mod embedding;
mod modulation;

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;
use crate::layers::layer_norm;
use crate::projection::{AdapterMode, Projection};
use crate::weights::{Init, Scope, Weights};
use block::Block;
pub use config::Sd3Config;
use embedding::{ConditionEmbedding, PatchEmbedding};
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

/// What the network is asked about.
struct Query<'a> {
    latents: &'a Tensor,
    timestep: &'a Tensor,
    text: &'a Tensor,
    pooled: &'a Tensor,
}

impl Sd3Transformer {
    /// Takes the network's tensors from a scope; what is wrong with them is told by [`Weights::finish`].
    pub fn new(scope: &Scope, config: &Sd3Config) -> Self {
        let width = config.width();
        let outputs = config.patch_size * config.patch_size * config.velocity_channels();
        let block = |i| Block::new(&scope.child("transformer_blocks").child(i), config, i);
        Self {
            patches: PatchEmbedding::new(&scope.child("pos_embed"), config),
            condition: ConditionEmbedding::new(&scope.child("time_text_embed"), config),
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
    pub fn open(folder: &Path, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let config = Sd3Config::read(&folder.join("config.json"))?;
        let weights = Weights::open(folder, "diffusion_pytorch_model", kind, device)?;
        let transformer = Self::new(&weights.scope(""), &config);
        weights.finish().map(|()| transformer)
    }

    /// The configuration that the network was built from.
    pub fn config(&self) -> &Sd3Config {
        &self.config
    }

    /// Checks that the network can work on latent images of this size, in latent pixels.
    ///
    /// # Errors
    /// If a side is not a multiple of the patch, or has more patches than the table of positions.
    pub fn check_size(&self, height: i64, width: i64) -> Result<(), ModelError> {
        let (patch, most) = (self.config.patch_size, self.config.patch_size * self.config.pos_embed_max_size);
        match [height, width].into_iter().find(|side| *side < patch || side % patch != 0 || *side > most) {
            None => Ok(()),
            Some(side) => Err(ModelError::Input(format!(
                "a latent image of {height}x{width} does not fit the transformer: {side} must be a multiple of \
                 {patch} and at most {most}"
            ))),
        }
    }

    /// The velocity, with the adapter as of the last refresh if there is one, and without gradients to it.
    ///
    /// # Shapes
    /// `latents` `[batch, channels, height, width]`, `timestep` `[batch]` in 0..1000, `text` `[batch, words, joint
    /// width]`, `pooled` `[batch, pooled width]` → `[batch, channels, height, width]`.
    ///
    /// # Panics
    /// If the shapes do not fit; [`Sd3Transformer::check_size`] tells beforehand.
    pub fn forward(&self, latents: &Tensor, timestep: &Tensor, text: &Tensor, pooled: &Tensor) -> Tensor {
        self.run(&Query { latents, timestep, text, pooled }, AdapterMode::Frozen)
    }

    /// As [`Sd3Transformer::forward`], but without the adapter: the reference of the KL term.
    pub fn forward_reference(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &Tensor,
        pooled: &Tensor,
    ) -> Tensor {
        self.run(&Query { latents, timestep, text, pooled }, AdapterMode::Off)
    }

    /// As [`Sd3Transformer::forward`], but with the adapter as it is now and with gradients to it.
    ///
    /// In float32, right after a refresh, both use the same effective weights to the last bit.
    pub fn forward_training(
        &self,
        latents: &Tensor,
        timestep: &Tensor,
        text: &Tensor,
        pooled: &Tensor,
    ) -> Tensor {
        self.run(&Query { latents, timestep, text, pooled }, AdapterMode::Trainable)
    }

    fn run(&self, query: &Query, mode: AdapterMode) -> Tensor {
        let condition = self.condition.forward(query.timestep, query.pooled, mode);
        let mut chunks = self.modulation.forward(&condition, mode);
        let mut streams = (self.patches.forward(query.latents), self.text.forward(query.text, mode));
        for block in &self.blocks {
            streams = block.forward(streams, &mut chunks, &self.config, mode);
        }
        let image = chunks.scale_and_shift(&layer_norm(&streams.0, block::EPSILON));
        self.unpatchify(&self.out.forward(&image, mode), &query.latents.size())
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

    fn projections(&self) -> impl Iterator<Item = &Projection> {
        let blocks = self.blocks.iter().flat_map(Block::projections);
        self.condition
            .projections()
            .chain([&self.text, self.modulation.projection()])
            .chain(blocks)
            .chain([&self.out])
    }

    fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let blocks = self.blocks.iter_mut().flat_map(Block::projections_mut);
        self.condition
            .projections_mut()
            .chain([&mut self.text, self.modulation.projection_mut()])
            .chain(blocks)
            .chain([&mut self.out])
    }

    /// The tensors that training the whole network moves, in place; modules evaluated together share one, whose name
    /// joins theirs with `+`. They require gradients once the caller says so on the returned handles.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let norms = self.blocks.iter().flat_map(Block::norms).map(|norm| norm.parameter);
        self.patches
            .parameters()
            .into_iter()
            .chain(self.projections().flat_map(Projection::parameters))
            .chain(norms)
            .collect()
    }

    /// The tensors of the network by their names in a checkpoint, without the adapter.
    pub fn checkpoint(&self) -> Vec<(String, Tensor)> {
        let norms = self.blocks.iter().flat_map(Block::norms).flat_map(|norm| norm.checkpoint);
        self.patches
            .checkpoint()
            .into_iter()
            .chain(self.projections().flat_map(Projection::checkpoint))
            .chain(norms)
            .collect()
    }
}
