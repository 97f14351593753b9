//! HPSv2.1: which picture people would like for a prompt, `cos(text, image)` of a tuned ViT-H/14.
//!
//! Pictures are resized as tensors of float32 until their longer side fits, by `torchvision`'s antialiased cubic filter, and
//! padded with black. (`torchvision` before 0.17 did not antialias tensors.) A picture whose longer side fits from the start
//! is padded too; the reference forgets to, and then fails unless it is a square. Nothing is rounded to half precision.
//!
//! Source: Wu et al. 2023, arXiv:2306.09341; package `hpsv2` 1.2.0, `img_score.py` and `open_clip/transform.py`.

use models::clip::{ClipModel, OpenClipConfig};

use crate::clip::{
    ClipOptions, ClipReward, Framing, Normalization, Preprocessing, PromptEmbeddings, Published,
    TensorImages, clean,
};
use crate::error::RewardError;
use crate::network_options::named;
use crate::resources::Resources;

const NAME: &str = "hpsv2.1";
/// The model's folder has no tokenizer; this one's is that of `open_clip`.
const PUBLISHED: Published =
    Published { model: "xswu/HPSv2", processor: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K" };
/// `HPS_v2.1_compressed.pt` as published, or `.safetensors` with the same names.
const STEM: &str = "HPS_v2.1_compressed";

/// Opens HPSv2.1.
///
/// # Errors
/// If an option is out of range, or a folder or file is missing, malformed or not that of HPSv2.1.
pub(crate) fn open(options: &ClipOptions, resources: &Resources) -> Result<ClipReward, RewardError> {
    let files = options.find_files(NAME, &PUBLISHED, resources)?;
    let named = named(NAME);
    let config = OpenClipConfig::open_or_vit_h_14(&files.model).map_err(named)?;
    let weights = options.dtype.weights(resources);
    let model = ClipModel::open_open_clip(&files.model, STEM, &config, &weights).map_err(named)?;
    let images = TensorImages {
        framing: Framing::Padded,
        side: model.vision.config().image_size as usize,
        normalization: Normalization { mean: config.mean, std: config.std },
        device: resources.device,
    };
    let prompts = PromptEmbeddings::open(&files.tokenizer, &model, resources.device).map_err(named)?;
    Ok(ClipReward {
        name: NAME,
        prompts: prompts.with_cleaning(clean),
        preprocessing: Preprocessing::Tensors(images),
        factor: 1.0,
        batch_size: options.batch_size,
        model,
    })
}
