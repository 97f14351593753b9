//! A member against a coordinator that goes away, forgets, refuses and orders.

use proto::coordinator_server::{Coordinator, CoordinatorServer};
use proto::*;
use service::{Insecure, JoinDetails, Membership, ServiceError, Trust};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};

/// Answers as told; counts joins and remembers the last one.
#[derive(Clone, Default)]
struct Stub {
    state: Arc<Mutex<StubState>>,
}

#[derive(Default)]
struct StubState {
    incarnation: u64,
    last_join: Option<JoinRequest>,
    refuse: bool,
    orders: Vec<Order>,
    device: String,
    card: String,
    finished: Vec<TaskId>,
    standstills: Vec<Standstill>,
    running: Vec<TaskId>,
    given_back: Vec<TaskId>,
    troubles: Vec<String>,
    weights: Option<WeightsStanding>,
    logs: Vec<TellLogRequest>,
}

/// How long anything here may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(120);
const TASK: TaskId = TaskId { kind: TaskKind::Train as i32, iteration: 3, index: 5 };
const NEXT_TASK: TaskId = TaskId { index: 6, ..TASK };

impl Stub {
    async fn until(&self, what: &str, holds: impl Fn(&StubState) -> bool) {
        let wait = async {
            while !holds(&self.state.lock().unwrap()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .unwrap_or_else(|_| panic!("still waiting for this: {what}"));
    }

    fn fence(&self, caller: Option<Caller>) -> Result<(), Status> {
        let incarnation = caller.map(|caller| caller.incarnation);
        match incarnation == Some(self.state.lock().unwrap().incarnation) {
            true => Ok(()),
            false => Err(Status::failed_precondition("fenced")),
        }
    }

    async fn serve(&self) -> (SocketAddr, Serving) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        (listener.local_addr().expect("bound"), self.serve_on(listener))
    }

    fn serve_on(&self, listener: TcpListener) -> Serving {
        let service = CoordinatorServer::new(self.clone());
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.spawn(async move {
            // A listener belongs to the runtime it is registered with.
            let listener =
                TcpListener::from_std(listener.into_std().expect("a listener")).expect("registered");
            let router = service::server(Duration::from_secs(60)).add_service(service);
            service::serve(router, listener, Trust::Plain(Insecure::Loopback), std::future::pending()).await
        });
        Serving { runtime: Some(runtime) }
    }
}

/// A server that dies with all its connections, as a killed process does, when dropped.
struct Serving {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[tonic::async_trait]
impl Coordinator for Stub {
    type RunFilesStream = tokio_stream::Empty<Result<FilePart, Status>>;
    type KeepResultsStream = tokio_stream::Empty<Result<KeepResultsReply, Status>>;

    async fn run_files(&self, _: Request<RunFilesRequest>) -> Result<Response<Self::RunFilesStream>, Status> {
        Err(Status::unimplemented("no learner here"))
    }

    async fn keep_results(
        &self,
        _: Request<Streaming<KeepResultsRequest>>,
    ) -> Result<Response<Self::KeepResultsStream>, Status> {
        Err(Status::unimplemented("no learner here"))
    }

