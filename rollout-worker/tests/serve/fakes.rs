//! A coordinator and a learner in this process, which do what a test tells them and remember what they hear.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use proto::coordinator_server::{Coordinator, CoordinatorServer};
use proto::learner_server::{Learner, LearnerServer};
use proto::push_reply::Status as PushStatus;
use proto::*;
use service::metrics::Counts;
use service::weights::{HeldWeights, WeightsCopy, WeightsRelayService};
use service::{Assembly, ServiceError};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status, Streaming};

const LONGEST_CALL: Duration = Duration::from_secs(600);

type Answer<T> = Result<Response<T>, Status>;

/// Runs a server on a runtime of its own: dropping it cuts every connection, as the death of a process does.
pub struct Server {
    pub address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    fn start(router: impl FnOnce() -> service::Router + Send + 'static) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            service::serve(
                router(),
                listener,
                service::Trust::Plain(service::Insecure::Loopback),
                std::future::pending(),
            )
            .await
            .unwrap();
        });
        Self { address, runtime: Some(runtime) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.runtime.take().expect("taken once").shutdown_background();
    }
}

/// Grants the tasks of a queue, one to be sampled beside one that is being finished, as the real one does.
#[derive(Clone, Default)]
pub struct FakeCoordinator(Arc<Mutex<CoordinatorState>>);

#[derive(Default)]
pub struct CoordinatorState {
    pub config: String,
    pub queue: VecDeque<Task>,
    pub leased: Vec<Task>,
    /// What the worker said it was finishing, each time it asked.
    pub finishing: Vec<Vec<TaskId>>,
    pub finished: Vec<FinishTaskRequest>,
    pub learner_address: String,
    /// Who is to send weights to the worker, in turn; afterwards the learner.
    pub sources: VecDeque<seek_weights_reply::Source>,
    /// Who the worker said has failed it, when it last asked.
    pub failed_sources: Vec<FailedSource>,
    /// What it last told of its weights.
    pub weights: Option<WeightsStanding>,
    pub drain: bool,
    pub n_left: usize,
}

impl FakeCoordinator {
    pub fn serve(&self) -> Server {
        let service = CoordinatorServer::new(self.clone());
        Server::start(move || service::server(LONGEST_CALL).add_service(service))
    }

    pub fn state(&self) -> MutexGuard<'_, CoordinatorState> {
        self.0.lock().unwrap()
    }
}

impl CoordinatorState {
    fn grant(&mut self, finishing: &[TaskId]) -> Option<Task> {
        if self.drain {
            return None;
        }
        let is_finishing = |task: &&Task| task.id.is_some_and(|id| finishing.contains(&id));
        if !self.leased.iter().any(|task| !is_finishing(&task)) && self.leased.len() < 2 {
            self.leased.extend(self.queue.pop_front());
        }
        self.leased.iter().find(|task| !is_finishing(task)).cloned()
    }
}

#[tonic::async_trait]
impl Coordinator for FakeCoordinator {
    type RunFilesStream = tokio_stream::Empty<Result<FilePart, Status>>;
    type KeepResultsStream = tokio_stream::Empty<Result<KeepResultsReply, Status>>;

    async fn run_files(&self, _: Request<RunFilesRequest>) -> Answer<Self::RunFilesStream> {
        Err(Status::unimplemented("no learner here"))
    }

    async fn keep_results(
        &self,
        _: Request<Streaming<KeepResultsRequest>>,
    ) -> Answer<Self::KeepResultsStream> {
        Err(Status::unimplemented("no learner here"))
    }

    async fn tell_log(&self, _: Request<TellLogRequest>) -> Answer<TellLogReply> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Answer<JoinReply> {
        let (request, state) = (request.into_inner(), self.state());
        let identity = Caller { run_id: "run".into(), member_id: request.member_id, incarnation: 1 };
        Ok(Response::new(JoinReply {
            identity: Some(identity),
            config: state.config.clone(),
            run_directory: String::new(),
            learner_addresses: vec![state.learner_address.clone()],
            lease_seconds: 0.5,
            ..JoinReply::default()
        }))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Answer<HeartbeatReply> {
        let mut state = self.state();
        state.weights = request.into_inner().weights;
        let drain =
            state.drain.then_some(Order { order: Some(order::Order::Drain(Drain { seconds: 60.0 })) });
        let learner_addresses = vec![state.learner_address.clone()];
        let orders = drain.into_iter().collect();
        Ok(Response::new(HeartbeatReply { orders, learner_addresses, ranks: None }))
    }

    async fn next_task(&self, request: Request<NextTaskRequest>) -> Answer<NextTaskReply> {
        let finishing = request.into_inner().finishing;
        self.state().finishing.push(finishing.clone());
        for _ in 0..20 {
            let task = self.state().grant(&finishing);
            if task.is_some() {
                return Ok(Response::new(NextTaskReply { task }));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Response::new(NextTaskReply { task: None }))
    }

    async fn seek_weights(&self, request: Request<SeekWeightsRequest>) -> Answer<SeekWeightsReply> {
        let mut state = self.state();
        state.failed_sources = request.into_inner().failed;
        let source = state.sources.pop_front();
        let source = source.or(Some(seek_weights_reply::Source::Learner(LearnerSource {})));
        Ok(Response::new(SeekWeightsReply { source }))
    }

    async fn finish_task(&self, request: Request<FinishTaskRequest>) -> Answer<FinishTaskReply> {
        let (request, mut state) = (request.into_inner(), self.state());
        state.leased.retain(|task| task.id != request.task);
        state.finished.push(request);
        Ok(Response::new(FinishTaskReply {}))
    }

    async fn report(&self, _: Request<ReportRequest>) -> Answer<ReportReply> {
        Err(Status::unimplemented("no learner joins here"))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Answer<LeaveReply> {
        self.state().n_left += 1;
        Ok(Response::new(LeaveReply {}))
    }
}

/// What the learner does with the next push.
pub enum Reaction {
    Reply(PushStatus),
    Fail(tonic::Code),
    /// Holds the push once the test says so.
    HoldAfter(Arc<Notify>),
    /// Never answers: the test will cut the connection.
    Hang,
}

/// A push as it arrived, its bytes checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrived {
    pub header: PushHeader,
    pub bytes: Vec<u8>,
}

/// Takes pushes and hands out weights.
#[derive(Clone, Default)]
pub struct FakeLearner(Arc<Mutex<LearnerState>>);

#[derive(Default)]
pub struct LearnerState {
    pub weights: BTreeMap<(u32, i32), (WeightsManifest, Bytes)>,
    /// How many of the next weight streams arrive with a flipped bit.
    pub n_to_damage: usize,
    pub asked_for: Vec<(u32, WeightsRole)>,
    /// Held is the answer to every push that has none of its own.
    pub reactions: VecDeque<Reaction>,
    pub arrived: Vec<Arrived>,
    pub embeddings: HashSet<Bytes>,
}

impl FakeLearner {
    pub fn serve(&self) -> Server {
        let service = LearnerServer::new(self.clone()).max_decoding_message_size(service::MESSAGE_LIMIT);
        Server::start(move || service::server(LONGEST_CALL).add_service(service))
    }

    pub fn state(&self) -> MutexGuard<'_, LearnerState> {
        self.0.lock().unwrap()
    }
}

#[tonic::async_trait]
impl Learner for FakeLearner {
    async fn missing_conditioning(
        &self,
        request: Request<MissingConditioningRequest>,
    ) -> Answer<MissingConditioningReply> {
        let (digests, state) = (request.into_inner().digests, self.state());
        let missing = digests.into_iter().filter(|digest| !state.embeddings.contains(digest)).collect();
        Ok(Response::new(MissingConditioningReply { missing }))
    }

