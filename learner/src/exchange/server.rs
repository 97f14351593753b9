//! The learner's gRPC service: embeddings asked for, outcomes pushed, weights streamed.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::learner_server::Learner;
use proto::push_reply::Status as PushStatus;
use proto::{
    Caller, MissingConditioningReply, MissingConditioningRequest, PushHeader, PushReply, PushRequest,
    WeightsReply, WeightsRequest, push_request,
};
use protocol::{Digest, PushFault, TaskName, TaskStanding, WeightsName};
use service::weights::weights_replies;
use service::{Assembly, Timely, shown};
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::exchange::embeddings::Embeddings;
use crate::exchange::inbox::Inbox;
use crate::exchange::publications::Publications;
use crate::exchange::push_gate::PushGate;
use crate::exchange::receive::{OutcomeReader, PushRefusal, announced_bytes};
use crate::metrics::ExchangeMetrics;

/// Bytes of the largest chunk that the wire allows.
const CHUNK_LIMIT: usize = 1024 * 1024;

/// Longest call, by which also a push of many bytes is done; the worker gives one up sooner.
pub const LONGEST_CALL: Duration = Duration::from_secs(600);
/// How long a push that is of no use may go on, so that its sender hears that instead of a broken stream.
const UNWANTED_DEADLINE: Duration = Duration::from_secs(60);
/// Digests that one question may hold: a task has two.
const MOST_DIGESTS: usize = 1024;
/// Characters of what a refusal says, since a hostile name in it may have megabytes.
const LONGEST_PROBLEM: usize = 600;

/// What the service shares with the training thread.
pub struct LearnerService {
    /// Calls of other runs are fenced.
    pub run_id: String,
    /// Wanted tasks and their outcomes.
    pub inbox: Arc<Inbox>,
    /// Embeddings that are here.
    pub embeddings: Arc<Embeddings>,
    /// Weights that can be fetched.
    pub publications: Arc<Publications>,
    /// Checks and completes what is pushed.
    pub reader: Arc<OutcomeReader>,
    /// Bounds the pushes at a time.
    pub pushes: Arc<PushGate>,
    /// Counts what is brought and fetched.
    pub metrics: ExchangeMetrics,
}

/// A push that is here whole.
struct Received {
    header: PushHeader,
    bytes: Vec<u8>,
    _turn: OwnedSemaphorePermit,
}

/// The messages of a push.
type Messages = Timely<Streaming<PushRequest>>;

#[tonic::async_trait]
impl Learner for LearnerService {
    async fn missing_conditioning(
        &self,
        request: Request<MissingConditioningRequest>,
    ) -> Result<Response<MissingConditioningReply>, Status> {
        let MissingConditioningRequest { caller, digests } = request.into_inner();
        self.admit(caller.as_ref())?;
        if digests.len() > MOST_DIGESTS {
            let n_asked = digests.len();
            return Err(Status::invalid_argument(format!("{n_asked} digests; ask about {MOST_DIGESTS}")));
        }
        let digests: Vec<Digest> = digests
            .iter()
            .map(|digest| digest[..].try_into())
            .collect::<Result<_, _>>()
            .map_err(|_| Status::invalid_argument("a digest has 32 bytes"))?;
        let missing = self.embeddings.missing(&digests);
        let missing = missing.into_iter().map(|digest| digest.to_vec().into()).collect();
        Ok(Response::new(MissingConditioningReply { missing }))
    }

    async fn push(&self, request: Request<Streaming<PushRequest>>) -> Result<Response<PushReply>, Status> {
        let outcome = self.receive(Timely::new(request.into_inner())).await;
        self.metrics.pushed(&outcome);
        outcome.map(|status| Response::new(PushReply { status: status.into() }))
    }

    type WeightsStream = Pin<Box<dyn Stream<Item = Result<WeightsReply, Status>> + Send>>;

    async fn weights(
        &self,
        request: Request<WeightsRequest>,
    ) -> Result<Response<Self::WeightsStream>, Status> {
        let request = request.into_inner();
        self.admit(request.caller.as_ref())?;
        let (version, role) = (request.version, request.role());
        let name = WeightsName::from_wire(version, role)
            .map_err(|fault| Status::invalid_argument(fault.to_string()))?;
        let publication = self.publications.get(name).ok_or_else(|| {
            let role = role.as_str_name();
            Status::not_found(format!(
                "version {version} ({role}) is not available: not made yet, or no longer wanted"
            ))
        })?;
        // Of a version without bytes there is the manifest alone.
        let bytes = if request.only_manifest { Bytes::new() } else { publication.bytes.clone() };
        let sent = self.metrics.sent_bytes.clone();
        let count = move |n_bytes| sent.add([], n_bytes as f64);
        Ok(Response::new(Box::pin(weights_replies(publication.manifest.clone(), bytes, count))))
    }
}

impl LearnerService {
    fn admit(&self, caller: Option<&Caller>) -> Result<(), Status> {
        match caller {
            Some(caller) if caller.run_id == self.run_id => Ok(()),
            Some(caller) => Err(Status::failed_precondition(format!(
                "fenced: this learner serves run `{}`, not `{}`",
                self.run_id,
                shown(&caller.run_id, LONGEST_PROBLEM)
            ))),
            None => Err(Status::invalid_argument("the caller is missing")),
        }
    }

