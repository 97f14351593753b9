//! The transformer of Qwen-Image: blocks over an image and a text stream that attend to each other.
//!
//! The network takes and gives latent images; that its blocks see patches of 2×2 is its own affair.
//!
//! Source: Wu et al. 2025 (Qwen-Image technical report); diffusers 0.38, `models/transformers/transformer_qwenimage.py`,
//! whose folder layout and tensor names are read.

mod attention;
mod block;
mod config;
mod positions;

use std::path::Path;

use tch::{Kind, Tensor};

use crate::error::ModelError;
use crate::layers::{layer_norm, rms_norm, timestep_embedding, timestep_frequencies};
use crate::network::{Network, OtherTensor, Query, Streams};
use crate::patches::{from_patches, to_patches};
use crate::projection::{AdapterMode, Projection};
use crate::weights::{Init, Scope, WeightOptions, Weights};
use block::{Block, EPSILON};
pub use config::QwenImageConfig;

/// Channels of the sinusoidal timestep embedding, the same in every Qwen-Image model.
const TIMESTEP_CHANNELS: i64 = 256;
/// The embedding counts time from 0 to this, the network from 0 to 1.
const TIMESTEP_SCALE: f64 = 1000.0;

/// The velocity network of a Qwen-Image pipeline, with an optional adapter.
pub struct QwenImageTransformer {
    config: QwenImageConfig,
    image: Projection,
    /// Weight of the norm that text features go through before anything else.
    text_norm: Tensor,
    text: Projection,
    frequencies: Tensor,
    timestep: [Projection; 2],
    blocks: Vec<Block>,
    norm_out: Projection,
    out: Projection,
}

impl QwenImageTransformer {
    /// Takes the network's tensors from a scope; what is wrong with them is told by [`Weights::finish`].
    pub fn new(scope: &Scope, config: &QwenImageConfig) -> Self {
        let width = config.width();
        let timestep = scope.child("time_text_embed.timestep_embedder");
        let block = |i| Block::new(&scope.child("transformer_blocks").child(i), config);
        let zero = |name, outputs| Projection::new(&[(scope.child(name), outputs)], width, Init::Zeros);
        Self {
            image: Projection::single(&scope.child("img_in"), config.in_channels, width),
            text_norm: scope.child("txt_norm").tensor("weight", &[config.joint_attention_dim], Init::Ones),
            text: Projection::single(&scope.child("txt_in"), config.joint_attention_dim, width),
            frequencies: timestep_frequencies(TIMESTEP_CHANNELS, scope.device()),
            timestep: [
                Projection::single(&timestep.child("linear_1"), TIMESTEP_CHANNELS, width),
                Projection::single(&timestep.child("linear_2"), width, width),
            ],
            blocks: (0..config.num_layers).map(block).collect(),
            norm_out: zero("norm_out.linear", 2 * width),
            out: zero("proj_out", config.in_channels),
            config: config.clone(),
        }
    }

    /// Opens the `transformer` folder of a pipeline.
    ///
    /// # Errors
    /// If a file is missing or damaged, the configuration is not supported, or the tensors do not fit it.
    pub fn open(folder: &Path, options: WeightOptions) -> Result<Self, ModelError> {
        let config = QwenImageConfig::read(&folder.join("config.json"))?;
        let weights = Weights::open(folder, "diffusion_pytorch_model", options)?;
        let transformer = Self::new(&weights.scope(""), &config);
        weights.finish().map(|()| transformer)
    }

    /// The configuration that the network was built from.
    pub fn config(&self) -> &QwenImageConfig {
        &self.config
    }

    /// Checks that the network can work on latent images of this size, in latent pixels.
    ///
    /// # Errors
    /// If a side is not a multiple of the patch.
    pub fn check_size(&self, height: i64, width: i64) -> Result<(), ModelError> {
        let patch = self.config.patch_size;
        match [height, width].into_iter().find(|side| *side < patch || side % patch != 0) {
            None => Ok(()),
            Some(side) => Err(ModelError::Input(format!(
                "a latent image of {height}x{width} does not fit the transformer: {side} must be a multiple of {patch}"
            ))),
        }
    }

