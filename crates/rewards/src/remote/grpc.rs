//! Our own protocol, `proto/reward.proto`: raw pixels in, scores and errors by image out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use prost::Message;
use proto::score_reply::Outcome;
use proto::score_request::Part;
use proto::{DescribeReply, DescribeRequest, ImageError, ImageHeader, ImageScore, ScoreReply, ScoreRequest};
use scenes::RgbImage;
use serde::Deserialize;
use serde_json::Value;
use service::CHUNK_BYTES;
use service::trust::{TrustError, trust_problem};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status, Streaming};

use super::batch::{Batch, Scorer};
use super::error::{Chain, RemoteError};
use super::exchange::{Exchange, Sent, quoted};
use super::options::{Connection, OptionKeys};
use super::security::{GrpcSecurity, OwnCertificate, unless_tls, untrusted};
use super::server_url::GRPC;
use super::unfinished::Unfinished;
use crate::error::RewardError;
use crate::resources::Resources;
use crate::reward::{PromptRecord, Reward, Score};

/// The version of the protocol that is spoken here.
pub const PROTOCOL_VERSION: u32 = 1;

const KEYS: OptionKeys = OptionKeys {
    name: GRPC,
    default_url: None,
    own: &["reward", "batch_size", "tls_certificate", "tls_key"],
};
/// What tonic says of a deadline that has passed, on either side.
const TIMEOUT_EXPIRED: &str = "Timeout expired";
/// What tonic says of a message beyond the limit.
const TOO_LARGE: &str = "decoded message length too large";
/// What hyper says of a reply that breaks off after its head.
const BROKEN_OFF: &str = "error reading a body from connection";
/// Of what a server hosts, so much is told.
const SHOWN_NAMES: usize = 20;
/// Pieces of images that wait to be sent.
const PIECES_IN_FLIGHT: usize = 4;

/// Scores by a server of `proto/reward.proto`, such as `rollout-worker serve-reward`.
pub struct GrpcReward {
    connection: Connection,
    security: GrpcSecurity,
    /// The header `authorization`, if there is a key to show.
    authorization: Option<MetadataValue<Ascii>>,
    /// Name on the server; empty for the only one there.
    reward: String,
    batch_size: usize,
    unfinished: Unfinished,
}

#[derive(Deserialize)]
#[serde(default)]
struct Options {
    reward: String,
    batch_size: usize,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { reward: String::new(), batch_size: 64, tls_certificate: None, tls_key: None }
    }
}

/// How far talking to a server has got.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is asked what it is.
    Describe,
    /// It is sent so many bytes of pixels.
    Score { n_bytes: usize },
}

impl GrpcReward {
    /// Takes the options.
    ///
    /// # Errors
    /// If they are wrong, or there is no `url`.
    pub fn new(options: &Value, resources: &Resources) -> Result<Self, RewardError> {
        let (connection, options) = KEYS.parse::<Options>(options, resources)?;
        let Options { reward, batch_size, tls_certificate, tls_key } = options;
        let batch_size = KEYS.at_least_one("batch_size", batch_size)?;
        if !connection.url.is_bare() {
            let problem = "it is more than `http://host:port` or `https://host:port`, which is all that gRPC is spoken over here";
            return Err(KEYS.refuse("url", problem.to_owned()));
        }
        let own = OwnCertificate { certificate: tls_certificate.as_deref(), key: tls_key.as_deref() };
        let server = (&connection.url, connection.authorities.as_ref());
        let security = GrpcSecurity::of(&KEYS, server, own, resources)?;
        // A key is text of a header, as was seen to.
        let key = connection.key.as_ref().and_then(|key| format!("Bearer {key}").parse().ok());
        let authorization = key.map(|mut key: MetadataValue<Ascii>| {
            key.set_sensitive(true);
            key
        });
        let unfinished = Unfinished::default();
        Ok(Self { connection, security, authorization, reward, batch_size, unfinished })
    }