    // Nothing is kept before the header was checked, and no turn is taken before bytes flow. Whoever sends a good header and then
    // nothing has a place, of which there are many, until the deadline of its first byte.
    async fn receive(&self, mut messages: Messages) -> Result<PushStatus, Status> {
        let Some(push_request::Part::Header(header)) = next_part(&mut messages).await? else {
            return Err(Status::invalid_argument("a push begins with a header"));
        };
        self.admit(header.caller.as_ref())?;
        let id = header.task.as_ref().ok_or_else(|| Status::invalid_argument("the header names no task"))?;
        // A kind that is unknown here is none that is wanted.
        let Ok(name) = TaskName::try_from(id) else {
            return Ok(unwanted(&TaskStanding::NotWanted, &mut messages).await);
        };
        let (task, steps) = match self.inbox.standing(name) {
            TaskStanding::Wanted(task, steps) => (task, steps),
            standing => return Ok(unwanted(&standing, &mut messages).await),
        };
        self.reader
            .schema
            .check(&header, &task, &steps)
            .map_err(|fault| refusal_status(name, PushRefusal::Faulty(fault)))?;
        let worker = header.caller.as_ref().map_or("", |caller| &caller.member_id);
        let _admitted = self.pushes.admit(worker)?;
        let first = next_part(&mut messages).await?;
        let turn = self.pushes.turn().await?;
        match self.inbox.standing(name) {
            TaskStanding::Wanted(..) => {
                let bytes = receive_bytes(&header, name, first, &mut messages).await?;
                self.metrics.received_bytes.add([], bytes.len() as f64);
                self.complete(name, task, Received { header, bytes, _turn: turn }).await
            }
            // Another worker was faster.
            standing => Ok(unwanted(&standing, &mut messages).await),
        }
    }

    /// Rebuilding and hashing take long, so they run beside the sockets.
    async fn complete(
        &self,
        name: TaskName,
        task: config::TaskSpec,
        received: Received,
    ) -> Result<PushStatus, Status> {
        let (reader, embeddings) = (self.reader.clone(), self.embeddings.clone());
        // `received` is moved as a whole, so that its turn lasts as long as its bytes.
        let outcome = move || {
            let received = received;
            reader.outcome(&received.header, &received.bytes, &task, &embeddings)
        };
        let completed = tokio::task::spawn_blocking(outcome).await;
        match completed.map_err(|error| Status::internal(error.to_string()))? {
            Ok(outcome) => Ok(push_status(&self.inbox.hold(name, outcome))),
            Err(PushRefusal::NextLatentsNeeded) => {
                tracing::warn!(task = %name, "rebuilt next latents differ; asking for the sampler's own");
                Ok(PushStatus::NextLatentsNeeded)
            }
            Err(refusal) => Err(refusal_status(name, refusal)),
        }
    }
}

/// The bytes of a push whose `first` part after the header is here.
async fn receive_bytes(
    header: &PushHeader,
    name: TaskName,
    first: Option<push_request::Part>,
    messages: &mut Messages,
) -> Result<Vec<u8>, Status> {
    let faulty = |fault: PushFault| refusal_status(name, fault.into());
    let expected = announced_bytes(&header.tensors).map_err(faulty)?;
    let mut assembly = Assembly::new(expected);
    let damaged = |error: service::ChunkError| {
        tracing::warn!(task = %name, "damaged push: {error}");
        Status::data_loss(format!("{error}; push again"))
    };
    let mut part = first;
    loop {
        match part {
            Some(push_request::Part::Chunk(chunk)) if chunk.data.len() <= CHUNK_LIMIT => {
                assembly.accept(&chunk).map_err(damaged)?;
            }
            Some(push_request::Part::Chunk(chunk)) => {
                return Err(faulty(PushFault::Chunk(chunk.data.len())));
            }
            Some(push_request::Part::Digest(digest)) => return assembly.finish(&digest).map_err(damaged),
            Some(push_request::Part::Header(_)) => return Err(faulty(PushFault::SecondHeader)),
            None => return Err(Status::data_loss("the push ends without a digest; push again")),
        }
        part = next_part(messages).await?;
    }
}

async fn next_part(messages: &mut Messages) -> Result<Option<push_request::Part>, Status> {
    match messages.next().await? {
        Some(PushRequest { part: None }) => Err(Status::invalid_argument("a push message is empty")),
        message => Ok(message.and_then(|message| message.part)),
    }
}

/// Reads what is of no use to the end, so that the reply is not lost to a stream that is reset.
async fn unwanted(standing: &TaskStanding, messages: &mut Messages) -> PushStatus {
    let to_the_end = async { while let Ok(Some(_)) = messages.next().await {} };
    let _ = tokio::time::timeout(UNWANTED_DEADLINE, to_the_end).await;
    push_status(standing)
}

fn push_status(standing: &TaskStanding) -> PushStatus {
    match standing {
        TaskStanding::Held => PushStatus::Held,
        TaskStanding::NotWanted | TaskStanding::Wanted(..) => PushStatus::NotWanted,
    }
}

/// The one mapping of what is wrong with a push to a status.
fn refusal_status(name: TaskName, refusal: PushRefusal) -> Status {
    let problem = refusal.to_string();
    match refusal {
        PushRefusal::Incomplete(_) => Status::data_loss(shown(&problem, LONGEST_PROBLEM)),
        PushRefusal::NextLatentsNeeded | PushRefusal::Faulty(_) => {
            Status::invalid_argument(format!("{name}: {}", shown(&problem, LONGEST_PROBLEM)))
        }
    }
}
