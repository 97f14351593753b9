//! A process's place in the run: join, heartbeat, and joining again when either side was away.
//!
//! Invariants: (1) one identity at a time: every call carries the newest incarnation; (2) only a coordinator that
//! refuses the old identity makes a member join again, an unreachable one is waited for; (3) after the grace without
//! a coordinator the membership is lost for good and every call says so.

use crate::connect::endpoint;
use crate::{Backoff, ServiceError, coordinator_client, request};
use proto::coordinator_client::CoordinatorClient;
use proto::heartbeat_reply::Order;
use proto::{
    Caller, FinishTaskRequest, HeartbeatRequest, JoinReply, JoinRequest, LeaveRequest, NextTaskRequest,
    Progress, ReportReply, ReportRequest, Role, Summary, Task, TaskId, Wanted,
};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;
use tonic::{Code, Status};

const CALL_DEADLINE: Duration = Duration::from_secs(5);
const LEAVE_DEADLINE: Duration = Duration::from_secs(2);
/// Heartbeats that fit into one lease.
const HEARTBEATS_PER_LEASE: f64 = 5.0;

/// What a member says of itself when it joins.
#[derive(Clone, Debug)]
pub struct JoinDetails {
    /// Learner or rollout worker.
    pub role: Role,
    /// Chosen by the launcher, kept over restarts.
    pub member_id: String,
    /// Learner: where workers reach it, `host:port`; else empty.
    pub address: String,
    /// Worker: the task that is running already.
    pub running: Option<TaskId>,
    /// How long an absent coordinator is waited for.
    pub grace: Duration,
}

/// What the coordinator last said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `host:port` of the learner; empty while none has joined.
    pub learner_address: String,
    /// Go on, or finish what is in flight and leave.
    pub order: Order,
}

/// A living membership; its heartbeat stops when the last clone is dropped.
#[derive(Clone)]
pub struct Membership {
    shared: Arc<Shared>,
    _heartbeat: Arc<DropGuard>,
}

struct Shared {
    address: String,
    client: CoordinatorClient<Channel>,
    details: JoinDetails,
    state: Mutex<State>,
    /// Held while joining, so that callers fenced together join once.
    joining: tokio::sync::Mutex<()>,
    standing: watch::Sender<Standing>,
    lost: watch::Sender<Option<Loss>>,
}

struct State {
    caller: Caller,
    lease: Duration,
    running: Option<TaskId>,
    progressed: Instant,
    last_contact: Instant,
}

/// Why a membership ended; the source of one [`ServiceError`] for each of the calls that it ends.
#[derive(Clone, Debug)]
enum Loss {
    Gone,
    Refused(String),
}

