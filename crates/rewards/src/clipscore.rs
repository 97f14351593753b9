//! CLIP score: `logits_per_image / 30` of CLIP ViT-L/14, that is `100 · cos(text, image) / 30` with the published scale.
//!
//! Pictures are resized as tensors of float32 by `torchvision`'s antialiased linear filter, which is its default, not by the
//! processor's cubic one. The reference hands over what the decoder gave, not rounded to bytes; here pictures have bytes.
//!
//! Source: `clip_scorer.py` of Flow-GRPO.

use models::clip::ClipModel;

use crate::clip::{
    ClipOptions, ClipReward, ClipSizes, Framing, Normalization, PREPROCESSOR_FILE, Preprocessing,
    PromptEmbeddings, Published, TensorImages,
};
use crate::error::RewardError;
use crate::network_options::named;
use crate::pixel_preprocessing::PixelPreprocessing;
use crate::resources::Resources;

const NAME: &str = "clipscore";
const PUBLISHED: Published =
    Published { model: "openai/clip-vit-large-patch14", processor: "openai/clip-vit-large-patch14" };
/// Brings good scores near 1.
const DIVISOR: f64 = 30.0;

/// Opens the scorer.
///
/// # Errors
/// If an option is out of range, or a folder or file is missing, malformed or not that of a CLIP model.
pub(crate) fn open(options: &ClipOptions, resources: &Resources) -> Result<ClipReward, RewardError> {
    let files = options.find_files(NAME, &PUBLISHED, resources)?;
    let named = named(NAME);
    let model = ClipModel::open(&files.model, &options.dtype.weights(resources)).map_err(named)?;
    let image_size = model.vision.config().image_size;
    let preprocessor = files.preprocessor.join(PREPROCESSOR_FILE);
    let ClipSizes { size, side } = ClipSizes::read(&preprocessor, image_size).map_err(named)?;
    let pixels = PixelPreprocessing::read(&preprocessor).map_err(named)?;
    let normalization = Normalization { mean: pixels.image_mean, std: pixels.image_std };
    let device = resources.device;
    let images = TensorImages { framing: Framing::Cropped(size), side, normalization, device };
    Ok(ClipReward {
        name: NAME,
        prompts: PromptEmbeddings::open(&files.tokenizer, &model, device).map_err(named)?,
        preprocessing: Preprocessing::Tensors(images),
        factor: model.logit_scale / DIVISOR,
        batch_size: options.batch_size,
        model,
    })
}
