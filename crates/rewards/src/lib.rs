//! Scores of images: `trait Reward`, one module per scorer, and the registry that builds them by name.
//!
//! Invariants:
//! 1. A scorer sees pixels, the prompt's words and its metadata, nothing of how the image was made.
//! 2. Equal batches give equal scores. Networks round differently in other batches, so a batch is what the caller hands
//!    over, cut by the scorer's own options alone.
//! 3. No score that leaves a scorer is NaN or infinite.

pub mod image_resampling;

mod aesthetic;
mod clip;
mod clipscore;
mod combination;
mod error;
mod hpsv2;
mod hpsv3;
mod jpeg;
mod network_options;
mod ocr;
mod options;
mod persistence;
pub mod pickscore;
mod pixel_preprocessing;
mod qwen2_vl_images;
mod registry;
pub mod remote;
mod resources;
mod reward;
mod shapes;

pub use clip::{ClipOptions, ClipReward};
pub use combination::{RewardPart, weighted_sum};
pub use error::RewardError;
pub use hpsv3::{Hpsv3Files, Hpsv3Network, Hpsv3Reward, IMAGE_TOKEN, REWARD_TOKEN, ScoreDistribution};
pub use jpeg::{JpegReward, jpeg_bytes};
pub use network_options::NetworkDtype;
pub use ocr::{OcrError, OcrOptions, OcrReward};
pub use persistence::{Persistence, RetryVerdict};
pub use qwen2_vl_images::{ImagePatches, PixelBounds, Qwen2VlImageProcessor, TooNarrow, smart_resize};
pub use registry::{build, names};
pub use resources::{FindModel, LookUpVariable, ModelLookupError, Resources, RunIdentity};
pub use reward::{PromptRecord, Reward, Score, check_count, score_checked};
pub use scenes::RgbImage;
pub use shapes::{Detection, ShapesOptions, ShapesReward, detect};
