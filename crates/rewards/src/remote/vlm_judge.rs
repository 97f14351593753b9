//! A vision language model as the judge: one of one's own choice, or UnifiedReward.

use std::time::Duration;

use regex::Regex;
use scenes::RgbImage;
use serde::Deserialize;
use serde_json::Value;

use super::chat::{Chat, PROMPT};
use super::error::RemoteError;
use super::exchange::Exchange;
use super::http::HttpClient;
use super::options::{Connection, OptionKeys};
use super::unfinished::Unfinished;
use crate::error::RewardError;
use crate::resources::Resources;
use crate::reward::{PromptRecord, Reward, Score};

/// UnifiedReward's own question, which is part of what the network was trained on.
///
/// Source: `unifiedreward_score_sglang` in flow_grpo/rewards.py of yifan123/flow_grpo at 54809b5.
const UNIFIED_REWARD_QUESTION: &str = "<image>\n\
You are given a text caption and a generated image based on that caption. Your task is to evaluate this image based on two \
key criteria:\n\
1. Alignment with the Caption: Assess how well this image aligns with the provided caption. Consider the accuracy of \
depicted objects, their relationships, and attributes as described in the caption.\n\
2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail preservation, color accuracy, \
and overall aesthetic appeal.\n\
Based on the above criteria, assign a score from 1 to 5 after 'Final Score:'.\n\
Your task is provided as follows:\n\
Text Caption: [{prompt}]";

const UNIFIED_REWARD: OptionKeys = OptionKeys {
    name: "unifiedreward",
    default_url: Some("http://127.0.0.1:17140/v1"),
    own: &["model", "max_concurrent"],
};
const VLM_JUDGE: OptionKeys = OptionKeys {
    name: "vlm_judge",
    default_url: None,
    own: &["model", "question", "pattern", "scale", "image_size", "max_concurrent"],
};
/// Largest side that images are resized to, in pixels.
const LARGEST_SIDE: usize = 4096;
/// Most questions at once; each takes a thread.
const MOST_CONCURRENT: usize = 256;

/// Scores by the answers of a vision language model to a question about each image.
pub struct VlmJudge {
    chat: Chat,
}

#[derive(Deserialize)]
#[serde(default)]
struct Options {
    model: String,
    question: String,
    pattern: String,
    scale: f32,
    image_size: Option<usize>,
    max_concurrent: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: String::new(),
            question: String::new(),
            pattern: String::new(),
            scale: 1.0,
            image_size: None,
            max_concurrent: 16,
        }
    }
}

impl VlmJudge {
    /// UnifiedReward: how well an image fits its prompt and how good it looks, 0.2 to 1.
    ///
    /// # Errors
    /// If the options are wrong.
    pub fn unified_reward(options: &Value, resources: &Resources) -> Result<Self, RewardError> {
        let (connection, Options { model, max_concurrent, .. }) = UNIFIED_REWARD.parse(options, resources)?;
        let options = Options {
            model: if model.is_empty() { "UnifiedReward-7b-v1.5".to_owned() } else { model },
            question: UNIFIED_REWARD_QUESTION.to_owned(),
            // The reference takes the first digit of "10" and of "3,5" too, which are no answers to what was asked.
            pattern: r"Final Score:\s*([1-5](?:\.\d+)?)(?:[^\d,]|,\D|,?$)".to_owned(),
            scale: 5.0,
            image_size: Some(512),
            max_concurrent,
        };
        Self::new(&UNIFIED_REWARD, connection, options)
    }

    /// A judge that is asked `question` and whose score is what `pattern` finds, divided by `scale`.
    ///
    /// # Errors
    /// If the options are wrong, or one of `url`, `model`, `question` and `pattern` is missing.
    pub fn of_options(options: &Value, resources: &Resources) -> Result<Self, RewardError> {
        let (connection, options) = VLM_JUDGE.parse(options, resources)?;
        Self::new(&VLM_JUDGE, connection, options)
    }

    /// Reads the score in what the server replied about an image.
    ///
    /// # Errors
    /// If there is none.
    pub fn read_reply(&self, exchange: Exchange) -> Result<f32, RemoteError> {
        self.chat.score_in(exchange)
    }

    fn new(keys: &OptionKeys, connection: Connection, options: Options) -> Result<Self, RewardError> {
        let client = HttpClient::new(keys, connection)?;
        let Options { model, question, scale, image_size, max_concurrent, .. } = options;
        if model.is_empty() {
            return Err(keys.refuse("model", "it is missing; name the model as its server does".to_owned()));
        }
        if !question.contains(PROMPT) {
            let problem = format!("it does not contain `{PROMPT}`, which stands for the prompt");
            return Err(keys.refuse("question", problem));
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(keys.out_of_range("scale", scale.into(), "a finite number above 0"));
        }
        if !(1..=MOST_CONCURRENT).contains(&max_concurrent) {
            return Err(keys.out_of_range("max_concurrent", max_concurrent as f64, "1 to 256"));
        }
        if let Some(size) = image_size.filter(|size| !(1..=LARGEST_SIDE).contains(size)) {
            return Err(keys.out_of_range("image_size", size as f64, "1 to 4096"));
        }
        let pattern = score_pattern(keys, &options.pattern)?;
        let name = keys.name;
        let unfinished = Unfinished::default();
        let chat =
            Chat { name, client, model, question, pattern, scale, max_concurrent, image_size, unfinished };
        Ok(Self { chat })
    }
}

fn score_pattern(keys: &OptionKeys, pattern: &str) -> Result<Regex, RewardError> {
    let regex = Regex::new(pattern).map_err(|error| keys.refuse("pattern", error.to_string()))?;
    match regex.captures_len() {
        2 => Ok(regex),
        n => {
            let problem = format!(
                "it has {} groups; put parentheses around the score alone, as in `Score: ([0-9.]+)`",
                n - 1
            );
            Err(keys.refuse("pattern", problem))
        }
    }
}

impl Reward for VlmJudge {
    fn name(&self) -> &str {
        self.chat.name
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        self.chat.score(images, prompts)
    }

    fn patience(&self) -> Duration {
        self.chat.client.connection().patience
    }

    fn greet_server(&self, patience: Duration) -> Result<(), RewardError> {
        self.chat.client.greet(patience).map_err(|problem| self.chat.scorer().error(problem))
    }
}
