//! One stream of weights from its first message to the last bit: from the learner, or from a worker that holds them.

use super::WeightsCopy;
use crate::connect::{connect_member, request, weights_relay_client};
use crate::trust::{PeerRole, Trust};
use crate::{Assembly, ServiceError, Timely};
use proto::learner_client::LearnerClient;
use proto::{Caller, ElementType, TensorInfo, WeightsManifest, WeightsReply, WeightsRequest, weights_reply};
use protocol::WeightsName;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// No network is larger than this, in bytes.
const SIZE_LIMIT: usize = 256 << 30;
/// How long a source may take for its first message; the others have the deadlines of [`Timely`].
const ANSWER_DEADLINE: Duration = Duration::from_secs(300);
/// Bytes a second that a worker must come to, and the time that it has besides: the learner is there for whoever is served worse.
const SLOWEST_WORKER: f64 = 4.0 * 1024.0 * 1024.0;
const BESIDES: Duration = Duration::from_secs(60);
/// How long one attempt to connect to a worker may take before it counts as failed.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// Why weights did not come.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The source refuses, or the line to it broke.
    #[error("{}", .0.message())]
    Call(Box<Status>),
    /// The source is not reached.
    #[error(transparent)]
    Connect(ServiceError),
    /// What came is not what was asked for, or not all of it.
    #[error("{0}")]
    Damaged(String),
}

impl From<Status> for ReceiveError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

/// Fetches weights from the learner; `progressed` is called as they come.
///
/// # Errors
/// If they do not come whole.
pub async fn fetch(
    client: &mut LearnerClient<Channel>,
    caller: Caller,
    name: WeightsName,
    progressed: impl Fn(),
) -> Result<WeightsCopy, ReceiveError> {
    let stream = client.weights(request(message(caller, name), ANSWER_DEADLINE)).await?.into_inner();
    let mut stream = Timely::new(stream);
    let manifest = manifest(&mut stream, name).await?;
    receive(stream, name, manifest, progressed).await
}

/// Asks the learner what weights consist of, by which what others send is checked.
///
/// # Errors
/// If it does not say.
pub async fn fetch_manifest(
    client: &mut LearnerClient<Channel>,
    caller: Caller,
    name: WeightsName,
) -> Result<WeightsManifest, ReceiveError> {
    let message = WeightsRequest { only_manifest: true, ..message(caller, name) };
    let stream = client.weights(request(message, ANSWER_DEADLINE)).await?.into_inner();
    manifest(&mut Timely::new(stream), name).await
}

/// Fetches weights from a worker at `address`. Nothing of what it says of them is believed: they are those of the learner's
/// `manifest`, or damaged.
///
/// # Errors
/// If the worker is not reached, does not hold them, or they do not come whole.
pub async fn fetch_from_worker(
    (address, trust): (&str, &Trust),
    caller: Caller,
    (name, manifest_of_learner): (WeightsName, WeightsManifest),
    progressed: impl Fn(),
) -> Result<WeightsCopy, ReceiveError> {
    let channel = connect_member(address, PeerRole::Worker, trust, CONNECT_PATIENCE);
    let mut client = weights_relay_client(channel.await.map_err(ReceiveError::Connect)?);
    let stream = client.weights(request(message(caller, name), ANSWER_DEADLINE)).await?.into_inner();
    let mut stream = Timely::new(stream);
    if manifest(&mut stream, name).await? != manifest_of_learner {
        return Err(damaged("the worker's manifest is not the learner's"));
    }
    let longest = longest(announced_bytes(&manifest_of_learner)?);
    let received = receive(stream, name, manifest_of_learner, progressed);
    tokio::time::timeout(longest, received)
        .await
        .unwrap_or_else(|_| Err(damaged(format!("it was not all here after {} s", longest.as_secs()))))
}

/// How long a worker may take to send so many bytes.
fn longest(n_bytes: usize) -> Duration {
    BESIDES + Duration::from_secs_f64(n_bytes as f64 / SLOWEST_WORKER)
}

fn message(caller: Caller, name: WeightsName) -> WeightsRequest {
    let role = proto::WeightsRole::from(name.role).into();
    WeightsRequest { caller: Some(caller), version: name.version, role, only_manifest: false }
}

type Replies = Timely<Streaming<WeightsReply>>;

async fn manifest(stream: &mut Replies, name: WeightsName) -> Result<WeightsManifest, ReceiveError> {
    let Some(weights_reply::Part::Manifest(manifest)) = stream.next().await?.and_then(|reply| reply.part)
    else {
        return Err(damaged("the stream does not begin with a manifest"));
    };
    match WeightsName::from_wire(manifest.version, manifest.role()) == Ok(name) {
        true => Ok(manifest),
        false => Err(damaged(format!("version {} came instead", manifest.version))),
    }
}

async fn receive(
    mut stream: Replies,
    name: WeightsName,
    manifest: WeightsManifest,
    progressed: impl Fn(),
) -> Result<WeightsCopy, ReceiveError> {
    let mut assembly = Assembly::new(announced_bytes(&manifest)?);
    while let Some(reply) = stream.next().await? {
        let Some(weights_reply::Part::Chunk(chunk)) = reply.part else {
            return Err(damaged("the stream holds something else than chunks"));
        };
        assembly.accept(&chunk).map_err(damaged)?;
        progressed();
    }
    let bytes = assembly.finish(&manifest.digest).map_err(damaged)?.into();
    Ok(WeightsCopy { name, manifest, bytes })
}

fn announced_bytes(manifest: &WeightsManifest) -> Result<usize, ReceiveError> {
    let too_large = || damaged(format!("the manifest announces more than {SIZE_LIMIT} bytes"));
    manifest.tensors.iter().try_fold(0_usize, |total, info| {
        let length = byte_length(info).ok_or_else(|| {
            let TensorInfo { name, shape, .. } = info;
            damaged(format!(
                "tensor {name} is announced with an unknown type or the impossible shape {shape:?}"
            ))
        })?;
        total.checked_add(length).filter(|total| *total <= SIZE_LIMIT).ok_or_else(too_large)
    })
}

fn byte_length(info: &TensorInfo) -> Option<usize> {
    let element_size = match info.element_type() {
        ElementType::U8 => 1,
        ElementType::Bf16 => 2,
        ElementType::F32 => 4,
        ElementType::I64 => 8,
        ElementType::Unspecified => return None,
    };
    info.shape
        .iter()
        .try_fold(element_size, |length: usize, size| length.checked_mul(usize::try_from(*size).ok()?))
}

fn damaged(problem: impl ToString) -> ReceiveError {
    ReceiveError::Damaged(problem.to_string())
}
