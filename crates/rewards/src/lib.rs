//! Scores of images: `trait Reward`, one module per scorer, and the registry that builds them by name.
//!
//! Invariants:
//! 1. A scorer sees pixels, the prompt's words and its metadata, nothing of how the image was made.
//! 2. Equal inputs give equal scores, whatever they are batched with.
//! 3. No score that leaves a scorer is NaN or infinite.

mod error;
mod jpeg;
mod registry;
mod reward;
mod shapes;
mod weighted;

pub use error::RewardError;
pub use jpeg::{JpegReward, jpeg_bytes};
pub use registry::{NAMES, build};
pub use reward::{PromptRecord, Reward, Score, score_checked};
pub use scenes::RgbImage;
pub use shapes::{Detection, ShapesOptions, ShapesReward, detect};
pub use weighted::WeightedReward;
