//! How beautiful a picture is, whatever its prompt: five linear layers on CLIP ViT-L/14's features of it.
//!
//! Source: `improved-aesthetic-predictor` (`sac+logos+ava1-l14-linearMSE`); `aesthetic_scorer.py` of Flow-GRPO.

use std::path::{Path, PathBuf};

use models::aesthetic_predictor::AestheticPredictor;
use models::clip_vision::ClipVisionModel;
use models::weights::WeightOptions;
use scenes::RgbImage;
use serde::Deserialize;
use tch::Kind;

use crate::clip::{
    ClipFiles, ClipImageProcessor, DEFAULT_BATCH_SIZE, Preprocessing, Published, score_in_batches,
};
use crate::error::RewardError;
use crate::network_options::{NetworkDtype, check_batch_size, find_model, named};
use crate::resources::Resources;
use crate::reward::{PromptRecord, Reward, Score, check_batch};

const NAME: &str = "aesthetic";
const PUBLISHED: Published =
    Published { model: "openai/clip-vit-large-patch14", processor: "openai/clip-vit-large-patch14" };
/// The published layers as a repository; they began as a file beside the predictor's code.
const PREDICTOR: &str = "trl-lib/ddpo-aesthetic-predictor";

/// Options of the scorer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AestheticOptions {
    /// Folder or `org/name` of CLIP; the published one if not given.
    pub model: Option<PathBuf>,
    /// Folder or `org/name` of the layers; the published ones if not given.
    pub predictor: Option<PathBuf>,
    /// Folder or `org/name` of the preprocessor; if not given, the model's own folder where it has one, else the published
    /// one.
    pub processor: Option<PathBuf>,
    /// Element type of CLIP; the layers have float32.
    pub dtype: NetworkDtype,
    /// Most pictures that the network sees at once.
    pub batch_size: usize,
}

impl Default for AestheticOptions {
    fn default() -> Self {
        let (model, predictor, processor) = (None, None, None);
        Self { model, predictor, processor, dtype: NetworkDtype::Float32, batch_size: DEFAULT_BATCH_SIZE }
    }
}

/// Rewards beautiful pictures.
pub struct AestheticReward {
    vision: ClipVisionModel,
    predictor: AestheticPredictor,
    preprocessing: Preprocessing,
    batch_size: usize,
}

impl AestheticReward {
    /// Opens CLIP's image encoder and the layers.
    ///
    /// # Errors
    /// If an option is out of range, or a folder or file is missing, malformed or not what it should be.
    pub fn open(options: &AestheticOptions, resources: &Resources) -> Result<Self, RewardError> {
        check_batch_size(NAME, options.batch_size)?;
        let asked = (options.model.as_deref(), options.processor.as_deref());
        let files = ClipFiles::find(NAME, asked, &PUBLISHED, resources)?;
        let predictor = options.predictor.as_deref().unwrap_or(Path::new(PREDICTOR));
        let predictor = find_model(NAME, predictor, resources)?;
        let named = named(NAME);
        let weights = options.dtype.weights(resources);
        let vision = ClipVisionModel::open(&files.model, &weights).map_err(named)?;
        let image_size = vision.config().image_size;
        let processor = ClipImageProcessor::open(&files.preprocessor, image_size).map_err(named)?;
        let weights = WeightOptions { kind: Kind::Float, ..weights };
        let predictor = AestheticPredictor::open(&predictor, vision.n_features(), &weights).map_err(named)?;
        let preprocessing = Preprocessing::Pillow(processor);
        Ok(Self { vision, predictor, preprocessing, batch_size: options.batch_size })
    }
}

impl Reward for AestheticReward {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        check_batch(images, prompts)?;
        score_in_batches(NAME, (images, self.batch_size), &self.preprocessing, |pixel_values, _| {
            Ok(self.predictor.forward(&self.vision.image_embeds(pixel_values)))
        })
    }
}