    fn scorer(&self) -> Scorer<'_> {
        Scorer { name: KEYS.name, url: &self.connection.url, unfinished: &self.unfinished }
    }

    /// Scores a batch over a connection of its own, so that the server may be restarted between two batches.
    fn score_batch(&self, batch: Batch) -> Result<Vec<Score>, RemoteError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| RemoteError::Unreachable { cause: error.into() })?;
        let allowed = self.connection.timeout;
        let scores = runtime.block_on(async {
            let call = tokio::time::timeout(allowed, self.call(batch));
            call.await.unwrap_or(Err(RemoteError::Deadline { allowed }))
        });
        // Dropped, it would wait for a name that is still being looked up.
        runtime.shutdown_background();
        scores
    }

    /// A request that shows who asks.
    fn request<T>(&self, message: T, deadline: Instant) -> Request<T> {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut request = service::request(message, left);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }

    async fn call(&self, batch: Batch<'_>) -> Result<Vec<Score>, RemoteError> {
        let deadline = Instant::now() + self.connection.timeout;
        let channel = self.security.connect(&self.connection.url).await?;
        let mut client = service::reward_client(channel).max_decoding_message_size(
            usize::try_from(self.connection.max_reply_bytes).unwrap_or(usize::MAX),
        );
        match client.describe(self.request(DescribeRequest {}, deadline)).await {
            Ok(described) => self.check(described.into_inner())?,
            Err(status) => return Err(self.unless_tls(self.failure(status, Stage::Describe)).await),
        }
        let (pieces, receiver) = mpsc::channel(PIECES_IN_FLIGHT);
        let receive = async {
            let call = client.score(self.request(ReceiverStream::new(receiver), deadline)).await;
            let stage = Stage::Score { n_bytes: batch.images.iter().map(|image| image.pixels.len()).sum() };
            let replies = call.map_err(|status| self.failure(status, stage))?.into_inner();
            self.collect(replies, batch.images.len(), stage).await
        };
        tokio::select! {
            scores = receive => scores,
            never = send(pieces, parts(&self.reward, batch)) => match never {},
        }
    }

    /// Lets a server be asked for scores only if it speaks this version of the protocol and has the scorer that is meant.
    fn check(&self, described: DescribeReply) -> Result<(), RemoteError> {
        let DescribeReply { protocol_version, rewards } = described;
        if protocol_version != PROTOCOL_VERSION {
            let problem = format!(
                "the server speaks version {protocol_version} of this protocol, not {PROTOCOL_VERSION}"
            );
            return Err(self.wrong(problem, Stage::Describe));
        }
        let is_hosted = match self.reward.as_str() {
            "" => rewards.len() <= 1,
            asked => rewards.iter().any(|name| name == asked),
        };
        if is_hosted {
            return Ok(());
        }
        let hosted = rewards.iter().take(SHOWN_NAMES).map(|name| quoted(name.as_bytes())).collect();
        Err(RemoteError::NotHosted { asked: self.reward.clone(), hosted })
    }

    /// The failure, or that the server speaks TLS, where it does and was not to.
    async fn unless_tls(&self, failure: RemoteError) -> RemoteError {
        let url = self.connection.url.clone();
        let looked = tokio::task::spawn_blocking(move || unless_tls(&url, failure)).await;
        looked.unwrap_or_else(|panic| RemoteError::Unreachable { cause: panic.into() })
    }

    async fn collect(
        &self,
        mut replies: Streaming<ScoreReply>,
        n_images: usize,
        stage: Stage,
    ) -> Result<Vec<Score>, RemoteError> {
        let mut scores: BTreeMap<usize, Score> = BTreeMap::new();
        let mut bytes_left = self.connection.max_reply_bytes;
        while let Some(reply) = replies.message().await.map_err(|status| self.failure(status, stage))? {
            let reply_bytes = reply.encoded_len() as u64;
            bytes_left = bytes_left.checked_sub(reply_bytes).ok_or_else(|| self.too_large())?;
            let ScoreReply { id, outcome } = reply;
            let index = usize::try_from(id).ok().filter(|index| *index < n_images);
            let Some(index) = index.filter(|index| !scores.contains_key(index)) else {
                return Err(self.wrong(format!("image {id} was not sent, or is answered twice"), stage));
            };
            match outcome {
                Some(Outcome::Score(ImageScore { value, extras })) => {
                    scores.insert(index, Score { value, extras: extras.into_iter().collect() });
                }
                Some(Outcome::Error(ImageError { code, message })) => {
                    let (code, message) = (Code::from_i32(code as i32), quoted(message.as_bytes()));
                    return Err(RemoteError::Image { index, code, message });
                }
                None => return Err(self.wrong(format!("image {id} has neither score nor error"), stage)),
            }
        }
        match scores.len() {
            got if got == n_images => Ok(scores.into_values().collect()),
            got => Err(RemoteError::Count { sent: n_images, got, key: "score".to_owned() }),
        }
    }

    /// What a status means: the server's word, or, where it has a cause, how the connection failed on this side.
    fn failure(&self, status: Status, stage: Stage) -> RemoteError {
        if let Some(problem) = trust_problem(&status).filter(|it| !matches!(it, TrustError::Handshake(_))) {
            return untrusted(problem);
        }
        let (code, message) = (status.code(), quoted(status.message().as_bytes()));
        let cause = std::error::Error::source(&status);
        let io = std::iter::successors(cause, |error| error.source())
            .find_map(|error| error.downcast_ref::<std::io::Error>());
        match (io, cause, code) {
            (Some(io), ..) => {
                RemoteError::Unreachable { cause: std::io::Error::new(io.kind(), io.to_string()).into() }
            }
            (_, _, Code::Cancelled) if message == TIMEOUT_EXPIRED => {
                RemoteError::Deadline { allowed: self.connection.timeout }
            }
            (_, _, Code::OutOfRange) if message.contains(TOO_LARGE) => self.too_large(),
            // Whoever has described itself speaks gRPC; then it is the connection that broke.
            (_, Some(cause), _) if stage != Stage::Describe || cause.to_string() == BROKEN_OFF => {
                RemoteError::Unreachable { cause: Chain(cause).to_string().into() }
            }
            (_, Some(cause), Code::Internal | Code::Unknown) => {
                self.wrong(format!("this is not gRPC, or broken ({})", Chain(cause)), stage)
            }
            _ => RemoteError::Grpc { code, message },
        }
    }

    fn too_large(&self) -> RemoteError {
        RemoteError::TooLarge { allowed: self.connection.max_reply_bytes }
    }

    fn wrong(&self, problem: String, stage: Stage) -> RemoteError {
        let url = self.connection.url.shown("/tempflow.v1.Reward/Score");
        let n_bytes = match stage {
            Stage::Describe => 0,
            Stage::Score { n_bytes } => n_bytes,
        };
        let sent = Sent { url, content_type: "application/grpc", n_bytes };
        Exchange { sent, reply: None }.wrong(problem)
    }
}

