//! What can go wrong in a scorer.

use std::time::Duration;

use models::ModelError;
use scenes::ImageError;
use thiserror::Error;

use crate::ocr::tesseract::OcrError;
use crate::remote::RemoteError;
use crate::resources::ModelLookupError;

impl RewardError {
    /// Whether the same images may be scored by trying again later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Remote { problem, .. } => problem.may_pass(),
            Self::Ocr(problem) => problem.may_pass(),
            Self::GivenUp { problem, .. } => problem.may_pass(),
            _ => false,
        }
    }

    /// Whether it is for want of something on this host, so that another one may do better.
    pub fn is_of_host(&self) -> bool {
        matches!(self, Self::ModelLookup { .. } | Self::Model { .. } | Self::Ocr(_))
    }

    /// Whether the device has too little memory for the batch.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. })
    }

    /// Position in its batch of the image that the error is about, if it is about one.
    pub fn image(&self) -> Option<usize> {
        match self {
            Self::Image { index, .. }
            | Self::ImageSize { index, .. }
            | Self::NotFinite { index, .. }
            | Self::Jpeg { index, .. }
            | Self::Png { index, .. } => Some(*index),
            Self::Remote { problem, .. } => problem.image(),
            Self::GivenUp { problem, .. } => problem.image(),
            _ => None,
        }
    }
}

/// A scorer that could not be built, or did not score.
#[derive(Debug, Error)]
pub enum RewardError {
    /// No scorer has this name.
    #[error("unknown reward `{name}`; did you mean `{nearest}`? (there are: {known})")]
    UnknownName {
        /// The name asked for.
        name: String,
        /// The known name nearest to it.
        nearest: &'static str,
        /// Every known name.
        known: String,
    },
    /// The device has too little memory for the batch.
    #[error("reward `{name}` is out of memory ({told}); move it to a server of its own, or to the CPU")]
    OutOfMemory {
        /// Name of the scorer.
        name: String,
        /// What libtorch said.
        told: String,
    },
    /// An option that the scorer does not have, or of the wrong kind.
    #[error("option `{key}` of reward `{name}`: {problem}")]
    Options {
        /// Name of the scorer.
        name: String,
        /// Path of the option.
        key: String,
        /// What serde says.
        problem: serde_json::Error,
    },
    /// An option out of its range.
    #[error("option `{key}` of reward `{name}` is {value}; use {allowed}")]
    OptionRange {
        /// Name of the scorer.
        name: String,
        /// The option.
        key: &'static str,
        /// What was given.
        value: f32,
        /// Values that work, in words.
        allowed: &'static str,
    },
    /// An option whose value makes no sense.
    #[error("option `{key}` of reward `{name}`: {problem}")]
    OptionValue {
        /// Name of the scorer.
        name: String,
        /// The option.
        key: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The address of a server that does not parse.
    #[error("option `url` of reward `{name}` is `{url}`: {problem}; give `http://host:port`")]
    Url {
        /// Name of the scorer.
        name: String,
        /// The address, without what may be secret in it.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Not one prompt for each image.
    #[error("got {images} images and {prompts} prompts; give one prompt for each image")]
    Lengths {
        /// Number of images.
        images: usize,
        /// Number of prompts.
        prompts: usize,
    },
    /// A broken image buffer.
    #[error("image {index}: {problem}")]
    Image {
        /// Position in the batch.
        index: usize,
        /// What is wrong with it.
        problem: ImageError,
    },
    /// An image of a size that the scorer does not take.
    #[error("image {index} is {width} x {height}; reward `{name}` takes {allowed}")]
    ImageSize {
        /// Position in the batch.
        index: usize,
        /// Columns.
        width: usize,
        /// Rows.
        height: usize,
        /// Name of the scorer.
        name: &'static str,
        /// The sizes it takes.
        allowed: &'static str,
    },
    /// Metadata that lacks a key, or holds a value of the wrong kind.
    #[error("metadata of prompt `{prompt}`, key `{key}`: {problem}")]
    Metadata {
        /// The prompt's words.
        prompt: String,
        /// Path of the key.
        key: String,
        /// What serde says.
        problem: serde_json::Error,
    },
    /// Metadata with a value that makes no sense.
    #[error("metadata of prompt `{prompt}`, key `{key}`: {problem}")]
    MetadataValue {
        /// The prompt's words.
        prompt: String,
        /// Path of the key.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A score that is not a number.
    #[error("reward `{name}` of image {index} is {value}; a score must be finite")]
    NotFinite {
        /// Name of the scorer.
        name: String,
        /// Position in the batch.
        index: usize,
        /// The score.
        value: f32,
    },
    /// The JPEG encoder refused an image.
    #[error("image {index} cannot be encoded as JPEG: {problem}")]
    Jpeg {
        /// Position in the batch.
        index: usize,
        /// What the encoder says.
        problem: turbojpeg::Error,
    },
    /// The PNG encoder refused an image.
    #[error("image {index} cannot be encoded as PNG: {problem}")]
    Png {
        /// Position in the batch.
        index: usize,
        /// What the encoder says.
        problem: image::ImageError,
    },
    /// A scorer in another process that did not score.
    #[error("reward `{name}` at {url}: {problem}")]
    Remote {
        /// Name of the scorer.
        name: String,
        /// Where its server is, without credentials.
        url: String,
        /// Why not.
        problem: Box<RemoteError>,
    },
    /// A scorer that was waited for in vain.
    #[error("{problem}; it was waited for {} s, which is all its patience", patience.as_secs_f64())]
    GivenUp {
        /// How long it was waited for.
        patience: Duration,
        /// Its last failure.
        problem: Box<RewardError>,
    },
    /// The program that reads text could not read.
    #[error(transparent)]
    Ocr(#[from] OcrError),
    /// The folder of a scorer's network is not found.
    #[error("reward `{name}`: {problem}")]
    ModelLookup {
        /// Name of the scorer.
        name: &'static str,
        /// What is missing where.
        problem: ModelLookupError,
    },
    /// A scorer's network that cannot be opened, or does not take its input.
    #[error("reward `{name}`: {problem}")]
    Model {
        /// Name of the scorer.
        name: &'static str,
        /// What is wrong with it.
        problem: Box<ModelError>,
    },
    /// A prompt that a scorer cannot read.
    #[error("reward `{name}` cannot take the prompt `{prompt}`: {problem}")]
    Prompt {
        /// Name of the scorer.
        name: &'static str,
        /// The prompt's words.
        prompt: String,
        /// What is wrong with it.
        problem: Box<ModelError>,
    },
    /// A scorer that did not score every image once.
    #[error("reward `{name}` gave {scores} scores for {images} images; this is a bug of the scorer")]
    ScoreCount {
        /// Name of the scorer.
        name: String,
        /// Number of images.
        images: usize,
        /// Number of scores.
        scores: usize,
    },
    /// Numbers beside the scores that are too many, or have names that are empty or too long.
    #[error(
        "reward `{name}` tells of {got} numbers beside its scores; at most {} with names of 1 to {} bytes are taken",
        protocol::push_tensors::MOST_EXTRAS,
        protocol::push_tensors::LONGEST_EXTRA_KEY
    )]
    Extras {
        /// Name of the reward.
        name: String,
        /// How many there are.
        got: usize,
    },
    /// A weighted sum without parts.
    #[error("a weighted reward needs at least one part; name a reward")]
    NoParts,
}