    async fn push(&self, request: Request<Streaming<PushRequest>>) -> Answer<PushReply> {
        let mut stream = request.into_inner();
        let Some(push_request::Part::Header(header)) = stream.message().await?.and_then(|m| m.part) else {
            return Err(Status::invalid_argument("no header"));
        };
        let lengths = header.tensors.iter().map(|info| models::tensor_bytes::byte_length(info).unwrap());
        let mut assembly = Assembly::new(lengths.sum());
        let digest = loop {
            match stream.message().await?.and_then(|message| message.part) {
                Some(push_request::Part::Chunk(chunk)) => assembly.accept(&chunk).unwrap(),
                Some(push_request::Part::Digest(digest)) => break digest,
                other => return Err(Status::invalid_argument(format!("unexpected {other:?}"))),
            }
        };
        let bytes = assembly.finish(&digest).unwrap();
        let reaction = self.state().reactions.pop_front().unwrap_or(Reaction::Reply(PushStatus::Held));
        let status = match reaction {
            Reaction::Reply(status) => status,
            Reaction::Fail(code) => return Err(Status::new(code, "as the test wishes")),
            Reaction::HoldAfter(word) => {
                word.notified().await;
                PushStatus::Held
            }
            Reaction::Hang => std::future::pending().await,
        };
        let mut state = self.state();
        state.embeddings.extend([header.conditioning.clone(), header.negative_conditioning.clone()]);
        state.arrived.push(Arrived { header, bytes });
        Ok(Response::new(PushReply { status: status.into() }))
    }

    type WeightsStream = tokio_stream::Iter<std::vec::IntoIter<Result<WeightsReply, Status>>>;

    async fn weights(&self, request: Request<WeightsRequest>) -> Answer<Self::WeightsStream> {
        let (request, mut state) = (request.into_inner(), self.state());
        let found = state.weights.get(&(request.version, request.role)).cloned();
        if !request.only_manifest {
            state.asked_for.push((request.version, request.role()));
        }
        let (manifest, bytes) = found.ok_or_else(|| Status::not_found("not published"))?;
        let bytes = if request.only_manifest { Bytes::new() } else { bytes };
        let mut chunks: Vec<Chunk> = service::chunks(bytes).collect();
        if state.n_to_damage > 0 && !request.only_manifest {
            state.n_to_damage -= 1;
            let last = chunks.last_mut().expect("weights are not empty");
            last.data = last.data.iter().map(|byte| byte ^ 1).collect();
        }
        let chunks = chunks.into_iter().map(weights_reply::Part::Chunk);
        let parts = std::iter::once(weights_reply::Part::Manifest(manifest)).chain(chunks);
        let replies: Vec<_> = parts.map(|part| Ok(WeightsReply { part: Some(part) })).collect();
        Ok(Response::new(tokio_stream::iter(replies)))
    }
}

/// A worker that serves these weights, as the coordinator names it.
pub async fn serve_weights(
    member_id: &str,
    copy: WeightsCopy,
) -> (seek_weights_reply::Source, AbortOnDropHandle<Result<(), ServiceError>>) {
    let held = HeldWeights::default();
    held.keep(Arc::new(copy));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let relay = WeightsRelayService::new("run".to_owned(), held, Counts::new([], [[]]));
    let serving = relay.serve(listener, service::Trust::Plain(service::Insecure::Loopback));
    let source = WorkerSource { member_id: member_id.to_owned(), address };
    (seek_weights_reply::Source::Worker(source), AbortOnDropHandle::new(tokio::spawn(serving)))
}