/// Sends all parts as fast as they are taken, closes the stream, and leaves the end of the call to its reply.
async fn send(
    pieces: mpsc::Sender<ScoreRequest>,
    parts: impl Iterator<Item = Part>,
) -> std::convert::Infallible {
    for part in parts {
        if pieces.send(ScoreRequest { part: Some(part) }).await.is_err() {
            break;
        }
    }
    drop(pieces);
    std::future::pending().await
}

/// A batch as messages; an image's id is its position in the batch.
fn parts<'a>(reward: &str, batch: Batch<'a>) -> impl Iterator<Item = Part> + use<'a> {
    let header = proto::Batch { reward: reward.to_owned(), n_images: batch.images.len() as u32 };
    let images = batch.images.iter().zip(batch.prompts).enumerate();
    let images = images.flat_map(|(index, (image, record))| {
        let header = Part::Image(ImageHeader {
            id: index as u64,
            prompt: record.prompt.clone(),
            metadata: record.metadata.to_string(),
            height: image.height as u32,
            width: image.width as u32,
        });
        let pixels = image.pixels.chunks(CHUNK_BYTES);
        std::iter::once(header).chain(pixels.map(|piece| Part::Pixels(piece.to_vec().into())))
    });
    std::iter::once(Part::Batch(header)).chain(images)
}

impl Reward for GrpcReward {
    fn name(&self) -> &str {
        KEYS.name
    }

    fn score(&self, images: &[RgbImage], prompts: &[PromptRecord]) -> Result<Vec<Score>, RewardError> {
        self.scorer().score_in_batches(images, prompts, self.batch_size, |batch| {
            self.score_batch(batch).map_err(|problem| self.scorer().error(problem.after(batch.start)))
        })
    }

    fn patience(&self) -> Duration {
        self.connection.patience
    }

    fn greet_server(&self, patience: Duration) -> Result<(), RewardError> {
        let greeted = self.security.greet(&self.connection.url, patience);
        greeted.map_err(|problem| self.scorer().error(problem))
    }
}
