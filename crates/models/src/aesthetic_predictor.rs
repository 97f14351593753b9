//! How beautiful a picture is, by CLIP's features of it: five linear layers with nothing in between.
//!
//! Letters: B pictures, P features.
//!
//! Source: `improved-aesthetic-predictor` (`simple_inference.py`), whose dropout is off when it is used.

use std::path::Path;

use tch::Tensor;

use crate::ModelError;
use crate::layers::Linear;
use crate::weights::{WeightOptions, Weights};

/// Names of the published file without its ending: as a repository has it, and as it was first called.
const STEMS: [&str; 2] = ["aesthetic-model", "sac+logos+ava1-l14-linearMSE"];
/// Number and outputs of each layer; the numbers between are those of dropout.
const LAYERS: [(usize, i64); 5] = [(0, 1024), (2, 128), (4, 64), (6, 16), (7, 1)];

/// The layers.
pub struct AestheticPredictor {
    layers: Vec<Linear>,
}

impl AestheticPredictor {
    /// Opens what `torch.save` wrote, or safetensors with the same names, in `dir`; `n_features` is P.
    ///
    /// # Errors
    /// If the file is missing or malformed, or its tensors are not those of the layers.
    pub fn open(dir: &Path, n_features: i64, options: &WeightOptions) -> Result<Self, ModelError> {
        let weights = match STEMS.map(|stem| Weights::open(dir, stem, options)) {
            [Err(ModelError::MissingFile { .. }), first @ (Ok(_) | Err(ModelError::Damaged { .. }))] => {
                first?
            }
            [today, _] => today?,
        };
        let scope = weights.scope("layers");
        let mut inputs = n_features;
        let layer = |(number, outputs)| {
            let layer = Linear::new(&scope.child(number), inputs, outputs, true);
            inputs = outputs;
            layer
        };
        let layers = LAYERS.into_iter().map(layer).collect();
        weights.finish()?;
        Ok(Self { layers })
    }

    /// # Shapes
    /// `[B, P]`, float32, of length 1 → `[B]`.
    pub fn forward(&self, image_embeds: &Tensor) -> Tensor {
        let score = self.layers.iter().fold(image_embeds.shallow_clone(), |x, layer| layer.forward(&x));
        score.squeeze_dim(-1)
    }
}
