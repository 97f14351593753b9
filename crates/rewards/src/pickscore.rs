//! PickScore: which picture people would pick for a prompt, `exp(logit_scale) · cos(text, image) / 26`.
//!
//! Source: Kirstain et al. 2023, arXiv:2305.01569; `pickscore_scorer.py` of Flow-GRPO and TempFlow-GRPO, which divide by 26.

use models::clip::ClipModel;

use crate::clip::{ClipImageProcessor, ClipOptions, ClipReward, Preprocessing, PromptEmbeddings, Published};
use crate::error::RewardError;
use crate::network_options::named;
use crate::resources::Resources;

const NAME: &str = "pickscore";
const PUBLISHED: Published =
    Published { model: "yuvalkirstain/PickScore_v1", processor: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K" };
/// Brings good scores near 1.
const DIVISOR: f64 = 26.0;

/// Opens PickScore.
///
/// # Errors
/// If an option is out of range, or a folder or file is missing, malformed or not that of a CLIP model.
pub fn open(options: &ClipOptions, resources: &Resources) -> Result<ClipReward, RewardError> {
    let files = options.find_files(NAME, &PUBLISHED, resources)?;
    let named = named(NAME);
    let model = ClipModel::open(&files.model, &options.dtype.weights(resources)).map_err(named)?;
    let image_size = model.vision.config().image_size;
    let processor = ClipImageProcessor::open(&files.preprocessor, image_size).map_err(named)?;
    Ok(ClipReward {
        name: NAME,
        prompts: PromptEmbeddings::open(&files.tokenizer, &model, resources.device).map_err(named)?,
        preprocessing: Preprocessing::Pillow(processor),
        factor: model.logit_scale / DIVISOR,
        batch_size: options.batch_size,
        model,
    })
}
