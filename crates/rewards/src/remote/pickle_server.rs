//! What servers that speak pickle over HTTP have in common.
//!
//! Source: app_deqa.py and app_geneval.py of yifan123/reward-server at 7131478, flow_grpo/rewards.py of yifan123/flow_grpo
//! at 54809b5, and http_scorer_client.py of verl-project/verl-omni at 0ef63e5: POST of a pickled dictionary, a pickled
//! dictionary back, with status 500 and a traceback in its place where the server failed.

use pickle::{Limits, Value, numbers};

use super::batch::{Batch, Scorer};
use super::error::RemoteError;
use super::exchange::{Exchange, quoted};
use super::http::HttpClient;
use super::unfinished::Unfinished;
use crate::error::RewardError;
use crate::jpeg::jpeg_bytes;

/// Pillow's default, which the reference's clients leave as it is.
const JPEG_QUALITY: i32 = 75;

/// A client of such a server.
pub(super) struct PickleServer {
    pub(super) name: &'static str,
    pub(super) client: HttpClient,
    pub(super) batch_size: usize,
    pub(super) unfinished: Unfinished,
}

/// A reply, and what it is a reply to.
pub(super) struct PickledReply {
    value: Value,
    exchange: Exchange,
    n_images: usize,
}

impl PickleServer {
    pub(super) fn scorer(&self) -> Scorer<'_> {
        Scorer { name: self.name, url: &self.client.connection().url, unfinished: &self.unfinished }
    }

    /// Sends the images of a batch under `images`, with `more` beside them.
    ///
    /// # Errors
    /// If an image cannot be encoded, or nothing comes back.
    pub(super) fn exchange(&self, batch: Batch, more: Vec<(&str, Value)>) -> Result<Exchange, RewardError> {
        let mut items = vec![(text("images"), Value::List(jpeg_files(batch)?))];
        items.extend(more.into_iter().map(|(key, value)| (text(key), value)));
        let request = pickle::write(&Value::Dict(items)).expect("made of plain values; else this is a bug");
        let exchange = self.client.post("", "application/octet-stream", &request);
        exchange.map_err(|problem| self.scorer().error(problem))
    }

    /// Reads what came back for so many images.
    ///
    /// # Errors
    /// If it is no pickled dictionary, or tells of an error.
    pub(super) fn reply(&self, exchange: Exchange, n_images: usize) -> Result<PickledReply, RemoteError> {
        let limits = Limits { bytes: self.client.connection().max_reply_bytes as usize, ..Limits::default() };
        if exchange.body().is_empty() {
            return Err(exchange.wrong("the reply is empty".to_owned()));
        }
        let value = match pickle::read(exchange.body(), &limits) {
            Ok(Value::Call(call)) => {
                let problem = format!("the reply asks to call `{}`, which is not done", call.function);
                return Err(exchange.wrong(problem));
            }
            Ok(value) => value,
            Err(problem) => return Err(RemoteError::Pickle { problem, exchange: Box::new(exchange) }),
        };
        match value.get("error") {
            None | Some(Value::None) => Ok(PickledReply { value, exchange, n_images }),
            Some(Value::String(message)) => Err(RemoteError::Refused { message: quoted(message.as_bytes()) }),
            Some(other) => Err(RemoteError::Refused { message: other.describe() }),
        }
    }
}

impl PickledReply {
    /// The numbers under the first of these keys that there is, one for each image.
    ///
    /// # Errors
    /// If none is there, it holds something else, or a different number of them.
    pub(super) fn numbers(&self, keys: &[&str]) -> Result<Vec<f32>, RemoteError> {
        let found = keys.iter().find_map(|key| self.value.get(key).map(|value| (*key, value)));
        let Some((key, value)) = found else {
            return Err(self.without(&keys.join("` or `")));
        };
        one_for_each(key.to_owned(), value, self.n_images)
    }

    /// The lists of numbers under `key` by the names that they have there.
    ///
    /// # Errors
    /// If there is no dictionary, or it holds something else, or lists of another length.
    pub(super) fn numbers_by_name(&self, key: &str) -> Result<Vec<(String, Vec<f32>)>, RemoteError> {
        let Some(Value::Dict(lists)) = self.value.get(key) else {
            return Err(self.without(key));
        };
        let named = lists.iter().filter_map(|(name, list)| Some((name.as_str()?, list)));
        named
            .map(|(name, list)| {
                Ok((name.to_owned(), one_for_each(format!("{key}.{name}"), list, self.n_images)?))
            })
            .collect()
    }

    fn without(&self, key: &str) -> RemoteError {
        self.exchange.clone().wrong(format!("the reply is {} without `{key}`", self.value.describe()))
    }
}

fn one_for_each(key: String, value: &Value, n_images: usize) -> Result<Vec<f32>, RemoteError> {
    let numbers = match numbers(value) {
        Ok(numbers) => numbers,
        Err(problem) => return Err(RemoteError::Number { key, problem }),
    };
    if numbers.len() != n_images {
        return Err(RemoteError::Count { sent: n_images, got: numbers.len(), key });
    }
    Ok(numbers.into_iter().map(|number| number as f32).collect())
}

fn jpeg_files(batch: Batch) -> Result<Vec<Value>, RewardError> {
    let files = batch.images.iter().enumerate().map(|(index, image)| {
        let file = jpeg_bytes(image, JPEG_QUALITY);
        file.map(Value::Bytes).map_err(|problem| RewardError::Jpeg { index: batch.start + index, problem })
    });
    files.collect()
}

pub(super) fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}
