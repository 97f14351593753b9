//! HPSv3: how much people would like an image for its prompt, as a vision language model learned it from their choices.
//!
//! The score is the mean μ of the distribution that the network gives, as it is; its log σ goes along for the log.
//!
//! The question around the prompt, `hpsv3/instruction.txt`, is data: the network was trained with these very characters. It
//! is that of the package `hpsv3` 1.0.0, `dataset/data_collator_qwen.py` (MIT licence, © 2024 HPSv3 Team).
//!
//! Everything else follows that package too, `inference.py` and `model/qwen2vl_trainer.py`. It calls the language model
//! without positions, so that tokens of an image are positioned one after another like words, not on their grid; the network
//! was trained that way. Others who run the checkpoint leave positions to `transformers` and get other scores.
//!
//! Of the input only the system's turn comes before the image, so there is no prefix worth keeping between images.
//!
//! Source: Ma et al. 2025, arXiv 2508.03789.

mod network;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use models::qwen2_vl::TokenPositions;
use scenes::RgbImage;
use serde::Deserialize;
use tch::Device;

pub use network::{Hpsv3Files, Hpsv3Network, IMAGE_TOKEN, REWARD_TOKEN, ScoreDistribution};

use crate::error::RewardError;
use crate::image_resampling::resize_bicubic;
use crate::network_options::{NetworkDtype, check_batch_size, find_model, named, prompt_error};
use crate::qwen2_vl_images::{ImagePatches, PixelBounds, TooNarrow, smart_resize};
use crate::resources::Resources;
use crate::reward::{PromptRecord, Reward, Score, check_batch, check_finite};

const NAME: &str = "hpsv3";
/// The published reward.
const MODEL: &str = "MizzenAI/HPSv3";
/// The model that it was trained from, which has the files that the reward's folder lacks.
const PROCESSOR: &str = "Qwen/Qwen2-VL-7B-Instruct";
/// The user's turn after the image, with a place for the prompt.
const INSTRUCTION: &str = include_str!("hpsv3/instruction.txt");
const PROMPT_PLACE: &str = "{text_prompt}";
/// How Qwen2-VL's chat template renders a conversation of one turn, around the user's text.
const BEFORE: &str = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\
                      <|vision_start|><|image_pad|><|vision_end|>";
const AFTER: &str = "<|im_end|>\n<|im_start|>assistant\n";
/// What the sides of images are multiples of, in pixels.
const FACTOR: usize = 28;
/// The size of images before the processor sees them, up to rounding of their sides.
const PIXELS: PixelBounds = PixelBounds { min: 256 * FACTOR * FACTOR, max: 256 * FACTOR * FACTOR };

/// Options of the scorer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hpsv3Options {
    /// Folder or `org/name` of the network's tensors.
    pub model: PathBuf,
    /// Folder or `org/name` of the configuration, tokenizer and preprocessor; by default the model's own folder, if it has
    /// them, else the published ones.
    pub processor: Option<PathBuf>,
    /// Element type of the network; by default bfloat16 on a GPU, float32 elsewhere.
    pub dtype: Option<NetworkDtype>,
    /// Most images that the network sees at once.
    pub batch_size: usize,
}

impl Default for Hpsv3Options {
    fn default() -> Self {
        Self { model: MODEL.into(), processor: None, dtype: None, batch_size: 4 }
    }
}

/// Rewards images that people would choose.
pub struct Hpsv3Reward {
    network: Hpsv3Network,
    batch_size: usize,
}

impl Hpsv3Reward {
    /// Opens the network.
    ///
    /// # Errors
    /// If an option is out of range, or a folder or file is missing, malformed or not that of HPSv3.
    pub fn new(options: Hpsv3Options, resources: &Resources) -> Result<Self, RewardError> {
        check_batch_size(NAME, options.batch_size)?;
        let files = find_files(&options, resources)?;
        let usual = match resources.device {
            Device::Cuda(_) => NetworkDtype::Bfloat16,
            _ => NetworkDtype::Float32,
        };
        let weights = options.dtype.unwrap_or(usual).weights(resources);
        let network = Hpsv3Network::open(&files, &weights).map_err(named(NAME))?;
        Ok(Self { network, batch_size: options.batch_size })
    }

    fn patches(&self, index: usize, image: &RgbImage) -> Result<ImagePatches, RewardError> {
        resized(image).and_then(|image| self.network.patches(&image)).map_err(|TooNarrow| {
            RewardError::ImageSize {
                index,
                width: image.width,
                height: image.height,
                name: NAME,
                allowed: "images whose longer side is at most 200 times the shorter",
            }
        })
    }

    /// The tokens of each distinct prompt, with one for the image.
    fn tokens<'a>(&self, prompts: &'a [PromptRecord]) -> Result<HashMap<&'a str, Vec<i64>>, RewardError> {
        let mut known = HashMap::new();
        for record in prompts {
            let prompt = record.prompt.as_str();
            if !known.contains_key(prompt) {
                let tokens = self.network.tokens(&question(prompt));
                let tokens = tokens.map_err(|problem| prompt_error(NAME, prompt, problem))?;
                known.insert(prompt, tokens);
            }
        }
        Ok(known)
    }
}

impl Reward for Hpsv3Reward {
    fn name(&self) -> &str {
        NAME
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        check_batch(images, prompts)?;
        let tokens = self.tokens(prompts)?;
        let mut scores = Vec::with_capacity(images.len());
        for (images, prompts) in images.chunks(self.batch_size).zip(prompts.chunks(self.batch_size)) {
            let patches = (scores.len()..)
                .zip(images)
                .map(|(index, image)| self.patches(index, image))
                .collect::<Result<Vec<_>, _>>()?;
            let texts: Vec<Vec<i64>> = patches
                .iter()
                .zip(prompts)
                .map(|(image, record)| self.network.with_image(&tokens[record.prompt.as_str()], image.grid))
                .collect();
            let judged = self.network.score(&texts, &patches, TokenPositions::InSequence);
            let judged = judged.map_err(named(NAME))?;
            for distribution in judged {
                let score = score(distribution);
                check_finite(NAME, scores.len(), &score)?;
                scores.push(score);
            }
        }
        Ok(scores)
    }
}

fn score(ScoreDistribution { mu, log_sigma }: ScoreDistribution) -> Score {
    Score { value: mu, extras: BTreeMap::from([("log_sigma".to_owned(), log_sigma)]) }
}

fn find_files(options: &Hpsv3Options, resources: &Resources) -> Result<Hpsv3Files, RewardError> {
    let find = |model: &PathBuf| find_model(NAME, model, resources);
    let model = find(&options.model)?;
    let processor = match &options.processor {
        Some(processor) => find(processor)?,
        None if Hpsv3Files::is_processor(&model) => model.clone(),
        None => find(&PROCESSOR.into())?,
    };
    Ok(Hpsv3Files { model, processor })
}

/// The image at the size that the package gives all of them, before the processor resizes it once more.
fn resized(image: &RgbImage) -> Result<RgbImage, TooNarrow> {
    let (width, height) = smart_resize((image.width, image.height), FACTOR, PIXELS)?;
    Ok(resize_bicubic(image, width, height))
}

/// The conversation that asks for a prompt's score.
fn question(prompt: &str) -> String {
    let (start, end) =
        INSTRUCTION.split_once(PROMPT_PLACE).expect("the instruction has a place for the prompt");
    [BEFORE, start, prompt, end, AFTER].concat()
}
