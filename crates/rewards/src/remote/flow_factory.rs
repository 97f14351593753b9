//! Flow-Factory's remote rewards: JSON with images in base64.
//!
//! Source: my_reward_remote.py and reward_server/example_server.py of X-GenGroup/Flow-Factory at a0b2bc5: POST /compute of
//! `prompt` and `image` (PNG), `rewards` back, or `error`; FastAPI's `detail` with status 500 where the server failed.

use std::time::Duration;

use scenes::RgbImage;
use serde::Deserialize;
use serde_json::{Value, json};

use super::batch::{Batch, Scorer, png_base64};
use super::error::RemoteError;
use super::exchange::{Exchange, quoted};
use super::http::HttpClient;
use super::options::OptionKeys;
use super::unfinished::Unfinished;
use crate::error::RewardError;
use crate::resources::Resources;
use crate::reward::{PromptRecord, Reward, Score};

const KEYS: OptionKeys = OptionKeys { name: "flow_factory", default_url: None, own: &["batch_size"] };

/// Scores by a server of Flow-Factory's kind.
pub struct FlowFactoryReward {
    client: HttpClient,
    batch_size: usize,
    unfinished: Unfinished,
}

#[derive(Deserialize)]
#[serde(default)]
struct Options {
    batch_size: usize,
}

impl Default for Options {
    /// As Flow-Factory's examples have it.
    fn default() -> Self {
        Self { batch_size: 16 }
    }
}

#[derive(Deserialize)]
struct ComputeReply {
    rewards: Option<Vec<f64>>,
    error: Option<Value>,
}

impl FlowFactoryReward {
    /// Takes the options.
    ///
    /// # Errors
    /// If they are wrong, or there is no `url`.
    pub fn new(options: &Value, resources: &Resources) -> Result<Self, RewardError> {
        let (connection, Options { batch_size }) = KEYS.parse(options, resources)?;
        let batch_size = KEYS.at_least_one("batch_size", batch_size)?;
        Ok(Self {
            client: HttpClient::new(&KEYS, connection)?,
            batch_size,
            unfinished: Unfinished::default(),
        })
    }

    fn scorer(&self) -> Scorer<'_> {
        Scorer { name: KEYS.name, url: &self.client.connection().url, unfinished: &self.unfinished }
    }

    fn score_batch(&self, batch: Batch) -> Result<Vec<Score>, RewardError> {
        let images = batch.images.iter().enumerate();
        let images = images.map(|(index, image)| png_base64(batch.start + index, image));
        let request = json!({
            "prompt": batch.prompts.iter().map(|record| &record.prompt).collect::<Vec<_>>(),
            "image": images.collect::<Result<Vec<_>, _>>()?,
            "video": null,
            "condition_images": null,
            "condition_videos": null,
        });
        let exchange = self.client.post("/compute", "application/json", request.to_string().as_bytes());
        let scores = exchange.and_then(|exchange| Self::read_reply(exchange, batch.images.len()));
        scores.map_err(|problem| self.scorer().error(problem))
    }

    /// Reads what the server replied to so many images.
    ///
    /// # Errors
    /// If that is no reply to them.
    pub fn read_reply(exchange: Exchange, n_images: usize) -> Result<Vec<Score>, RemoteError> {
        let (reply, exchange) = exchange.json()?;
        let rewards = match reply {
            ComputeReply { error: Some(error), .. } => {
                let message = error.as_str().map_or_else(|| error.to_string(), str::to_owned);
                return Err(RemoteError::Refused { message: quoted(message.as_bytes()) });
            }
            ComputeReply { rewards: Some(rewards), .. } => rewards,
            _ => return Err(exchange.wrong("the reply has no `rewards`".to_owned())),
        };
        if rewards.len() != n_images {
            let (got, key) = (rewards.len(), "rewards".to_owned());
            return Err(RemoteError::Count { sent: n_images, got, key });
        }
        Ok(rewards.into_iter().map(|reward| Score::from(reward as f32)).collect())
    }
}

impl Reward for FlowFactoryReward {
    fn name(&self) -> &str {
        KEYS.name
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        self.scorer().score_in_batches(images, prompts, self.batch_size, |batch| self.score_batch(batch))
    }

    fn patience(&self) -> Duration {
        self.client.connection().patience
    }

    fn greet_server(&self, patience: Duration) -> Result<(), RewardError> {
        self.client.greet(patience).map_err(|problem| self.scorer().error(problem))
    }
}