    async fn tell_log(&self, request: Request<TellLogRequest>) -> Result<Response<TellLogReply>, Status> {
        self.state.lock().unwrap().logs.push(request.into_inner());
        Ok(Response::new(TellLogReply {}))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        if state.refuse {
            return Err(Status::failed_precondition("this is run B"));
        }
        state.incarnation += 1;
        let identity = Caller {
            run_id: "run-a".to_owned(),
            member_id: request.member_id.clone(),
            incarnation: state.incarnation,
        };
        state.last_join = Some(request);
        Ok(Response::new(JoinReply { identity: Some(identity), lease_seconds: 0.1, ..JoinReply::default() }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let HeartbeatRequest { caller, standstills, troubles, device, card, running, weights, .. } =
            request.into_inner();
        self.fence(caller)?;
        self.state.lock().unwrap().standstills = standstills;
        self.state.lock().unwrap().running = running;
        self.state.lock().unwrap().weights = weights;
        self.state.lock().unwrap().troubles = troubles;
        self.state.lock().unwrap().device = device;
        self.state.lock().unwrap().card = card;
        let orders = self.state.lock().unwrap().orders.clone();
        Ok(Response::new(HeartbeatReply {
            orders,
            learner_addresses: vec!["127.0.0.1:7".to_owned()],
            ranks: None,
        }))
    }

    async fn next_task(&self, request: Request<NextTaskRequest>) -> Result<Response<NextTaskReply>, Status> {
        let request = request.into_inner();
        self.fence(request.caller)?;
        let id = if request.finishing.contains(&TASK) { NEXT_TASK } else { TASK };
        Ok(Response::new(NextTaskReply { task: Some(Task { id: Some(id), ..Task::default() }) }))
    }

    async fn seek_weights(
        &self,
        request: Request<SeekWeightsRequest>,
    ) -> Result<Response<SeekWeightsReply>, Status> {
        let request = request.into_inner();
        self.fence(request.caller)?;
        let failed = request.failed.into_iter().next_back();
        let source = failed.map(|FailedSource { member_id, reason }| {
            seek_weights_reply::Source::Worker(WorkerSource { member_id, address: reason })
        });
        Ok(Response::new(SeekWeightsReply { source }))
    }

    async fn finish_task(
        &self,
        request: Request<FinishTaskRequest>,
    ) -> Result<Response<FinishTaskReply>, Status> {
        let request = request.into_inner();
        self.fence(request.caller)?;
        let mut state = self.state.lock().unwrap();
        match request.given_back {
            true => state.given_back.extend(request.task),
            false => state.finished.extend(request.task),
        }
        Ok(Response::new(FinishTaskReply {}))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportReply>, Status> {
        self.fence(request.into_inner().caller)?;
        Ok(Response::new(ReportReply { drain: false }))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        Ok(Response::new(LeaveReply {}))
    }
}

fn worker(grace: Duration) -> JoinDetails {
    JoinDetails {
        role: Role::RolloutWorker,
        member_id: "worker-0".to_owned(),
        rank: 0,
        address: String::new(),
        metrics_address: String::new(),
        grace,
        own_directory: None,
    }
}

async fn join(address: SocketAddr, grace: Duration) -> Membership {
    Membership::join(&format!("http://{address}"), &Trust::Plain(Insecure::Loopback), worker(grace))
        .await
        .expect("joined")
        .0
}

#[tokio::test]
async fn heartbeats_bring_orders_and_the_learner_address() {
    let stub = Stub::default();
    let (address, _stop) = stub.serve().await;
    let membership = join(address, Duration::from_secs(9)).await;
    let mut standing = membership.standing();
    standing.wait_for(|standing| standing.learner_addresses == ["127.0.0.1:7"]).await.expect("heartbeat");
    assert_eq!(standing.borrow().drain, None);
    // An order of a later version is passed over.
    stub.state.lock().unwrap().orders = vec![Order { order: None }];
    membership.computes_on(config::ComputeDevice::CudaAt(3));
    let card = service::cuda::card(config::ComputeDevice::CudaAt(3)).unwrap_or_default();
    stub.until("the device is told", |state| (&*state.device, &state.card) == ("cuda:3", &card)).await;
    assert_eq!(standing.borrow().drain, None);
    let drain = Order { order: Some(order::Order::Drain(Drain { seconds: 7.5 })) };
    stub.state.lock().unwrap().orders.push(drain);
    standing
        .wait_for(|standing| standing.drain == Some(Duration::from_millis(7500)))
        .await
        .expect("heartbeat");
}

#[tokio::test]
async fn a_fenced_member_joins_again_with_its_running_task_and_finishes_it() {
    let stub = Stub::default();
    let (address, _stop) = stub.serve().await;
    let membership = join(address, Duration::from_secs(9)).await;
    let task = membership.next_task(&[], Duration::ZERO).await.expect("asked").expect("a task");
    stub.state.lock().unwrap().incarnation = 10;
    membership.task_held(task.id.expect("an id")).await.expect("finished");
    let state = stub.state.lock().unwrap();
    assert_eq!(membership.caller().incarnation, 11);
    assert_eq!(state.finished, [TASK]);
    let join = state.last_join.as_ref().expect("joined");
    assert_eq!(join.running, [TASK]);
    assert_eq!(join.run_id, "run-a");
}

#[tokio::test]
async fn a_member_that_joins_again_names_both_tasks_it_has_in_hand() {
    let stub = Stub::default();
    let (address, _stop) = stub.serve().await;
    let membership = join(address, Duration::from_secs(9)).await;
    membership.next_task(&[], Duration::ZERO).await.expect("asked").expect("a task");
    membership.next_task(&[TASK], Duration::ZERO).await.expect("asked").expect("another");
    stub.state.lock().unwrap().incarnation = 10;
    membership.task_held(TASK).await.expect("finished");
    assert_eq!(stub.state.lock().unwrap().last_join.as_ref().expect("joined").running, [TASK, NEXT_TASK]);
    stub.state.lock().unwrap().incarnation = 20;
    membership.task_failed(NEXT_TASK, "", Blame::Worker).await.expect("told");
    assert_eq!(stub.state.lock().unwrap().last_join.as_ref().expect("joined").running, [NEXT_TASK]);
}

#[tokio::test]
async fn heartbeats_tell_how_long_work_has_stood_still_while_there_is_any() {
    let stub = Stub::default();
    let (address, _stop) = stub.serve().await;
    let membership = join(address, Duration::from_secs(9)).await;
    let work = membership.begin_work(Work::Opening);
    let stands_still = |told: &Standstill| told.work() == Work::Opening && told.seconds >= 0.05;
    stub.until("it stands still", |state| state.standstills.iter().any(stands_still)).await;
    drop(work);
    stub.until("there is none", |state| state.standstills.is_empty()).await;
}

#[tokio::test]
async fn a_member_tells_what_it_has_and_hears_which_of_it_nobody_needs() {
    let stub = Stub::default();
    let (address, _stop) = stub.serve().await;
    let membership = join(address, Duration::from_secs(9)).await;
    membership.next_task(&[], Duration::ZERO).await.expect("asked").expect("a task");
    stub.until("it is told", |state| state.running == [TASK]).await;
    let tasks = vec![TASK, TaskId::default()];
    let give_back = Some(order::Order::GiveBack(GiveBack { tasks }));
    stub.state.lock().unwrap().orders = vec![Order { order: give_back }];
    let mut standing = membership.standing();
    let heard = standing.wait_for(|standing| !standing.not_needed.is_empty());
    let not_needed = heard.await.expect("a member").not_needed.clone();
    let told: Vec<TaskId> = not_needed.into_iter().map(TaskId::from).collect();
    assert_eq!(told, [TASK], "and nothing that has no name");
    membership.task_given_back(TASK).await.expect("told");
    stub.until("it has none", |state| state.running.is_empty()).await;
    assert_eq!(stub.state.lock().unwrap().given_back, [TASK]);
}

#[tokio::test]
async fn heartbeats_tell_what_is_wrong_while_it_is() {
    let stub = Stub::default();
    let (address, _stop) = stub.serve().await;
    let membership = join(address, Duration::from_secs(9)).await;
    membership.troubled("a reward", "it does not answer".to_owned());
    stub.until("it is told", |state| state.troubles == ["it does not answer"]).await;
    membership.relieved("a reward");
    stub.until("it is over", |state| state.troubles.is_empty()).await;
}

#[tokio::test]
async fn a_question_about_the_log_is_answered_once() {
    let stub = Stub::default();
    let (address, _stop) = stub.serve().await;
    let membership = join(address, Duration::from_secs(9)).await;
    let ask = |number| Order { order: Some(order::Order::AskLog(AskLog { number, lines: 5, from: None })) };
    stub.state.lock().unwrap().orders = vec![ask(3)];
    stub.until("it is answered", |state| state.logs.iter().any(|told| told.number == 3)).await;
    stub.state.lock().unwrap().orders = vec![ask(5), ask(3), ask(4)];
    stub.until("the others are, too", |state| state.logs.iter().any(|told| told.number == 5)).await;
    let numbers: Vec<u64> = stub.state.lock().unwrap().logs.iter().map(|told| told.number).collect();
    assert_eq!(numbers, [3, 4, 5]);
    assert_eq!(stub.state.lock().unwrap().logs[0].caller, Some(membership.caller()));
}

#[tokio::test]
async fn a_question_of_another_coordinator_is_another_one_though_its_number_is_the_same() {
    let stub = Stub::default();
    let (address, _stop) = stub.serve().await;
    let membership = join(address, Duration::from_secs(9)).await;
    let asked = Order { order: Some(order::Order::AskResults(AskResults { number: 1 })) };
    stub.state.lock().unwrap().orders = vec![asked];
    let mut standing = membership.standing();
    let first = standing.wait_for(|standing| standing.results_asked.is_some()).await.unwrap().results_asked;
    assert_eq!(first.map(|question| question.number), Some(1));
    // Fenced, it joins again.
    stub.state.lock().unwrap().incarnation += 100;
    let another =
        standing.wait_for(|standing| standing.results_asked.is_some() && standing.results_asked != first);
    let another = tokio::time::timeout(PATIENCE, another).await.expect("in time").unwrap().results_asked;
    assert_eq!(another.map(|question| question.number), Some(1));
}

#[tokio::test]
async fn a_coordinator_that_comes_back_on_its_port_finds_the_member_again() {
    let (address, stop) = Stub::default().serve().await;
    let membership = join(address, Duration::from_secs(9)).await;
    drop(stop);
    let reborn = Stub::default();
    reborn.state.lock().unwrap().incarnation = 100;
    let bind = async {
        loop {
            // The old server is gone once its listener and its connections are closed.
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let listener = tokio::time::timeout(PATIENCE, bind).await.expect("the old server goes in time");
    let _stop = reborn.serve_on(listener);
    membership.task_held(TASK).await.expect("finished after the outage");
    assert_eq!(membership.caller().incarnation, 101);
}

#[tokio::test]
async fn a_coordinator_away_for_longer_than_the_grace_ends_the_membership() {
    let (address, stop) = Stub::default().serve().await;
    let membership = join(address, Duration::from_millis(200)).await;
    drop(stop);
    let error = membership.lost().await;
    assert!(matches!(error, ServiceError::CoordinatorGone { .. }), "{error}");
    assert!(membership.next_task(&[], Duration::ZERO).await.is_err());
}

#[tokio::test]
async fn a_refused_member_gives_up_at_once_and_says_why() {
    let stub = Stub::default();
    stub.state.lock().unwrap().refuse = true;
    let (address, _stop) = stub.serve().await;
    let outcome = Membership::join(
        &format!("http://{address}"),
        &Trust::Plain(Insecure::Loopback),
        worker(Duration::from_secs(60)),
    )
    .await;
    let error = outcome.err().expect("refused");
    assert_eq!(error.exit_code(), service::exit_code::BAD_USAGE, "the same would happen again");
    let error = error.to_string();
    assert!(error.contains("this is run B") && error.contains("worker-0"), "{error}");
}

/// Takes as long as one call may, 5 s.
#[tokio::test]
async fn a_coordinator_that_accepts_and_never_answers_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", silent.local_addr().expect("bound"));
    let start = std::time::Instant::now();
    let error =
        Membership::join(&address, &Trust::Plain(Insecure::Loopback), worker(Duration::from_millis(100)))
            .await
            .err()
            .expect("no answer");
    assert!(matches!(error, ServiceError::CoordinatorGone { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[tokio::test]
async fn weights_that_a_worker_has_are_told_at_once_and_a_source_is_asked_for() {
    let stub = Stub::default();
    let (address, _stop) = stub.serve().await;
    let membership = join(address, Duration::from_secs(9)).await;
    let held = vec![WeightsId { version: 4, role: WeightsRole::Policy.into() }];
    let standing = WeightsStanding { address: "10.0.0.1:7".to_owned(), held, fetching: None };
    membership.has_weights(standing.clone());
    stub.until("the weights are told", |state| state.weights == Some(standing.clone())).await;
    let name = protocol::WeightsName::policy(4);
    let seek = async |failed: &[FailedSource]| membership.seek_weights(name, failed, Duration::ZERO).await;
    assert_eq!(seek(&[]).await, Some(SeekWeightsReply { source: None }));
    let failed = FailedSource { member_id: "worker-1".to_owned(), reason: "it was cut".to_owned() };
    let source = seek_weights_reply::Source::Worker(WorkerSource {
        member_id: failed.member_id.clone(),
        address: failed.reason.clone(),
    });
    assert_eq!(seek(&[failed]).await, Some(SeekWeightsReply { source: Some(source) }));
    stub.state.lock().unwrap().incarnation = 10;
    assert_eq!(seek(&[]).await, None, "who is fenced is told nothing, and asks the learner");
}
