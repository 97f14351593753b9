//! Servers of images and prompts in pickle: Flow-GRPO's DeQA, verl-omni's scorers, and those written like them.

use std::time::Duration;

use pickle::Value;
use scenes::RgbImage;
use serde::Deserialize;

use super::batch::Batch;
use super::error::RemoteError;
use super::exchange::Exchange;
use super::http::HttpClient;
use super::options::OptionKeys;
use super::pickle_server::{PickleServer, text};
use super::unfinished::Unfinished;
use crate::error::RewardError;
use crate::resources::Resources;
use crate::reward::{PromptRecord, Reward, Score};

/// What a request holds beside its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Prompts,
}

/// Scores by a server that takes `images` (JPEG), and `prompts` where it looks at them, and gives `outputs` or `scores`.
pub struct FlowGrpoReward {
    server: PickleServer,
    beside: Beside,
}

#[derive(Deserialize)]
#[serde(default)]
struct Options {
    batch_size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { batch_size: 64 }
    }
}

impl FlowGrpoReward {
    /// Any server of images and prompts.
    ///
    /// # Errors
    /// If the options are wrong, or there is no `url`.
    pub fn with_prompts(options: &serde_json::Value, resources: &Resources) -> Result<Self, RewardError> {
        let keys = OptionKeys { name: "flow_grpo_server", default_url: None, own: &["batch_size"] };
        Self::new(&keys, Beside::Prompts, options, resources)
    }

    /// The quality of images by DeQA-Score, without a look at the prompt, 0 to 1.
    ///
    /// # Errors
    /// If the options are wrong.
    pub fn deqa(options: &serde_json::Value, resources: &Resources) -> Result<Self, RewardError> {
        let default_url = Some("http://127.0.0.1:18086");
        let keys = OptionKeys { name: "deqa", default_url, own: &["batch_size"] };
        Self::new(&keys, Beside::Nothing, options, resources)
    }

    fn new(
        keys: &OptionKeys,
        beside: Beside,
        options: &serde_json::Value,
        resources: &Resources,
    ) -> Result<Self, RewardError> {
        let (connection, Options { batch_size }) = keys.parse(options, resources)?;
        let batch_size = keys.at_least_one("batch_size", batch_size)?;
        let (client, unfinished) = (HttpClient::new(keys, connection)?, Unfinished::default());
        Ok(Self { server: PickleServer { name: keys.name, client, batch_size, unfinished }, beside })
    }

    fn score_batch(&self, batch: Batch) -> Result<Vec<Score>, RewardError> {
        let beside = match self.beside {
            Beside::Nothing => Vec::new(),
            Beside::Prompts => {
                let prompts = batch.prompts.iter().map(|record| text(&record.prompt)).collect();
                // verl-omni's servers want to see metadata, and its clients send none.
                vec![("prompts", Value::List(prompts)), ("metadata", Value::Dict(Vec::new()))]
            }
        };
        let exchange = self.server.exchange(batch, beside)?;
        let scores = self.read_reply(exchange, batch.images.len());
        scores.map_err(|problem| self.server.scorer().error(problem))
    }

    /// Reads what the server replied to so many images.
    ///
    /// # Errors
    /// If that is no reply to them.
    pub fn read_reply(&self, exchange: Exchange, n_images: usize) -> Result<Vec<Score>, RemoteError> {
        let scores = self.server.reply(exchange, n_images)?.numbers(&["outputs", "scores"])?;
        Ok(scores.into_iter().map(Score::from).collect())
    }
}

impl Reward for FlowGrpoReward {
    fn name(&self) -> &str {
        self.server.name
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        let PickleServer { batch_size, .. } = self.server;
        self.server.scorer().score_in_batches(images, prompts, batch_size, |batch| self.score_batch(batch))
    }

    fn patience(&self) -> Duration {
        self.server.client.connection().patience
    }

    fn greet_server(&self, patience: Duration) -> Result<(), RewardError> {
        self.server.client.greet(patience).map_err(|problem| self.server.scorer().error(problem))
    }
}