    /// Timestep `[B]` in 0..1 → `[B, width]`, through the nonlinearity that everything that reads it begins with.
    fn condition(&self, timestep: &Tensor, kind: Kind, mode: AdapterMode) -> Tensor {
        let scaled = timestep.to_kind(Kind::Float) * TIMESTEP_SCALE;
        let embedded = timestep_embedding(&scaled, &self.frequencies).to_kind(kind);
        let hidden = self.timestep[0].forward(&embedded, mode).silu();
        self.timestep[1].forward(&hidden, mode).silu()
    }
}

/// Which keys count, text before image, as what is added to attention's scores: `[B, 1, 1, words + patches]`.
///
/// Positions go by a token's place whether it counts or not, so a row's padding changes nothing for its other tokens.
fn key_mask(text_mask: &Tensor, patches: i64, kind: Kind) -> Tensor {
    let padding = text_mask.eq(0.0).constant_pad_nd([0, patches]);
    padding.zeros_like().to_kind(kind).masked_fill(&padding, f64::NEG_INFINITY).unsqueeze(1).unsqueeze(1)
}

impl Network for QwenImageTransformer {
    /// All blocks read the condition, the rotation of queries and keys, and, where text is masked, the mask.
    fn begin(&self, query: &Query, mode: AdapterMode) -> (Streams, Vec<Tensor>) {
        let (patch, size) = (self.config.patch_size, query.latents.size());
        let grid = (size[2] / patch, size[3] / patch);
        let kind = query.latents.kind();
        let image = self.image.forward(&to_patches(query.latents, patch), mode);
        let text = self.text.forward(&rms_norm(query.text, &self.text_norm, EPSILON), mode);
        let words = query.text.size()[1];
        let rotation = positions::rotation(words, grid, &self.config, query.latents.device());
        let mut shared = vec![self.condition(query.timestep, kind, mode), rotation];
        shared.extend(query.text_mask.map(|mask| key_mask(mask, grid.0 * grid.1, kind)));
        (Streams { image, text }, shared)
    }

    fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block(&self, block_idx: usize, streams: Streams, shared: &[Tensor], mode: AdapterMode) -> Streams {
        self.blocks[block_idx].forward(streams, shared, mode)
    }

    fn end(&self, streams: Streams, shared: &[Tensor], query: &Query, mode: AdapterMode) -> Tensor {
        let modulation = self.norm_out.forward(&shared[0], mode).unsqueeze(1).chunk(2, -1);
        let (scale, shift) = (&modulation[0] + 1.0, &modulation[1]);
        let image = shift.addcmul(&layer_norm(&streams.image, EPSILON), &scale);
        let size = query.latents.size();
        from_patches(&self.out.forward(&image, mode), (size[2], size[3]), self.config.patch_size)
    }

    fn projections(&self) -> Vec<&Projection> {
        let first = [&self.image, &self.text].into_iter().chain(&self.timestep);
        let blocks = self.blocks.iter().flat_map(Block::projections);
        first.chain(blocks).chain([&self.norm_out, &self.out]).collect()
    }

    fn projections_mut(&mut self) -> Vec<&mut Projection> {
        let first = [&mut self.image, &mut self.text].into_iter().chain(&mut self.timestep);
        let blocks = self.blocks.iter_mut().flat_map(Block::projections_mut);
        first.chain(blocks).chain([&mut self.norm_out, &mut self.out]).collect()
    }

    fn other_tensors(&self) -> Vec<OtherTensor> {
        let text_norm = OtherTensor::trained("txt_norm.weight".into(), &self.text_norm);
        std::iter::once(text_norm).chain(self.blocks.iter().flat_map(Block::norms)).collect()
    }
}
