//! The learner's gRPC service: embeddings asked for, outcomes pushed, weights streamed.

use std::pin::Pin;
use std::sync::Arc;

use proto::learner_server::Learner;
use proto::push_reply::Status as PushStatus;
use proto::{
    Caller, MissingConditioningReply, MissingConditioningRequest, PushHeader, PushReply, PushRequest, TaskId,
    WeightsReply, WeightsRequest, push_request, weights_reply,
};
use service::Assembly;
use tokio::sync::Semaphore;
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use crate::embeddings::Embeddings;
use crate::inbox::{Inbox, Standing};
use crate::outcome::Digest;
use crate::publications::Publications;
use crate::receive::{Receiver, Refusal, announced_bytes};

/// Bytes of the largest chunk that the wire allows.
const CHUNK_LIMIT: usize = 1024 * 1024;

/// Pushes whose bytes are received and checked at a time; the memory for them is bounded by that.
const PUSHES_AT_ONCE: usize = 8;

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
    pub receiver: Arc<Receiver>,
    /// One permit for each push at a time, see [`push_permits`].
    pub pushes: Arc<Semaphore>,
}

/// As many permits as pushes are taken at a time; the others wait before their bytes are read.
pub fn push_permits() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(PUSHES_AT_ONCE))
}

#[tonic::async_trait]
impl Learner for LearnerService {
    async fn missing_conditioning(
        &self,
        request: Request<MissingConditioningRequest>,
    ) -> Result<Response<MissingConditioningReply>, Status> {
        let MissingConditioningRequest { caller, digests } = request.into_inner();
        self.admit(caller.as_ref())?;
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
        let mut stream = request.into_inner();
        let Some(push_request::Part::Header(header)) = next_part(&mut stream).await? else {
            return Err(Status::invalid_argument("a push begins with a header"));
        };
        self.admit(header.caller.as_ref())?;
        let id = header.task.ok_or_else(|| Status::invalid_argument("the header names no task"))?;
        let _permit = self.pushes.acquire().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let status = match self.inbox.standing(&id) {
            Standing::Wanted(task, steps) => {
                self.receiver
                    .layout
                    .check(&header, &task, &steps)
                    .map_err(|problem| refused(&id, problem))?;
                let bytes = receive_bytes(&header, &id, &mut stream).await?;
                self.complete(header, bytes, task, id).await?
            }
            standing => {
                // Read to the end, so that the reply is not lost to a stream that is reset.
                while next_part(&mut stream).await?.is_some() {}
                push_status(&standing)
            }
        };
        Ok(Response::new(PushReply { status: status.into() }))
    }

    type WeightsStream = Pin<Box<dyn Stream<Item = Result<WeightsReply, Status>> + Send>>;

    async fn weights(
        &self,
        request: Request<WeightsRequest>,
    ) -> Result<Response<Self::WeightsStream>, Status> {
        let request = request.into_inner();
        self.admit(request.caller.as_ref())?;
        let (version, role) = (request.version, request.role());
        let publication = self.publications.get(version, role).ok_or_else(|| {
            let name = role.as_str_name();
            Status::not_found(format!(
                "version {version} ({name}) is not available: not made yet, or no longer wanted"
            ))
        })?;
        let manifest = weights_reply::Part::Manifest(publication.manifest.clone());
        let chunks = service::chunks(publication.bytes.clone()).map(weights_reply::Part::Chunk);
        let replies =
            std::iter::once(manifest).chain(chunks).map(|part| Ok(WeightsReply { part: Some(part) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
    }
}

impl LearnerService {
    fn admit(&self, caller: Option<&Caller>) -> Result<(), Status> {
        match caller {
            Some(caller) if caller.run_id == self.run_id => Ok(()),
            Some(caller) => Err(Status::failed_precondition(format!(
                "fenced: this learner serves run `{}`, not `{}`",
                self.run_id, caller.run_id
            ))),
            None => Err(Status::invalid_argument("the caller is missing")),
        }
    }

    /// Rebuilding and hashing take long, so they run beside the sockets.
    async fn complete(
        &self,
        header: PushHeader,
        bytes: Vec<u8>,
        task: config::TaskSpec,
        id: TaskId,
    ) -> Result<PushStatus, Status> {
        let (receiver, embeddings) = (self.receiver.clone(), self.embeddings.clone());
        let completed =
            tokio::task::spawn_blocking(move || receiver.outcome(&header, &bytes, &task, &embeddings)).await;
        match completed.map_err(|error| Status::internal(error.to_string()))? {
            Ok(outcome) => Ok(push_status(&self.inbox.hold(&id, outcome))),
            Err(Refusal::NextLatentsNeeded) => {
                tracing::warn!(task = %describe(&id), "rebuilt next latents differ; asking for the sampler's own");
                Ok(PushStatus::NextLatentsNeeded)
            }
            Err(Refusal::Incomplete(problem)) => Err(Status::data_loss(problem)),
            Err(Refusal::Invalid(problem)) => Err(refused(&id, problem)),
        }
    }
}

async fn receive_bytes(
    header: &PushHeader,
    id: &TaskId,
    stream: &mut Streaming<PushRequest>,
) -> Result<Vec<u8>, Status> {
    let expected = announced_bytes(&header.tensors).map_err(|problem| refused(id, problem))?;
    let mut assembly = Assembly::new(expected);
    let damaged = |error: service::ChunkError| {
        tracing::warn!(task = %describe(id), "damaged push: {error}");
        Status::data_loss(format!("{error}; push again"))
    };
    loop {
        match next_part(stream).await? {
            Some(push_request::Part::Chunk(chunk)) if chunk.data.len() <= CHUNK_LIMIT => {
                assembly.accept(&chunk).map_err(damaged)?;
            }
            Some(push_request::Part::Chunk(chunk)) => {
                return Err(refused(
                    id,
                    format!("a chunk has {} bytes; at most 1 MiB is allowed", chunk.data.len()),
                ));
            }
            Some(push_request::Part::Digest(digest)) => return assembly.finish(&digest).map_err(damaged),
            Some(push_request::Part::Header(_)) => {
                return Err(refused(id, "there is a second header".to_owned()));
            }
            None => return Err(Status::data_loss("the push ends without a digest; push again")),
        }
    }
}

async fn next_part(stream: &mut Streaming<PushRequest>) -> Result<Option<push_request::Part>, Status> {
    match stream.message().await? {
        Some(PushRequest { part: None }) => Err(Status::invalid_argument("a push message is empty")),
        message => Ok(message.and_then(|message| message.part)),
    }
}

fn push_status(standing: &Standing) -> PushStatus {
    match standing {
        Standing::Held => PushStatus::Held,
        Standing::NotWanted | Standing::Wanted(..) => PushStatus::NotWanted,
    }
}

fn refused(id: &TaskId, problem: String) -> Status {
    Status::invalid_argument(format!("{}: {problem}", describe(id)))
}

fn describe(id: &TaskId) -> String {
    let kind = match id.kind() {
        proto::TaskKind::Evaluate => "evaluation",
        proto::TaskKind::Test => "test",
        proto::TaskKind::Train | proto::TaskKind::Unspecified => "training",
    };
    format!("{kind} task {} of iteration {}", id.index, id.iteration)
}