impl Membership {
    /// Joins the run at `address` (`http://host:port`), waiting for the coordinator for `details.grace` at most.
    ///
    /// # Errors
    /// If the address does not parse, nobody answers in time, or the coordinator refuses the member.
    pub async fn join(address: &str, details: JoinDetails) -> Result<(Self, JoinReply), ServiceError> {
        let client = coordinator_client(endpoint(address)?.connect_lazy());
        let now = Instant::now();
        let state = State {
            caller: Caller { member_id: details.member_id.clone(), ..Caller::default() },
            lease: Duration::from_secs(5),
            running: details.running,
            progressed: now,
            last_contact: now,
        };
        let standing = Standing { learner_address: String::new(), order: Order::Continue };
        let shared = Arc::new(Shared {
            address: address.to_owned(),
            client,
            details,
            state: Mutex::new(state),
            joining: tokio::sync::Mutex::new(()),
            standing: watch::Sender::new(standing),
            lost: watch::Sender::new(None),
        });
        let reply = shared.join().await?;
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(heartbeats(shared.clone())));
        Ok((Self { shared, _heartbeat: Arc::new(stop.drop_guard()) }, reply))
    }

    /// The newest identity; every rpc to the learner carries it.
    pub fn caller(&self) -> Caller {
        self.shared.state().caller.clone()
    }

    /// Follows what the coordinator says.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.shared.standing.subscribe()
    }

    /// Waits until the membership is lost for good and says why; the process then exits with
    /// [`exit_code::RETRY`](crate::exit_code::RETRY).
    pub async fn lost(&self) -> ServiceError {
        let mut lost = self.shared.lost.subscribe();
        // The sender lives in `shared`, which `self` holds.
        let loss = lost.wait_for(Option::is_some).await.ok().and_then(|loss| loss.clone());
        self.shared.loss(loss.unwrap_or(Loss::Gone))
    }

    /// Notes that the running task got somewhere; a worker that does not call this for long is taken for hung.
    pub fn progressed(&self) {
        self.shared.state().progressed = Instant::now();
    }

    /// Asks for a task, waiting for one for `wait` at most. The task counts as running until it is finished.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn next_task(&self, wait: Duration) -> Result<Option<Task>, ServiceError> {
        let shared = &self.shared;
        let task = shared
            .call(wait + CALL_DEADLINE, |mut client, caller| async move {
                let message = NextTaskRequest { caller: Some(caller), wait_seconds: wait.as_secs_f64() };
                client.next_task(request(message, wait + CALL_DEADLINE)).await
            })
            .await?
            .task;
        let mut state = shared.state();
        state.running = task.as_ref().and_then(|task| task.id);
        state.progressed = Instant::now();
        drop(state);
        Ok(task)
    }

    /// Tells that the learner holds a task, or does not want it any more.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn task_held(&self, task: TaskId) -> Result<(), ServiceError> {
        self.finish(FinishTaskRequest { task: Some(task), ..FinishTaskRequest::default() }).await
    }

    /// Tells that a task failed; `poisonous` if the fault is the task's, not this worker's.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn task_failed(
        &self,
        task: TaskId,
        failure: &str,
        poisonous: bool,
    ) -> Result<(), ServiceError> {
        let failure = if failure.is_empty() { "unknown" } else { failure };
        self.finish(FinishTaskRequest {
            task: Some(task),
            failure: failure.to_owned(),
            poisonous,
            ..FinishTaskRequest::default()
        })
        .await
    }

    async fn finish(&self, message: FinishTaskRequest) -> Result<(), ServiceError> {
        self.shared
            .call(CALL_DEADLINE, |mut client, caller| {
                let message = FinishTaskRequest { caller: Some(caller), ..message.clone() };
                async move { client.finish_task(request(message, CALL_DEADLINE)).await }
            })
            .await?;
        self.shared.state().running.take_if(|running| Some(*running) == message.task);
        Ok(())
    }

    /// Learner: tells what is wanted and how far it is.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn report(&self, wanted: &[Wanted], progress: Progress) -> Result<ReportReply, ServiceError> {
        let message =
            ReportRequest { wanted: wanted.to_vec(), progress: Some(progress), ..ReportRequest::default() };
        self.send_report(message).await
    }

    /// Learner: tells that the run is done.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn report_done(&self, progress: Progress, summary: Summary) -> Result<(), ServiceError> {
        let message =
            ReportRequest { progress: Some(progress), summary: Some(summary), ..ReportRequest::default() };
        self.send_report(message).await.map(|_| ())
    }

    /// Learner: tells that the run cannot go on, and why.
    ///
    /// # Errors
    /// If the membership is lost.
    pub async fn report_fatal(&self, reason: &str) -> Result<(), ServiceError> {
        let message = ReportRequest { fatal: reason.to_owned(), ..ReportRequest::default() };
        self.send_report(message).await.map(|_| ())
    }

    async fn send_report(&self, message: ReportRequest) -> Result<ReportReply, ServiceError> {
        self.shared
            .call(CALL_DEADLINE, |mut client, caller| {
                let message = ReportRequest { caller: Some(caller), ..message.clone() };
                async move { client.report(request(message, CALL_DEADLINE)).await }
            })
            .await
    }

    /// Says goodbye; a coordinator that does not hear it lets the lease run out.
    pub async fn leave(self) {
        let message = LeaveRequest { caller: Some(self.caller()) };
        if let Err(status) = self.shared.client.clone().leave(request(message, LEAVE_DEADLINE)).await {
            tracing::debug!("goodbye not heard: {}", status.message());
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn loss(&self, loss: Loss) -> ServiceError {
        let address = self.address.clone();
        match loss {
            Loss::Gone => ServiceError::CoordinatorGone { address, grace: self.details.grace },
            Loss::Refused(reason) => {
                ServiceError::Refused { address, member_id: self.details.member_id.clone(), reason }
            }
        }
    }

    fn lose(&self, loss: Loss) -> ServiceError {
        self.lost.send_replace(Some(loss.clone()));
        self.loss(loss)
    }

    fn check_lost(&self) -> Result<(), ServiceError> {
        match &*self.lost.borrow() {
            Some(loss) => Err(self.loss(loss.clone())),
            None => Ok(()),
        }
    }

    fn in_contact(&self) {
        self.state().last_contact = Instant::now();
    }

    /// Whether a failed call is worth repeating now; ends the membership once the grace is over.
    fn outlives_outage(&self) -> Result<(), ServiceError> {
        self.check_lost()?;
        let away = self.state().last_contact.elapsed();
        if away > self.details.grace { Err(self.lose(Loss::Gone)) } else { Ok(()) }
    }

    async fn join(&self) -> Result<JoinReply, ServiceError> {
        let mut backoff = patience();
        loop {
            let message = self.join_request();
            match self.client.clone().join(request(message, CALL_DEADLINE)).await {
                Ok(reply) => {
                    let reply = reply.into_inner();
                    self.joined(&reply);
                    return Ok(reply);
                }
                Err(status) if is_outage(&status) => {
                    self.outlives_outage()?;
                    tokio::time::sleep(backoff.next_pause()).await;
                }
                Err(status) => return Err(self.lose(Loss::Refused(status.message().to_owned()))),
            }
        }
    }

    fn join_request(&self) -> JoinRequest {
        let state = self.state();
        JoinRequest {
            role: self.details.role.into(),
            member_id: self.details.member_id.clone(),
            run_id: state.caller.run_id.clone(),
            address: self.details.address.clone(),
            pid: std::process::id(),
            host: nix::unistd::gethostname()
                .map(|host| host.to_string_lossy().into_owned())
                .unwrap_or_default(),
            running: state.running,
        }
    }

    fn joined(&self, reply: &JoinReply) {
        let mut state = self.state();
        if let Some(identity) = &reply.identity {
            state.caller = identity.clone();
        }
        state.lease = Duration::try_from_secs_f64(reply.lease_seconds).unwrap_or(state.lease);
        state.last_contact = Instant::now();
        tracing::info!(incarnation = state.caller.incarnation, "joined the run");
        drop(state);
        self.stand(Standing { learner_address: reply.learner_address.clone(), order: Order::Continue });
    }

    fn stand(&self, standing: Standing) {
        self.standing.send_if_modified(|old| {
            let changed = *old != standing;
            *old = standing;
            changed
        });
    }

    /// Joins again unless somebody has done so since `refused` was the identity.
    async fn join_again(&self, refused: &Caller) -> Result<(), ServiceError> {
        let _joining = self.joining.lock().await;
        self.check_lost()?;
        if self.state().caller == *refused {
            tracing::warn!(incarnation = refused.incarnation, "fenced by the coordinator, joining again");
            self.join().await?;
        }
        Ok(())
    }

    /// Calls until the coordinator answers: waits through outages, joins again when fenced.
    async fn call<T, F>(
        &self,
        deadline: Duration,
        attempt: impl Fn(CoordinatorClient<Channel>, Caller) -> F,
    ) -> Result<T, ServiceError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let mut backoff = patience();
        loop {
            self.check_lost()?;
            let caller = self.state().caller.clone();
            // The outer deadline also covers a connection that neither answers nor breaks.
            let outcome =
                tokio::time::timeout(deadline * 2, attempt(self.client.clone(), caller.clone())).await;
            match outcome.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))) {
                Ok(reply) => {
                    self.in_contact();
                    return Ok(reply.into_inner());
                }
                Err(status) if status.code() == Code::FailedPrecondition => {
                    self.in_contact();
                    self.join_again(&caller).await?;
                    tokio::time::sleep(backoff.next_pause()).await;
                }
                Err(status) if is_outage(&status) => {
                    self.outlives_outage()?;
                    tokio::time::sleep(backoff.next_pause()).await;
                }
                Err(status) => {
                    return Err(ServiceError::Call {
                        address: self.address.clone(),
                        source: Box::new(status),
                    });
                }
            }
        }
    }

    async fn heartbeat(&self) -> Result<(), ServiceError> {
        let reply = self
            .call(CALL_DEADLINE, |mut client, caller| async move {
                let idle_seconds = {
                    let state = self.state();
                    state.running.map_or(0.0, |_| state.progressed.elapsed().as_secs_f64())
                };
                let message = HeartbeatRequest { caller: Some(caller), idle_seconds };
                client.heartbeat(request(message, CALL_DEADLINE)).await
            })
            .await?;
        let order = if reply.order() == Order::Drain { Order::Drain } else { Order::Continue };
        self.stand(Standing { learner_address: reply.learner_address, order });
        Ok(())
    }
}

async fn heartbeats(shared: Arc<Shared>) {
    loop {
        let lease = shared.state().lease;
        tokio::time::sleep(lease.div_f64(HEARTBEATS_PER_LEASE)).await;
        match shared.heartbeat().await {
            Ok(()) => {}
            Err(ServiceError::Call { source, .. }) => {
                tracing::warn!("heartbeat not taken: {}", source.message());
            }
            Err(_) => return,
        }
    }
}

fn patience() -> Backoff {
    Backoff::new(Duration::from_millis(50), Duration::from_secs(2))
}

/// Failures of the way to the coordinator, or of one that is starting or stopping.
fn is_outage(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted
    )
}
