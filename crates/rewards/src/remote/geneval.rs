//! GenEval on a server: whether the objects that a prompt asks for are there, by a detector.
//!
//! Source: app_geneval.py and reward_server/gen_eval.py of yifan123/reward-server at 7131478.

use std::time::Duration;

use pickle::Value;
use scenes::RgbImage;
use serde::Deserialize;

use super::batch::Batch;
use super::error::RemoteError;
use super::exchange::Exchange;
use super::http::HttpClient;
use super::options::OptionKeys;
use super::pickle_server::{PickleServer, PickledReply};
use super::unfinished::Unfinished;
use crate::error::RewardError;
use crate::resources::Resources;
use crate::reward::{PromptRecord, Reward, Score};

const KEYS: OptionKeys = OptionKeys {
    name: "geneval",
    default_url: Some("http://127.0.0.1:18085"),
    own: &["batch_size", "only_strict"],
};
/// What the server says in the place of a verdict for the tags that an image does not have.
const DOES_NOT_APPLY: f32 = -10.0;

/// Scores by GenEval; every prompt needs its row of GenEval's metadata.
///
/// Extras: `strict_accuracy` (exactly what was asked, nothing else), also per tag as `strict_accuracy/TAG`; without
/// `only_strict` also `accuracy`, GenEval's own verdict, in the same ways.
pub struct GenevalReward {
    server: PickleServer,
    only_strict: bool,
}

#[derive(Deserialize)]
#[serde(default)]
struct Options {
    batch_size: usize,
    only_strict: bool,
}

impl Default for Options {
    /// As the reference trains.
    fn default() -> Self {
        Self { batch_size: 64, only_strict: true }
    }
}

impl GenevalReward {
    /// Takes the options.
    ///
    /// # Errors
    /// If they are wrong.
    pub fn new(options: &serde_json::Value, resources: &Resources) -> Result<Self, RewardError> {
        let (connection, Options { batch_size, only_strict }) = KEYS.parse(options, resources)?;
        let batch_size = KEYS.at_least_one("batch_size", batch_size)?;
        let (client, unfinished) = (HttpClient::new(&KEYS, connection)?, Unfinished::default());
        let server = PickleServer { name: KEYS.name, client, batch_size, unfinished };
        Ok(Self { server, only_strict })
    }

    fn score_batch(&self, batch: Batch) -> Result<Vec<Score>, RewardError> {
        let rows = batch.prompts.iter().map(metadata_row).collect::<Result<_, _>>()?;
        let beside = vec![("meta_datas", Value::List(rows)), ("only_strict", Value::Bool(self.only_strict))];
        let exchange = self.server.exchange(batch, beside)?;
        let scores = self.read_reply(exchange, batch.images.len());
        scores.map_err(|problem| self.server.scorer().error(problem))
    }

    /// Reads what the server replied to so many images.
    ///
    /// # Errors
    /// If that is no reply to them.
    pub fn read_reply(&self, exchange: Exchange, n_images: usize) -> Result<Vec<Score>, RemoteError> {
        let reply = self.server.reply(exchange, n_images)?;
        let mut scores: Vec<Score> = reply.numbers(&["scores"])?.into_iter().map(Score::from).collect();
        add_verdicts(&mut scores, "strict_accuracy", &reply, ["strict_rewards", "group_strict_rewards"])?;
        // With `only_strict` the server has not looked, and sends zeros.
        if !self.only_strict {
            add_verdicts(&mut scores, "accuracy", &reply, ["rewards", "group_rewards"])?;
        }
        Ok(scores)
    }
}

fn add_verdicts(
    scores: &mut [Score],
    name: &str,
    reply: &PickledReply,
    [all, by_tag]: [&str; 2],
) -> Result<(), RemoteError> {
    for (score, verdict) in scores.iter_mut().zip(reply.numbers(&[all])?) {
        score.extras.insert(name.to_owned(), verdict);
    }
    for (tag, verdicts) in reply.numbers_by_name(by_tag)? {
        for (score, verdict) in scores.iter_mut().zip(verdicts) {
            if verdict != DOES_NOT_APPLY {
                score.extras.insert(format!("{name}/{tag}"), verdict);
            }
        }
    }
    Ok(())
}

/// The prompt's row as a dictionary, with the keys that the server cannot do without.
fn metadata_row(record: &PromptRecord) -> Result<Value, RewardError> {
    let refuse = |key: &str, problem: &str| RewardError::MetadataValue {
        prompt: record.prompt.clone(),
        key: key.to_owned(),
        problem: problem.to_owned(),
    };
    let serde_json::Value::Object(row) = &record.metadata else {
        return Err(refuse("", "there is none; `geneval` needs GenEval's rows, as JSONL"));
    };
    for key in ["tag", "prompt"] {
        if !row.get(key).is_some_and(serde_json::Value::is_string) {
            return Err(refuse(key, "is no text; `geneval` needs GenEval's rows"));
        }
    }
    from_json(&record.metadata).ok_or_else(|| refuse("", "holds an integer of more than 64 bits"))
}

fn from_json(json: &serde_json::Value) -> Option<Value> {
    Some(match json {
        serde_json::Value::Null => Value::None,
        serde_json::Value::Bool(truth) => Value::Bool(*truth),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Float(number.as_f64().filter(|_| number.is_f64())?),
        },
        serde_json::Value::String(text) => Value::String(text.clone()),
        serde_json::Value::Array(elements) => {
            Value::List(elements.iter().map(from_json).collect::<Option<_>>()?)
        }
        serde_json::Value::Object(items) => {
            let items =
                items.iter().map(|(key, value)| Some((Value::String(key.clone()), from_json(value)?)));
            Value::Dict(items.collect::<Option<_>>()?)
        }
    })
}

impl Reward for GenevalReward {
    fn name(&self) -> &str {
        KEYS.name
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_become_dictionaries() {
        let metadata =
            json!({"tag": "counting", "prompt": "two cats", "include": [{"count": 2, "weight": 0.5}]});
        let row =
            metadata_row(&PromptRecord { prompt: "two cats".to_owned(), metadata }).expect("a good row");
        assert_eq!(row.get("tag").and_then(Value::as_str), Some("counting"));
        let Some([cat]) = row.get("include").and_then(Value::as_sequence) else { panic!("{row:?}") };
        assert_eq!(cat.get("count"), Some(&Value::Int(2)));
        assert_eq!(cat.get("weight"), Some(&Value::Float(0.5)));
    }

    #[test]
    fn prompts_without_rows_are_refused_before_anything_is_sent() {
        let told = |metadata| {
            let record = PromptRecord { prompt: "a cat".to_owned(), metadata };
            metadata_row(&record).expect_err("must be refused").to_string()
        };
        assert!(told(serde_json::Value::Null).contains("needs GenEval's rows, as JSONL"));
        assert!(told(json!({"prompt": "a cat"})).contains("key `tag`: is no text"));
        assert!(told(json!({"tag": "colors"})).contains("key `prompt`: is no text"));
        let huge = json!({"tag": "x", "prompt": "x", "seed": u64::MAX});
        assert!(told(huge).contains("more than 64 bits"));
    }
}
