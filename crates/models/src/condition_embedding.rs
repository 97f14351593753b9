//! The vector that modulates every block: time, pooled text and, in distilled networks, the strength of guidance.

use tch::{Kind, Tensor};

use crate::layers::{timestep_embedding, timestep_frequencies};
use crate::projection::{AdapterMode, Projection};
use crate::weights::Scope;

/// Channels of the sinusoidal embedding of a number, the same in every published model.
const CHANNELS: i64 = 256;

/// Two linear layers with a SiLU between them, for each thing that is embedded; their outputs are added up.
pub(crate) struct ConditionEmbedding {
    frequencies: Tensor,
    timestep: [Projection; 2],
    guidance: Option<[Projection; 2]>,
    text: [Projection; 2],
}

impl ConditionEmbedding {
    /// Embeds time and `pooled_width` features of text into `width`, and guidance if `with_guidance`.
    pub(crate) fn new(scope: &Scope, pooled_width: i64, width: i64, with_guidance: bool) -> Self {
        let pair = |name: &str, inputs| {
            let scope = scope.child(name);
            let first = Projection::single(&scope.child("linear_1"), inputs, width);
            [first, Projection::single(&scope.child("linear_2"), width, width)]
        };
        Self {
            frequencies: timestep_frequencies(CHANNELS, scope.device()),
            timestep: pair("timestep_embedder", CHANNELS),
            guidance: with_guidance.then(|| pair("guidance_embedder", CHANNELS)),
            text: pair("text_embedder", pooled_width),
        }
    }

    /// # Shapes
    /// `timestep` `[batch]` in 0..1000, `pooled` `[batch, pooled width]` → `[batch, width]`; `guidance_scale` is the same
    /// for all rows, and counted in thousandths as time is.
    pub(crate) fn forward(
        &self,
        timestep: &Tensor,
        guidance_scale: f64,
        pooled: &Tensor,
        mode: AdapterMode,
    ) -> Tensor {
        let through = |layers: &[Projection; 2], x: &Tensor| {
            layers[1].forward(&layers[0].forward(x, mode).silu(), mode)
        };
        let number = |layers: &[Projection; 2], x: &Tensor| {
            through(layers, &timestep_embedding(x, &self.frequencies).to_kind(pooled.kind()))
        };
        let mut numbers = number(&self.timestep, timestep);
        if let Some(layers) = &self.guidance {
            let rows = [timestep.size()[0]];
            let guidance = Tensor::full(rows, guidance_scale * 1000.0, (Kind::Float, timestep.device()));
            numbers += number(layers, &guidance);
        }
        numbers + through(&self.text, pooled)
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.timestep.iter_mut().chain(self.guidance.iter_mut().flatten()).chain(&mut self.text)
    }

    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.timestep.iter().chain(self.guidance.iter().flatten()).chain(&self.text)
    }
}
