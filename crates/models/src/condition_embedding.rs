//! The vector that modulates every block: time and, depending on the network, pooled text and the strength of guidance.

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
    text: Option<[Projection; 2]>,
    kind: Kind,
}

impl ConditionEmbedding {
    /// Embeds time into `width`, `pooled_width` features of text where there are some, and guidance if `with_guidance`.
    pub(crate) fn new(scope: &Scope, pooled_width: Option<i64>, width: i64, with_guidance: bool) -> Self {
        let pair = |name: &str, inputs| {
            let scope = scope.child(name);
            let first = Projection::single(&scope.child("linear_1"), inputs, width);
            [first, Projection::single(&scope.child("linear_2"), width, width)]
        };
        Self {
            frequencies: timestep_frequencies(CHANNELS, scope.device()),
            timestep: pair("timestep_embedder", CHANNELS),
            guidance: with_guidance.then(|| pair("guidance_embedder", CHANNELS)),
            text: pooled_width.map(|pooled_width| pair("text_embedder", pooled_width)),
            kind: scope.kind(),
        }
    }

    /// # Shapes
    /// `timestep` `[batch]` in 0..1000, `pooled` `[batch, pooled width]` → `[batch, width]`; `guidance_scale` is the same
    /// for all rows, and counted in thousandths as time is.
    ///
    /// # Panics
    /// If the network embeds text and there are no pooled features.
    pub(crate) fn forward(
        &self,
        timestep: &Tensor,
        guidance_scale: f64,
        pooled: Option<&Tensor>,
        mode: AdapterMode,
    ) -> Tensor {
        let through = |layers: &[Projection; 2], x: &Tensor| {
            layers[1].forward(&layers[0].forward(x, mode).silu(), mode)
        };
        let number = |layers: &[Projection; 2], x: &Tensor| {
            through(layers, &timestep_embedding(x, &self.frequencies).to_kind(self.kind))
        };
        let mut condition = number(&self.timestep, timestep);
        if let Some(layers) = &self.guidance {
            let rows = [timestep.size()[0]];
            let guidance = Tensor::full(rows, guidance_scale * 1000.0, (Kind::Float, timestep.device()));
            condition += number(layers, &guidance);
        }
        if let Some(layers) = &self.text {
            let pooled = pooled.expect("a network that embeds text is given some; else this is a bug");
            condition += through(layers, pooled);
        }
        condition
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        self.timestep
            .iter_mut()
            .chain(self.guidance.iter_mut().flatten())
            .chain(self.text.iter_mut().flatten())
    }

    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        self.timestep.iter().chain(self.guidance.iter().flatten()).chain(self.text.iter().flatten())
    }
}
